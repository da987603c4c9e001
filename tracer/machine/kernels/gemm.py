"""Dense products C[m,n] = A[m,k] B[k,n]: tiles in waves over the SMs, split over k, memory.

    t = launch + hi + serial * lo^2 / (hi * (1 + w) / 2)        hi, lo: larger, smaller of
                                                                compute and memory; w: waves
    compute = max(tiles * s / SMs, 1) * 2 * tile^2 / (peak / SMs * matrix) * (k / s + prologue)
              + [s > 1] (4 * s * m * n bytes of partial sums + a launch)

minimised over splits s >= 1 of k. With one wave, a product cannot hide its first loads and its last
stores behind arithmetic; with many waves it hides nearly all, hence the division by w. Waves are
not rounded up: persistent kernels even them out, and rounding does not fit the measurements.
"""

from __future__ import annotations

import numpy as np

from .constants import Gemm, GemmFp8, Power
from .rates import Estimate, Num, Rates

# Quantum of a tile. Libraries pick among larger ones only where they cost no more.
TILE = 64
# CUTLASS' FP8 kernels use 64 x 64 up to 64 rows, 64 x 128 up to 128 rows, 128 x 128 beyond.
WIDE_TILE = 128
MIN_SPLIT = 64  # elements of k that a split keeps at least
MAX_SPLIT = 64
PARTIAL_BYTES = 4  # partial sums are FP32


def settled(seconds: Num, power: Power) -> Num:
    """Seconds of matrix work with the clock sag of long kernels."""
    return seconds * (1 + power.sag * seconds / (seconds + power.settle))


def gemm(
    m: Num, n: Num, k: Num, rates: Rates, c: Gemm, power: Power,
    *, batch: Num = 1.0, moved: Num | None = None,
) -> Estimate:  # fmt: skip
    """Seconds of `batch` products [m,k] @ [k,n].

    `moved`: bytes to and from memory, if they are not those of two operands and a result of two
    bytes an element.
    """
    if moved is None:
        moved = 2 * batch * ((m + n) * k + m * n)
    return _product(m, n, k, rates, c, power, batch, moved, (TILE, TILE), c.launch, True)


def gemm_fp8(
    m: Num, n: Num, k: Num, rates: Rates, c: GemmFp8, power: Power, serial: Num,
    *, batch: Num = 1.0, moved: Num | None = None, block: bool = False,
) -> Estimate:  # fmt: skip
    """Seconds of an FP8 product of operands that are quantised already; result in BF16.

    `block`: one scale for every 128 elements of k. Those kernels do not split k, and their matrix
    units wait for partial sums to be scaled in FP32, which keeps them below the power limit.
    """
    tile: tuple[Num, Num] = (TILE, TILE)
    if not block:
        tile = (np.where(m <= WIDE_TILE, TILE, WIDE_TILE), np.where(m <= TILE, TILE, WIDE_TILE))
    if moved is None:
        moved = batch * ((m + n) * k + 2 * m * n)
    main = Gemm(c.launch, c.memory, c.matrix, c.prologue, serial)
    if block:
        power = power._replace(sag=0.0)
    return _product(m, n, k, rates, main, power, batch, moved, tile, c.split, not block)


def quantise(m: Num, k: Num, rates: Rates, c: GemmFp8, *, block: bool = False) -> Num:
    """Seconds to turn a BF16 activation [m,k] into FP8; the launch is the product's.

    Bound by instructions. A scale for the whole tensor needs its largest element first: the tensor
    crosses the memory bus once more, 2 bytes read and 1 written. With a scale a block, it is read
    where the kernel before left it, in L2, and a row is the work of one SM.
    """
    if block:
        return np.maximum(m / rates.sms, 1) * k / (c.quantise * rates.clock)
    return m * k / (c.quantise * rates.issue) + 3 * m * k / (rates.memory * c.memory)


def _product(
    m: Num, n: Num, k: Num, rates: Rates, c: Gemm, power: Power, batch: Num, moved: Num,
    tile: tuple[Num, Num], split_cost: Num, splits: bool,
) -> Estimate:  # fmt: skip
    bandwidth = rates.memory * c.memory
    memory = moved / bandwidth
    tiles = batch * np.ceil(m / tile[0]) * np.ceil(n / tile[1])
    # Seconds that one SM takes for one element of k of one tile.
    step = 2 * tile[0] * tile[1] * rates.sms / (rates.matrix * c.matrix)

    def total(s: Num, extra: Num) -> tuple[Num, Num]:
        waves = np.maximum(tiles * s / rates.sms, 1)
        compute = settled(waves * step * (k / s + c.prologue) + extra, power)
        hi, lo = np.maximum(compute, memory), np.minimum(compute, memory)
        return hi + c.serial * lo * lo / (hi * (0.5 + 0.5 * waves)), compute

    seconds, compute = total(1.0, 0.0)
    if splits:
        partial = PARTIAL_BYTES * batch * m * n / bandwidth
        # Where the derivative by s vanishes, unless SMs or k run out before.
        best = np.sqrt(step * k / partial)
        s = np.clip(np.minimum(best, np.minimum(rates.sms / tiles, k / MIN_SPLIT)), 1, MAX_SPLIT)
        if np.any(s > 1):  # a split into one part only costs
            other, compute_split = total(s, s * partial + split_cost)
            compute = np.where(other < seconds, compute_split, compute)
            seconds = np.minimum(other, seconds)
    return Estimate(c.launch + seconds, compute, memory, c.launch)
