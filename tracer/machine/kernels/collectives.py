"""Collectives of one scale-up domain: latency by rank, volume over the link, filling the pipe.

    t = launch + hop * phases * (n - 1) + x + fill * sqrt(x / (x + 4 fill)),
    x = volume / (bandwidth * link)

Volume a rank sends, of B bytes of result: all-gather B (n-1)/n and a copy of its own part;
all-reduce twice (n-1)/n over links, or B (1 + 1/n) where the switch adds up (NVLS, from four
ranks on), and the additions on top. Short messages go in protocols that send flags along with the
data and longer ones in chunks: what that costs grows with the root of the length and then ends.
"""

from __future__ import annotations

import numpy as np

from .constants import Collective
from .rates import Estimate, Num, Rates

MULTICAST_RANKS = 4


def collective(nbytes: Num, ranks: Num, reduces: Num, rates: Rates, c: Collective) -> Estimate:
    """Seconds of an all-gather, or all-reduce where `reduces`, of `nbytes` on every rank."""
    share = (ranks - 1) / ranks
    switched = np.logical_and(rates.switch, np.greater_equal(ranks, MULTICAST_RANKS))
    reduced = np.where(switched, 1 + 1 / ranks, 2 * share)
    volume = nbytes * np.where(reduces, c.reduce * reduced, share + c.copy / ranks)
    busy = volume / (rates.link * c.link)
    latency = c.launch + c.hop * (ranks - 1) * np.where(reduces, 2, 1)
    fill = c.fill * np.sqrt(busy / (busy + 4 * c.fill))
    return Estimate(latency + busy + fill, 0.0 * busy, busy + fill, latency)
