"""Accumulators of weight statistics: bytes of a tensor go in strip by strip, a row comes out.

A 16-bit float has 65,536 values and an E4M3 one 256, so the numbers of a tensor are a histogram,
and every statistic that does not depend on the place of an element follows from it exactly, however
large the tensor. The histogram is taken in one pass. Only the loss under block scales looks at
places, and compares bit patterns, which are ordered as the magnitudes are.

E4M3's smallest magnitude is 2^-9, and half of it rounds (to even) to zero: a weight w with scale s
is lost when |w| <= s·2^-10. For w of at most 24 bits this is exact: w/s, rounded to FP32 first as
`fp8.quantize_blocks` does, never falls on the other side.

`work` runs in threads, on NumPy arrays (whose loops run without the GIL and on one core each) and
`torch.bincount`, which unlike NumPy's does not want 64-bit input. Shapes: a strip is [r, K].
"""

import math
import threading
from typing import Any

import numpy as np
import torch

from . import fp8
from .shards import Entry
from .strips import Span, matrix_shape
from .weight_rows import TensorStats

_HALF_OF_SMALLEST = np.float32(2.0**-10)
_local = threading.local()


def scratch(name: str, size: int, dtype: Any) -> np.ndarray:
    """An array of this thread, used again: fresh memory costs more than the arithmetic on it."""
    arrays = _local.__dict__.setdefault("arrays", {})
    found = arrays.get((name, dtype))
    if found is None or found.size < size:
        found = arrays[name, dtype] = np.empty(size, dtype)
    return found[:size]


def lost_below(abs_max: np.ndarray) -> np.ndarray:
    """The largest magnitude that a scale of abs_max/448 loses, FP32."""
    floor = np.maximum(np.asarray(abs_max, np.float32), np.float32(fp8.SMALLEST_AMAX))
    return floor / np.float32(fp8.E4M3_MAX) * _HALF_OF_SMALLEST


def block_max(top_K: np.ndarray) -> np.ndarray:
    """Maxima of columns [K] to maxima of blocks [KB]."""
    return np.maximum.reduceat(top_K, np.arange(0, len(top_K), fp8.TILE))


def by_column(per_block: np.ndarray, columns: int) -> np.ndarray:
    """[KB] to [K]."""
    return np.repeat(per_block, fp8.TILE)[:columns]


def _patterns(code: str) -> np.ndarray:
    """FP32 values of all bit patterns of a 16-bit float."""
    if code == "BF16":
        return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


VALUES = {code: _patterns(code) for code in ("BF16", "F16")}


class Accumulator:
    """What all kinds share. `passes` is how often the tensor has to be read."""

    passes = 1

    def __init__(self, entry: Entry, sigma: float):
        self.entry, self.sigma = entry, sigma
        self.columns = matrix_shape(entry.shape)[2]
        self.is_matrix = len(entry.shape) > 1

    def blocks(self, strip: np.ndarray) -> list[np.ndarray]:
        """A strip [r, K] in rows of blocks."""
        return [strip[r : r + fp8.TILE] for r in range(0, len(strip), fp8.TILE)]

    def _row(
        self, count: int, zeros: int, moments: tuple[float, float, float, float] | None,
        outliers: int, lost: tuple[int, int],
    ) -> TensorStats:  # fmt: skip
        """`moments`: mean, variance, fourth central moment, abs_max; `lost`: per tensor, block."""
        e, nonfinite = self.entry, self.entry.numel - count
        mean = std = abs_max = kurtosis = None
        if moments is not None:
            mean, variance, fourth, abs_max = moments
            std = math.sqrt(variance)
            kurtosis = fourth / variance**2 if variance**2 > 0 else None
        share = outliers / count if self.is_matrix and count else None
        shares: tuple[float | None, float | None] = (None, None)
        if share is not None and not nonfinite:
            shares = (lost[0] / count, lost[1] / count)
        return TensorStats(
            e.name, e.shard, e.dtype, e.shape, count, nonfinite, zeros, mean, std, abs_max,
            self.sigma, share, kurtosis, *shares,
        )  # fmt: skip


class Half(Accumulator):
    """BF16 and FP16, by the histogram of bit patterns."""

    def __init__(self, entry: Entry, sigma: float):
        super().__init__(entry, sigma)
        self.values = VALUES[entry.dtype]
        self.finite = int(np.isfinite(self.values[: 1 << 15]).sum())  # magnitudes below infinity
        self.histogram = np.zeros(1 << 16, np.int64)
        self.below = 0  # elements that block scales lose, zeros included

    def work(self, data: np.ndarray, span: Span, turn: int) -> tuple[np.ndarray, int]:
        """Histogram of a strip, and how many of it are lost or zero."""
        bits = data.view(np.uint16)
        wide = scratch("wide", bits.size, np.int32)
        np.copyto(wide, bits)
        histogram = torch.bincount(torch.from_numpy(wide), minlength=1 << 16).numpy()
        below = 0
        if self.is_matrix:
            magnitude = scratch("magnitude", bits.size, np.uint16)
            np.bitwise_and(bits, 0x7FFF, out=magnitude)
            for rows in self.blocks(magnitude.reshape(-1, self.columns)):
                top = np.minimum(block_max(rows.max(axis=0)), self.finite - 1)
                limit = lost_below(self.values[top])
                last = self.values[: self.finite].searchsorted(limit, side="right") - 1
                lost = scratch("lost", rows.size, np.bool_).reshape(rows.shape)
                np.less_equal(rows, by_column(last.astype(np.uint16), self.columns), out=lost)
                below += int(np.count_nonzero(lost))
        return histogram, below

    def add(self, part: tuple[np.ndarray, int]) -> None:
        """Take in what `work` returned."""
        self.histogram += part[0]
        self.below += part[1]

    def row(self) -> TensorStats:
        """The statistics."""
        zeros = int(self.histogram[0] + self.histogram[1 << 15])
        bins = np.flatnonzero(self.histogram)
        bins = bins[(bins & 0x7FFF) < self.finite]
        value, n = self.values[bins].astype(np.float64), self.histogram[bins].astype(np.float64)
        count = int(self.histogram[bins].sum())
        if not count:
            return self._row(0, 0, None, 0, (0, 0))
        mean = float(n @ value) / count
        apart = value - mean
        variance, fourth = float(n @ apart**2) / count, float(n @ apart**4) / count
        abs_max = np.abs(value).max()
        outliers = n[np.abs(value) > self.sigma * math.sqrt(variance)].sum()
        lost = n[(np.abs(value) <= lost_below(abs_max)) & (value != 0)].sum()
        return self._row(
            count, zeros, (mean, variance, fourth, float(abs_max)),
            int(outliers), (int(lost), self.below - zeros),
        )  # fmt: skip


class Block8(Accumulator):
    """E4M3 with 128×128 scales, by a histogram for every block: 256 bytes for its 16 kB."""

    def __init__(self, entry: Entry, sigma: float, scales: torch.Tensor):
        super().__init__(entry, sigma)
        magnitude = torch.arange(128, dtype=torch.uint8).view(fp8.E4M3).float().numpy()
        self.magnitude = np.where(np.isnan(magnitude), np.float32(0), magnitude)
        powers = self.magnitude.astype(np.float64)[:, None] ** np.arange(1, 5)
        self.odd, self.even = powers[:, ::2], powers[:, 1::2]
        self.scales = scales.numpy().reshape(-1, scales.shape[-1])
        across = fp8.tiles(self.columns)
        kind = np.int16 if across * 256 <= 1 << 15 else np.int32
        self.first_bin = by_column(np.arange(across, dtype=kind) * kind(256), self.columns)
        # Per block: elements by magnitude; sums of the 1st, 3rd, 2nd and 4th power of values.
        self.by_magnitude = np.zeros((*self.scales.shape, 128), np.int16)
        self.sums = np.zeros((*self.scales.shape, 4))

    def work(self, data: np.ndarray, span: Span, turn: int) -> None:
        """Fill in the blocks of a strip; no other strip has them."""
        across, kind = self.scales.shape[1], self.first_bin.dtype
        for block, rows in enumerate(self.blocks(data.reshape(-1, self.columns)), span.block):
            bins = scratch("bins", rows.size, kind).reshape(rows.shape)
            np.add(rows, self.first_bin, out=bins, dtype=kind, casting="unsafe")
            flat = torch.from_numpy(bins.reshape(-1))
            found = torch.bincount(flat, minlength=across * 256).numpy().reshape(across, 256)
            plus, minus = found[:, :128], found[:, 128:]
            both = plus + minus
            self.by_magnitude[block] = both
            self.sums[block, :, :2] = (plus - minus).astype(np.float64) @ self.odd
            self.sums[block, :, 2:] = both.astype(np.float64) @ self.even

    def add(self, part: None) -> None:
        """`work` has done it."""

    def row(self) -> TensorStats:
        """The statistics."""
        number = self.by_magnitude
        usable = np.isfinite(self.scales)
        nan = int(number[..., 127].sum()) + int(number[~usable, :127].sum(dtype=np.int64))
        count = self.entry.numel - nan
        if not count:
            return self._row(0, 0, None, 0, (0, 0))
        number = np.where(usable[..., None], number, 0)[..., :127]
        scale = np.where(usable, self.scales, 0)
        value = self.magnitude[:127] * np.abs(scale)[..., None]  # FP32, as fp8.dequantize does
        sums = self.sums * scale[..., None].astype(np.float64) ** (1, 3, 2, 4)
        first, third, second, fourth = (sums.sum(axis=(0, 1)) / count).tolist()
        variance = max(second - first**2, 0.0)
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        abs_max = np.where(number > 0, value, 0).max()
        zeros = int(number[value == 0].sum(dtype=np.int64))
        per_block = np.where(number > 0, value, 0).max(axis=-1)
        lost = [
            int(number[(value <= lost_below(top)) & (value != 0)].sum(dtype=np.int64))
            for top in (abs_max, per_block[..., None])
        ]
        outliers = number[value > self.sigma * math.sqrt(variance)].sum(dtype=np.int64)
        return self._row(
            count, zeros, (first, variance, max(central, 0.0), float(abs_max)),
            int(outliers), (lost[0], lost[1]),
        )  # fmt: skip


class Single(Accumulator):
    """FP32, whose values are too many to count: read twice, sums first, then what needs them."""

    passes = 2

    def __init__(self, entry: Entry, sigma: float):
        super().__init__(entry, sigma)
        # Of the first reading: elements, zeros, lost per block, sums of values and squares.
        self.first = np.zeros(5)
        self.abs_max = np.float32(0)
        # Of the second: 2nd and 4th powers about the mean, outliers, lost per tensor.
        self.second = np.zeros(4)

    def work(self, data: np.ndarray, span: Span, turn: int) -> tuple[int, np.ndarray, np.float32]:
        """(turn, sums of a strip, largest magnitude)."""
        values = data.view(np.float32)
        finite = values if np.isfinite(values).all() else values[np.isfinite(values)]
        exact, magnitude = finite.astype(np.float64), np.abs(finite)
        top = magnitude.max(initial=0)
        if turn == 0:
            zeros, lost = finite.size - np.count_nonzero(finite), 0
            if self.is_matrix and finite is values:
                for rows in self.blocks(magnitude.reshape(-1, self.columns)):
                    limit = by_column(lost_below(block_max(rows.max(axis=0))), self.columns)
                    lost += np.count_nonzero((rows <= limit) & (rows != 0))
            return 0, np.array([finite.size, zeros, lost, exact.sum(), exact @ exact]), top
        mean, square = self.first[3:] / max(self.first[0], 1)
        limit = self.sigma * math.sqrt(max(square - mean**2, 0.0))
        squares = (exact - mean) ** 2
        outliers = np.count_nonzero(magnitude > limit)
        lost = np.count_nonzero((magnitude <= lost_below(self.abs_max)) & (magnitude != 0))
        return 1, np.array([squares.sum(), squares @ squares, outliers, lost]), top

    def add(self, part: tuple[int, np.ndarray, np.float32]) -> None:
        """Take in what `work` returned."""
        turn, sums, top = part
        if turn == 0:
            self.first += sums
            self.abs_max = max(self.abs_max, top)
        else:
            self.second += sums

    def row(self) -> TensorStats:
        """The statistics."""
        count, zeros, lost_block = self.first[:3].astype(np.int64).tolist()
        if not count:
            return self._row(0, 0, None, 0, (0, 0))
        variance, fourth = (self.second[:2] / count).tolist()
        outliers, lost = self.second[2:].astype(np.int64).tolist()
        moments = (float(self.first[3] / count), variance, fourth, float(self.abs_max))
        return self._row(count, zeros, moments, outliers, (lost, lost_block))
