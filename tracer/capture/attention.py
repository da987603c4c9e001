"""Send `scaled_dot_product_attention` to the fused op that a GPU would run.

On meta and fake tensors the function decomposes into two batched matmuls and a softmax, a program
that no GPU runs by default. This function mode calls a fused aten op instead; the op carries its
own derivative, so the backward pass is the fused one too. Without the mode the decomposition is
what gets recorded (`naive` execution), in the tensors' own precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from . import compat

_FLASH_MAX_HEAD = 256  # head size limit of the flash kernels, elements


@contextlib.contextmanager
def decomposed_attention() -> Iterator[None]:
    """Keep SDPA's decomposition, with half-precision matmuls on half-precision tensors.

    By default torch widens them to FP32 on its math path, to be a numerical reference; unfused
    attention as people write it multiplies in BF16 and only the softmax is FP32.
    """
    backend = torch.backends.cuda
    before = backend.fp16_bf16_reduction_math_sdp_allowed()
    backend.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        yield
    finally:
        backend.allow_fp16_bf16_reduction_math_sdp(before)


class FusedAttention(TorchFunctionMode):
    """Reroutes SDPA on meta and fake tensors; real tensors keep what their device runs."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            return _sdpa(*args, **(kwargs or {}))
        return func(*args, **kwargs) if kwargs else func(*args)


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, window: int, scale: float | None
) -> Tensor:
    """Causal attention in which a query sees its own key and the `window - 1` before it.

    Shapes [B, H, S, D]; fewer key heads than query heads are shared (GQA). SDPA has no window, so
    a `FusedAttention` block gets the flash op, which has, and any other a mask.
    """
    if fused_attention_active() and key.is_meta:
        out: Tensor = torch.ops.aten._flash_attention_forward(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            None,
            None,
            query.shape[2],
            key.shape[2],
            0.0,
            True,
            False,
            scale=scale,
            window_size_left=window - 1,
            window_size_right=0,
        )[0]
        return out.transpose(1, 2)
    ones = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    mask = ones.tril().logical_and_(ones.triu(1 - window))
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped
    )


def fused_attention_active() -> bool:
    """Whether the code runs inside of a `FusedAttention` block."""
    return any(isinstance(mode, FusedAttention) for mode in compat.function_mode_stack())


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if not (query.is_meta or compat.is_fake(query)) or query.dim() != 4:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
    aten = torch.ops.aten
    need_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if attn_mask is not None:
        attn_mask = _as_bias(attn_mask, query, key)
    half = query.dtype in (torch.bfloat16, torch.float16)
    head_q, head_v = query.shape[-1], value.shape[-1]
    out: Tensor
    if half and attn_mask is None and head_q == head_v and head_q <= _FLASH_MAX_HEAD:
        out = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    elif half:
        # The only fused op in torch that takes other v sizes, as MLA needs (192 and 128).
        out = aten._scaled_dot_product_cudnn_attention(
            query, key, value, attn_mask, need_grad, dropout_p, is_causal, False, scale=scale
        )[0]
    else:
        out = aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, need_grad, dropout_p, is_causal, scale=scale
        )[0]
    return out


def _as_bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A boolean mask as the additive bias that the fused ops take, as torch itself converts it."""
    if mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=query.dtype)
        mask = bias.masked_fill_(mask.logical_not(), float("-inf"))
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
