"""How many (query, key) pairs an attention kernel computes under its mask."""

from __future__ import annotations

from typing import NamedTuple

from ...capture.records import TensorRef
from ..registry import Env
from .common import product


class Mask(NamedTuple):
    """Which keys a query sees: those from `left` before it to `right` behind it; None is no limit.

    `bottom_right` aligns the last query with the last key (a cache in front of the queries), else
    the first with the first, as torch's `is_causal` does.
    """

    left: int | None = None
    right: int | None = None
    bottom_right: bool = False


DENSE = Mask()
CAUSAL = Mask(right=0)


def causal_mask(is_causal: bool) -> Mask:
    """`is_causal` of the SDPA ops: top-left aligned."""
    return CAUSAL if is_causal else DENSE


def window_mask(
    is_causal: bool, left: int | None, right: int | None, bottom_right: bool = True
) -> Mask:
    """Causality and a window as the flash kernels take them: -1 or None is no limit."""
    before = None if left is None or left < 0 else left
    behind = None if right is None or right < 0 else right
    return Mask(before, 0 if is_causal else behind, bottom_right)


def count_pairs(queries: int, keys: int, mask: Mask) -> int:
    """Pairs of one head: query i, at position p = i + shift, sees keys p-left .. p+right."""
    if mask.left is None and mask.right is None:
        return queries * keys
    shift = keys - queries if mask.bottom_right else 0
    seen = queries * keys  # keys up to p + right, summed over queries
    if mask.right is not None:
        first = shift + mask.right + 1
        seen = _ramp(first + queries - 1, keys) - _ramp(first - 1, keys)
    hidden = 0  # of those, the ones before p - left
    if mask.left is not None:
        first = shift - mask.left
        hidden = _ramp(first + queries - 1, keys) - _ramp(first - 1, keys)
    return seen - hidden


def _ramp(n: int, cap: int) -> int:
    """The sum of min(m, cap) for m = 1..n; nothing for n <= 0."""
    if n <= 0:
        return 0
    if n <= cap:
        return n * (n + 1) // 2
    return cap * (cap + 1) // 2 + (n - cap) * cap


def in_force(mask: Mask, env: Env) -> Mask:
    """The mask under the convention: causal="full" counts every pair."""
    return mask if env.conventions.causal == "pairs" else DENSE


def attention_pairs(query: TensorRef, key: TensorRef, mask: Mask, env: Env) -> int:
    """Pairs over batch and query heads; shapes [B, H, S, D] and [B, Hk, L, D]."""
    *batch, queries, _ = query.shape
    return product(batch) * count_pairs(queries, key.shape[-2], in_force(mask, env))


def packed_pairs(
    tokens_q: int, tokens_k: int, sequences: int, mask: Mask, env: Env
) -> int:  # fmt: skip
    """Pairs of one head where the lengths of `sequences` packed sequences are data.

    Equal lengths are taken, or lengths one apart where the tokens do not divide. By convexity that
    is the least that so many tokens and sequences can cost.
    """
    mask = in_force(mask, env)
    count = max(1, sequences)
    short_q, long = divmod(tokens_q, count)
    short_k, longer = divmod(tokens_k, count)
    return (count - long) * count_pairs(short_q, short_k, mask) + long * count_pairs(
        short_q + 1, short_k + (longer > 0), mask
    )
