"""Fused attention: prefill in causal blocks, decode as a stream over the KV cache.

Prefill:  t = launch + blocks * (products / matrix + exposed * exponentials) + rows
Decode:   t = launch + reduce * log2(1 + keys / 64) + max(cache / memory, padded products / matrix)
              + rows

`blocks` are 128 queries by 128 keys, the diagonal ones whole, spread over the SMs but at least the
longest row of one head: a row's blocks run one after another. Exponentials go at 16 a cycle and SM
on every generation so far, while matrix rates double: their share grows with each.
"""

from __future__ import annotations

import numpy as np

from .constants import Decode, Power, Prefill
from .gemm import settled
from .rates import Estimate, Num, Rates

BLOCK = 128  # queries and keys of a block
EXP_RATE = 16  # exponentials a cycle and SM
KEYS = 64  # keys in the smallest piece of a split cache


def prefill(
    batch: Num, heads: Num, kv_heads: Num, queries: Num, keys: Num, size: Num, size_v: Num,
    rates: Rates, c: Prefill, power: Power,
    *, share: Num, itemsize: Num = 2.0, passes: Num = 1.0, portable: bool = False,
) -> Estimate:  # fmt: skip
    """Seconds of softmax(Q K^T) V.

    Q [batch, heads, queries, size], K [batch, kv_heads, keys, size], V [.., keys, size_v].

    Args:
        share: of all (query, key) pairs, those that are computed: (S + 1) / 2S under a causal mask.
        itemsize: bytes an element.
        passes: matrix work over that of a forward (backward: 2.5, with the scores done again).
        portable: a kernel in the instructions of an older generation, with nothing hidden
            (FlashAttention-2, which torch's own flash op is, on Hopper).
    """
    rows, columns = np.ceil(queries / BLOCK), np.ceil(keys / BLOCK)
    # A mask's edge crosses a block in each row of blocks, half of it for nothing.
    per_head = rows * (columns * share + 0.5 * (share < 1))
    longest = np.minimum(1, 2 * share) * columns
    spread = batch * heads * per_head / rates.sms
    blocks = np.maximum(spread + c.tail * longest, longest)
    matrix = c.matrix * (c.portable if portable else 1)
    products = 2 * BLOCK * BLOCK * (size + size_v) * rates.sms / (rates.matrix * matrix)
    exponentials = BLOCK * BLOCK / (EXP_RATE * rates.clock)
    exposed = 1 if portable else c.exposed
    compute = settled(passes * blocks * (products + exposed * exponentials), power)
    moved = itemsize * batch * (size + size_v) * (heads * queries + kv_heads * keys)
    # A chip with few bytes a second for its SMs waits for the memory instead.
    memory = passes * np.maximum(moved / (c.rows * rates.issue), moved / rates.memory)
    return Estimate(c.launch + compute + memory, compute, memory, c.launch)


def decode(
    batch: Num, kv_heads: Num, rows: Num, keys: Num, size: Num, size_v: Num, cache: Num,
    rates: Rates, c: Decode, power: Power, *, itemsize: Num = 2.0,
) -> Estimate:  # fmt: skip
    """Seconds of one new token a sequence over its cache.

    `rows`: queries that share a KV head (heads / kv_heads for one token; all heads for absorbed
    MLA, whose one latent of 576 elements is key and value). `cache`: bytes of it, all sequences.
    """
    padded = np.ceil(rows / rates.mma_rows) * rates.mma_rows
    flops = 2 * batch * kv_heads * padded * keys * (size + size_v)
    compute = flops / (rates.matrix * c.matrix)
    memory = cache / (rates.memory * c.memory)
    queries = itemsize * batch * kv_heads * rows * (size + size_v)
    rest = queries / (c.rows * rates.issue)
    latency = c.launch + c.reduce * np.log2(1 + keys / KEYS)
    return Estimate(latency + np.maximum(memory, compute) + rest, compute, memory + rest, latency)
