"""Collectives of one scale-up domain: latency by rank, volume over the link, filling the pipe.

    t = launch + hop * phases * (n - 1) + x + fill * sqrt(x / (x + 4 fill)),
    x = volume / (bandwidth * link)

Volume a rank sends, of B bytes of result: all-gather B (n-1)/n and a copy of its own part;
all-reduce twice (n-1)/n over links, or B (1 + 1/n) where the switch adds up (NVLS, from four
ranks on), and the additions on top. Short messages go in protocols that send flags along with the
data and longer ones in chunks: what that costs grows with the root of the length and then ends.

All-gather and all-reduce are measured. The others take their constants: reduce-scatter the
additions of an all-reduce, all-to-all and broadcast the link's share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .constants import Collective
from .rates import Estimate, Num, Rates

MULTICAST_RANKS = 4
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER = "all_reduce", "all_gather", "reduce_scatter"
ALL_TO_ALL, BROADCAST, SEND = "all_to_all", "broadcast", "send"
OPS = (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, BROADCAST, SEND)


class Traffic(NamedTuple):
    """What one rank of a collective does, of B bytes: it sends `volume` * B in `steps` steps."""

    volume: Num
    steps: Num


def traffic(op: str, ranks: Num) -> Traffic:
    """Bytes a rank sends over links without a switch that adds, a byte of message, and its steps.

    B is the result of an all-gather and the input of a reduce-scatter on every rank, what a rank
    holds for all others in an all-to-all, and the message itself everywhere else.
    """
    share, others = (ranks - 1) / ranks, ranks - 1
    if op == ALL_REDUCE:
        return Traffic(2 * share, 2 * others)
    if op in (BROADCAST, SEND):
        return Traffic(np.minimum(others, 1), others)
    return Traffic(share, others)


def cost_of(op: str, ranks: Num, c: Collective) -> tuple[Num, Num]:
    """Cost of a byte sent, as bytes (additions), and of a byte of message besides (copies)."""
    factor = c.reduce if op in (ALL_REDUCE, REDUCE_SCATTER) else 1.0
    copies = c.copy / ranks if op in (ALL_GATHER, ALL_TO_ALL) else 0.0
    return factor, copies


def collective(nbytes: Num, ranks: Num, reduces: Num, rates: Rates, c: Collective) -> Estimate:
    """Seconds of an all-gather, or all-reduce where `reduces`, of `nbytes` on every rank."""
    gather, reduce = traffic(ALL_GATHER, ranks), traffic(ALL_REDUCE, ranks)
    (_, copies), (additions, _) = cost_of(ALL_GATHER, ranks, c), cost_of(ALL_REDUCE, ranks, c)
    switched = np.logical_and(rates.switch, np.greater_equal(ranks, MULTICAST_RANKS))
    reduced = np.where(switched, 1 + 1 / ranks, reduce.volume)
    volume = nbytes * np.where(reduces, additions * reduced, gather.volume + copies)
    steps = np.where(reduces, reduce.steps, gather.steps)
    return transfer(volume / (rates.link * c.link), c.launch + c.hop * steps, c)


def transfer(busy: Num, latency: Num, c: Collective) -> Estimate:
    """Seconds of a message that keeps its slowest link busy for `busy`, after `latency`."""
    fill = c.fill * np.sqrt(busy / np.maximum(busy + 4 * c.fill, 1e-30))
    return Estimate(latency + busy + fill, 0.0 * busy, busy + fill, latency)
