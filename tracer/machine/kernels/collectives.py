"""Collectives of one scale-up domain: latency by rank, volume over the link, filling the pipe.

    t = launch + hop * phases * (n - 1) + x + fill * x / (x + fill / 2),   x = volume / (link share)

Volume a rank sends, of B bytes of result: all-gather B (n-1)/n and a copy of its own part;
all-reduce twice (n-1)/n over links, or B (1 + 1/n) where the switch adds up (NVLS, from four
ranks on).
"""

from __future__ import annotations

import numpy as np

from .constants import Collective
from .rates import Estimate, Num, Rates

MULTICAST_RANKS = 4


def collective(
    nbytes: Num, ranks: Num, reduces: Num, rates: Rates, c: Collective, *, switch: Num = True
) -> Estimate:
    """Seconds of an all-gather, or all-reduce where `reduces`, of `nbytes` on every rank.

    `switch`: the fabric adds up what passes it.
    """
    share = (ranks - 1) / ranks
    switched = np.logical_and(switch, ranks >= MULTICAST_RANKS)
    reduced = np.where(switched, (1 + 1 / ranks) * c.multicast, 2 * share)
    volume = nbytes * np.where(reduces, reduced, share + c.copy / ranks)
    busy = volume / (rates.link * c.link)
    latency = c.launch + c.hop * (ranks - 1) * np.where(reduces, 2, 1)
    fill = c.fill * busy / (busy + c.fill / 2)
    return Estimate(latency + busy + fill, 0.0 * busy, busy + fill, latency)
