"""Transformers' attention interface over one fused op.

What a kernel needs to know reaches one op: causality from the call or the module, windows and
chunks from the mask's pattern, GQA from the head counts, a position bias as the additive term.
Soft-capping and attention sinks happen inside of the kernel and have no op of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from .. import compat
from ..attention import fused_attention_active
from .context import attention_across, group_in_force
from .masks import CAUSAL, FULL, Pattern, pattern_of

_SPARSE = ("indices", "block_indices")  # arguments of kernels that compute chosen pairs only


class NeedsMask(Exception):  # a request to the program, not an error
    """The model hands over something that only a mask can express in torch's attention."""


def tracer_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any,
    scaling: float | None = None, dropout: float = 0.0, is_causal: bool | None = None,
    sliding_window: int | None = None, position_bias: Tensor | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """[B, H, Q, D] and [B, Hk, K, D] in, [B, Q, H, D] out.

    Raises:
        NeedsMask: the model chose pairs by index, which `sdpa` gets as a mask.
    """
    if any(kwargs.get(name) is not None for name in _SPARSE):
        raise NeedsMask
    queries, keys = query.shape[2], key.shape[2]
    pattern = pattern_of(attention_mask) if isinstance(attention_mask, Tensor) else None
    if attention_mask is None:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        # A single new token sees every key that its cache holds.
        pattern = CAUSAL if causal and queries > 1 else FULL
        if pattern is CAUSAL and isinstance(sliding_window, int) and sliding_window < keys:
            pattern = Pattern(sliding_window - 1, 0)
    if group_in_force() is not None:
        plain = pattern is CAUSAL and position_bias is None and not dropout
        return attention_across(query, key, value, scaling, plain=plain), None
    if pattern is None:
        mask = attention_mask[..., :keys]
        if position_bias is not None:
            mask = _joined(mask, position_bias)
        if mask.requires_grad:  # a learned bias: not every fused op has a derivative for it
            out = _biased(query, key, value, scaling, dropout, mask, FULL)
        else:
            out = _sdpa(query, key, value, scaling, dropout, mask=mask)
    elif position_bias is not None:
        out = _biased(query, key, value, scaling, dropout, position_bias, pattern)
    elif pattern in (CAUSAL, FULL):
        out = _sdpa(query, key, value, scaling, dropout, causal=pattern is not FULL)
    elif queries == 1:
        seen = keys if pattern.left is None else min(keys, pattern.left + 1)
        out = _sdpa(query, key[:, :, keys - seen :], value[:, :, keys - seen :], scaling, dropout)
    elif pattern.chunk is not None:
        out = _chunked(query, key, value, scaling, dropout, pattern.chunk)
    else:
        out = _windowed(query, key, value, scaling, dropout, pattern)
    return out.transpose(1, 2).contiguous(), None


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float,
    *, mask: Tensor | None = None, causal: bool = False,
) -> Tensor:  # fmt: skip
    return scaled_dot_product_attention(
        query, key, value, mask, dropout, causal, scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def _windowed(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, pattern: Pattern
) -> Tensor:
    """The flash op with its window; without fusion, a mask."""
    causal = pattern.right == 0
    if _decomposes(key):
        return _sdpa(query, key, value, scale, dropout, mask=_matrix(query, key, pattern))
    size, value_size = query.shape[-1], value.shape[-1]
    if value_size < size:  # as transformers does for flash kernels, which take one head size
        value = pad(value, (0, size - value_size))
    out: Tensor = torch.ops.aten._flash_attention_forward(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None, None,
        query.shape[2], key.shape[2], dropout, causal, False, scale=scale,
        window_size_left=-1 if pattern.left is None else pattern.left,
        window_size_right=-1 if pattern.right is None else pattern.right,
    )[0]  # fmt: skip
    return out.transpose(1, 2)[..., :value_size]


def _chunked(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, chunk: int
) -> Tensor:
    """Causal attention inside of chunks: each is a sequence of its own in one batch."""
    batch, heads, length, _ = query.shape
    if _decomposes(key):
        mask = _matrix(query, key, Pattern(None, 0, chunk))
        return _sdpa(query, key, value, scale, dropout, mask=mask)
    whole = length // chunk * chunk

    def split(states: Tensor) -> Tensor:
        rows = states[:, :, :whole].transpose(1, 2)  # [B, S, H, D]: chunks are neighbours in memory
        return rows.reshape(-1, chunk, *rows.shape[2:]).transpose(1, 2)

    parts = []
    if whole:
        out = _sdpa(split(query), split(key), split(value), scale, dropout, causal=True)
        rows = out.transpose(1, 2).reshape(batch, whole, heads, -1)
        parts.append(rows.transpose(1, 2))
    if whole < length:
        q, k, v = (states[:, :, whole:] for states in (query, key, value))
        parts.append(_sdpa(q, k, v, scale, dropout, causal=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _biased(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, bias: Tensor,
    pattern: Pattern,
) -> Tensor:  # fmt: skip
    """A bias of [1 or B, H, Q, K] and causality together, which `sdpa` takes only as one mask."""
    bias = bias[..., : key.shape[2]]
    plain = pattern in (CAUSAL, FULL)
    if _decomposes(key) or not plain:
        mask = bias if pattern == FULL else _joined(_matrix(query, key, pattern), bias)
        return _sdpa(query, key, value, scale, dropout, mask=mask)
    if query.shape[1] != key.shape[1]:  # this op shares no key heads
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    need_grad = torch.is_grad_enabled() and query.requires_grad
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias.expand(query.shape[0], query.shape[1], -1, -1), need_grad, dropout,
        pattern == CAUSAL, scale=scale,
    )[0]  # fmt: skip
    return out


def _joined(mask: Tensor, bias: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    return mask + bias


def _matrix(query: Tensor, key: Tensor, pattern: Pattern) -> Tensor:
    """The pattern as a boolean [Q, K] mask."""
    rows = torch.arange(query.shape[2], device=query.device)[:, None]
    columns = torch.arange(key.shape[2], device=query.device)[None, :]
    seen = columns >= 0 if pattern.right is None else columns <= rows + pattern.right
    if pattern.left is not None:
        seen = seen & (columns >= rows - pattern.left)
    if pattern.chunk is not None:
        seen = seen & (columns // pattern.chunk == rows // pattern.chunk)
    return seen.expand(query.shape[2], key.shape[2])


def _decomposes(tensor: Tensor) -> bool:
    """Whether attention on this tensor is recorded as matmuls: no fused op may be called for it."""
    return not (fused_attention_active() and (tensor.is_meta or compat.is_fake(tensor)))
