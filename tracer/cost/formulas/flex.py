"""Flex attention and the other higher-order ops, which the recorder names `higher_order.*`.

What a score function does and which blocks a mask keeps are Python and data: the record has the
shapes. Scans, loops and branches (`scan`, `while_loop`, `cond`) run their bodies unseen; they have
no formula here on purpose, so that they are reported by name.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import ESTIMATED, Work
from .attention import backward_from_pairs, forward_from_pairs
from .common import Out, product

# Places in `BlockMask.as_tuple()`.
_KV_INDICES, _FULL_KV_INDICES, _BLOCK_KV = 3, 5, -2


def _pairs_bound(query: TensorRef, key: TensorRef, block_mask: Any) -> int:
    """Every pair, or fewer where the mask's table has no room for so many blocks a row."""
    keys = key.shape[-2]
    if isinstance(block_mask, tuple) and len(block_mask) > _FULL_KV_INDICES:
        tables = (block_mask[_KV_INDICES], block_mask[_FULL_KV_INDICES])
        columns = sum(t.shape[-1] for t in tables if isinstance(t, TensorRef))
        if columns:
            keys = min(keys, columns * block_mask[_BLOCK_KV])
    return product(query.shape[:-1]) * keys


@cost("higher_order::flex_attention")
def flex_attention(
    query: TensorRef, key: TensorRef, value: TensorRef, score_mod: Any, block_mask: Any,
    scale: Any = None, kernel_options: Any = None, *buffers: Any, out: Out, **_: Any,
) -> Work:  # fmt: skip
    """2·(D + Dv) a pair of the blocks that the mask has room for.

    Estimated: the blocks that a mask keeps are data; without them every pair is counted.
    """
    pairs = _pairs_bound(query, key, block_mask)
    work = forward_from_pairs(pairs, query.shape[-1], value.shape[-1])
    return work._replace(confidence=ESTIMATED)


@cost("higher_order::flex_attention_backward")
def flex_attention_backward(
    query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef, logsumexp: TensorRef,
    grad_out: TensorRef, grad_logsumexp: Any, fw_graph: Any, joint_graph: Any, block_mask: Any,
    scale: Any = None, kernel_options: Any = None, *buffers: Any, out: Out, **_: Any,
) -> Work:  # fmt: skip
    """4·(D + Dv) a pair, and 2·D of recompute.

    Estimated: the blocks that a mask keeps are data; without them every pair is counted.
    """
    pairs = _pairs_bound(query, key, block_mask)
    work = backward_from_pairs(pairs, query, value.shape[-1])
    return work._replace(confidence=ESTIMATED)
