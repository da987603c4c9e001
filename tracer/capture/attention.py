"""Send `scaled_dot_product_attention` to the fused op that a GPU would run.

On meta and fake tensors the function decomposes into two batched matmuls and a softmax, a program
that no GPU runs by default. While a capture with fused attention is open, a kernel of ours takes
the op at its autograd dispatch keys and calls a fused aten op instead; that op carries its own
derivative, so the backward pass is the fused one too. It is the dispatcher and not a torch-function
mode that is asked, because such modes are off inside of `backward()`, where checkpointing runs the
forward again, and inside of `F.multi_head_attention_forward`. Without a fused capture the
decomposition is what gets recorded (`naive` execution), in the tensors' own precision.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import compat

_FLASH_MAX_HEAD = 256  # head size limit of the flash kernels, elements

_thread = threading.local()  # .modes: whether each open capture of this thread is fused
_lock = threading.Lock()
_installed: list[torch.library.Library] = []  # while any thread needs them
_users = 0


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Reroute SDPA on meta and fake tensors of this thread; real tensors keep what they run."""
    global _users  # noqa: PLW0603 - the dispatcher's table is global, so is its user count
    with _lock:
        _users += 1
        if _users == 1:
            _installed.extend((
                compat.override_composite("scaled_dot_product_attention", sdpa),
                compat.override_composite("suffix_attention", _reference_suffix, "deepseek"),
                compat.efficient_attention_backward_on_meta(),
            ))  # fmt: skip
    _modes().append(True)
    try:
        yield
    finally:
        _modes().pop()
        with _lock:
            _users -= 1
            if _users == 0:
                while _installed:
                    _installed.pop()._destroy()


@contextlib.contextmanager
def decomposed_attention() -> Iterator[None]:
    """Keep SDPA's decomposition, with half-precision matmuls on half-precision tensors.

    By default torch widens them to FP32 on its math path, to be a numerical reference; unfused
    attention as people write it multiplies in BF16 and only the softmax is FP32.
    """
    backend = torch.backends.cuda
    before = backend.fp16_bf16_reduction_math_sdp_allowed()
    backend.allow_fp16_bf16_reduction_math_sdp(True)
    _modes().append(False)
    try:
        yield
    finally:
        _modes().pop()
        backend.allow_fp16_bf16_reduction_math_sdp(before)


def fused_attention_active() -> bool:
    """Whether the innermost capture of this thread is a fused one."""
    modes = _modes()
    return bool(modes) and modes[-1]


def _modes() -> list[bool]:
    if not hasattr(_thread, "modes"):
        _thread.modes = []
    modes: list[bool] = _thread.modes
    return modes


def _reference_suffix(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """The reference models' `deepseek::suffix_attention`, as one fused op where it may be."""
    if fused_attention_active() and _is_shape_only(query):
        return suffix_attention(query, key, value, scale)
    op = torch.ops.deepseek.suffix_attention.default
    unfused: Tensor = compat.decompose(op, (query, key, value, scale), {})
    return unfused


def suffix_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout_p: float = 0.0
) -> Tensor:
    """Causal attention of [B, H, S, D] over [B, Hk, L, D], L >= S: the last query is the last key.

    By torch's kernels for `causal_lower_right`: flash's, or the memory-efficient one where
    values have another size, in FP32, or above flash's limit; only flash shares key heads.
    """
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    size = query.shape[-1]
    half = query.dtype in (torch.bfloat16, torch.float16)
    out: Tensor
    if half and size == value.shape[-1] and size <= _FLASH_MAX_HEAD:
        out = torch.ops.aten._flash_attention_forward(
            q, k, v, None, None, q.shape[1], k.shape[1], dropout_p, True, False, scale=scale
        )[0]
        return out.transpose(1, 2)
    if q.shape[2] != k.shape[2]:
        k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], 2) for t in (k, v))
    need_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    lower_right = 2  # custom_mask_type
    out = torch.ops.aten._efficient_attention_forward(
        q, k, v, None, None, None, None, None, dropout_p, lower_right, need_grad, scale=scale
    )[0]
    return out.transpose(1, 2)


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`aten::scaled_dot_product_attention` over [B, H, S, D], as one fused op where it may be."""
    grouped = query.dim() == 4 and query.shape[1] != key.shape[1]
    if (
        not (fused_attention_active() and _is_shape_only(query))
        or not compat.fused_attention_allowed()
        or query.dim() != 4
        # What torch refuses is refused by torch.
        or (grouped and (not enable_gqa or query.shape[1] % key.shape[1] != 0))
    ):
        unfused: Tensor = compat.decompose(
            torch.ops.aten.scaled_dot_product_attention.default,
            (query, key, value, attn_mask, dropout_p, is_causal),
            {"scale": scale, "enable_gqa": enable_gqa},
        )
        return unfused
    aten = torch.ops.aten
    need_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if attn_mask is not None:
        attn_mask = _as_bias(attn_mask, query, key)
    half = query.dtype in (torch.bfloat16, torch.float16)
    head_q, head_v = query.shape[-1], value.shape[-1]
    outputs: Any
    if half and attn_mask is None and head_q == head_v and head_q <= _FLASH_MAX_HEAD:
        outputs = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )
    elif half and (attn_mask is None or not attn_mask.requires_grad):
        # The only fused op in torch that takes other v sizes, as MLA needs (192 and 128).
        outputs = aten._scaled_dot_product_cudnn_attention(
            query, key, value, attn_mask, need_grad, dropout_p, is_causal, False, scale=scale
        )
    else:
        # This kernel differentiates a bias, and takes FP32, but knows no shared key heads.
        if grouped:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        outputs = aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, need_grad, dropout_p, is_causal, scale=scale
        )
    out: Tensor = outputs[0]
    return out


def _is_shape_only(tensor: Tensor) -> bool:
    return tensor.is_meta or compat.is_fake(tensor)


def _as_bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A boolean mask as the additive bias that the fused ops take, as torch itself converts it."""
    if mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=query.dtype)
        mask = bias.masked_fill_(mask.logical_not(), float("-inf"))
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
