"""What a formula needs of a chip: figures of its datasheet and nothing measured."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

# A number, or an array of one number a kernel; formulas broadcast and never branch on values.
Num: TypeAlias = float | NDArray[np.float64]


class Rates(NamedTuple):
    """Datasheet figures behind a formula, in SI units.

    Attributes:
        matrix: dense peak of the operands' precision, FLOP/s.
        memory: bandwidth of device memory, B/s.
        sms: streaming multiprocessors (compute units) that the kernel may use.
        clock: cycles a second that the peaks are quoted at.
        link: scale-up bandwidth one way, B/s.
        mma_rows: rows that the matrix instruction always computes (64 on Hopper's wgmma).
        switch: whether the links' switch adds up what passes it (NVLS).
    """

    matrix: Num
    memory: float
    sms: float
    clock: float
    link: float = 0.0
    mma_rows: float = 64.0
    switch: bool = True

    @property
    def issue(self) -> float:
        """SM cycles a second of the whole chip."""
        return self.sms * self.clock


class Estimate(NamedTuple):
    """Seconds of kernels, and what they are made of.

    `seconds` is the estimate; `compute`, `memory` and `latency` say what it waits for: busy time of
    the arithmetic and of the memory at the rates that a kernel reaches, and time in which neither
    works. The three overlap, so that their sum is not `seconds`.
    """

    seconds: Any
    compute: Any
    memory: Any
    latency: Any
