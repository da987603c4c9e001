"""Kernels without matrix work, by class of access to memory.

    t = launch + max(bytes / (bandwidth * memory), elements / (rate * SMs * clock))

Contiguous streams run at the memory's speed. Where an operand is strided or broadcast, index
arithmetic and one load an element make the instruction rate the limit, which follows SMs and clock
and not the memory; so do gathers, concatenations and row reductions.
"""

from __future__ import annotations

import numpy as np

from .constants import Elementwise
from .rates import Estimate, Num, Rates

CONTIGUOUS, SCALAR, GATHER, REDUCE = "contiguous", "scalar", "gather", "reduce"
CLASSES = (CONTIGUOUS, SCALAR, GATHER, REDUCE)


def elementwise(
    moved: Num, elements: Num, access: Num, rates: Rates, c: Elementwise, *, vector: Num = 0.0
) -> Estimate:
    """Seconds to move `moved` bytes in `elements` steps; `access` indexes `CLASSES`.

    `vector`: seconds of the vector units at their peak.
    """
    memory = moved / (rates.memory * c.memory)
    rate = np.where(
        np.equal(access, 1), c.scalar, np.where(np.equal(access, 2), c.gather, c.reduce)
    )
    issue = np.where(np.equal(access, 0), 0.0, elements / (rate * rates.issue))
    compute = np.maximum(issue, vector)
    return Estimate(c.launch + np.maximum(memory, compute), compute, memory, c.launch)
