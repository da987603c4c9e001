"""Fused attention: prefill in causal blocks, decode as a stream over the KV cache.

Prefill:  t = launch + blocks * (products / matrix + exposed * exponentials) + rows
Decode:   t = launch + reduce * log2(1 + keys / 64) + max(cache / memory, padded products / matrix)
              + rows

`blocks` are 128 queries by 128 keys, the diagonal ones whole, spread over the SMs but at least the
longest row of one head: a row's blocks run one after another. Exponentials go at 16 a cycle and SM
on every generation so far, while matrix rates double: their share grows with each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .constants import Decode, Power, Prefill
from .gemm import settled
from .rates import Estimate, Num, Rates

BLOCK = 128  # queries and keys of a block
EXP_RATE = 16  # exponentials a cycle and SM
KEYS = 64  # keys in the smallest piece of a split cache


class Prompt(NamedTuple):
    """Attention of many queries: Q [batch, heads, queries, size], K [batch, kv_heads, keys, size],
    V [batch, kv_heads, keys, size_v].

    Attributes:
        share: of all (query, key) pairs, those that are computed: (S + 1) / 2S if causal.
        passes: matrix work over that of a forward (backward: 2.5, with the scores done again).
        itemsize: bytes an element.
    """

    batch: Num
    heads: Num
    kv_heads: Num
    queries: Num
    keys: Num
    size: Num
    size_v: Num
    share: Num
    passes: Num = 1.0
    itemsize: Num = 2.0


class Cached(NamedTuple):
    """Attention of few queries over a cache of `nbytes` in all.

    `rows` are the queries that share a KV head: heads / kv_heads for one token a sequence; all
    heads for absorbed MLA, whose one latent of 576 elements is key and, 512 of it, value.
    """

    batch: Num
    kv_heads: Num
    rows: Num
    keys: Num
    size: Num
    size_v: Num
    nbytes: Num
    itemsize: Num = 2.0


def prefill(
    x: Prompt, rates: Rates, c: Prefill, power: Power, *, portable: bool = False
) -> Estimate:
    """Seconds of softmax(Q K^T) V.

    A `portable` kernel is in the instructions of an older generation and hides nothing
    (FlashAttention-2, which torch's own flash op is, on Hopper).
    """
    rows, columns = np.ceil(x.queries / BLOCK), np.ceil(x.keys / BLOCK)
    # A mask's edge crosses a block in each row of blocks: all of it is computed, and half counts.
    # A causal mask comes to rows * (columns + 1) / 2 so, its share being (keys + 1) / 2 keys.
    edge = 0.5 * np.less(x.share, 1) * (1 - columns / x.keys)
    per_head = rows * (columns * x.share + edge)
    longest = np.minimum(1, 2 * x.share) * columns
    spread = x.batch * x.heads * per_head / rates.sms
    blocks = np.maximum(spread + c.tail * longest, longest)
    matrix = c.matrix * (c.portable if portable else 1)
    products = 2 * BLOCK * BLOCK * (x.size + x.size_v) * rates.sms / (rates.matrix * matrix)
    exponentials = BLOCK * BLOCK / (EXP_RATE * rates.clock)
    exposed = 1 if portable else c.exposed
    compute = settled(x.passes * blocks * (products + exposed * exponentials), power)
    vectors = x.heads * x.queries + x.kv_heads * x.keys
    moved = x.itemsize * x.batch * (x.size + x.size_v) * vectors
    # A chip with few bytes a second for its SMs waits for the memory instead.
    memory = x.passes * np.maximum(moved / (c.rows * rates.issue), moved / rates.memory)
    return Estimate(c.launch + compute + memory, compute, memory, c.launch)


def decode(x: Cached, rates: Rates, c: Decode) -> Estimate:
    """Seconds of one new token a sequence over its cache."""
    padded = np.ceil(x.rows / rates.mma_rows) * rates.mma_rows
    flops = 2 * x.batch * x.kv_heads * padded * x.keys * (x.size + x.size_v)
    compute = flops / (rates.matrix * c.matrix)
    memory = x.nbytes / (rates.memory * c.memory)
    queries = x.itemsize * x.batch * x.kv_heads * x.rows * (x.size + x.size_v)
    rest = queries / (c.rows * rates.issue)
    latency = c.launch + c.reduce * np.log2(1 + x.keys / KEYS)
    return Estimate(latency + np.maximum(memory, compute) + rest, compute, memory + rest, latency)
