"""Fourier transforms, counted as FFT benchmarks do.

A complex transform of N points is 5·N·log2(N) vector FLOPs, half if one side is real. They run on
vector units: no matrix FLOPs.
"""

from __future__ import annotations

import math
from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import OTHER, Work
from .common import Out, product


def _transform(full: TensorRef, dim: Any, share: float) -> int:
    """FLOPs over all transforms of `full`, the side that has every point."""
    points = product(full.shape[d] for d in dim)
    if points < 2:
        return 0
    return round(share * 5 * full.numel * math.log2(points))


def _scaling(y: TensorRef, normalization: int) -> int:
    """A multiply for each real number that comes out, unless the transform is unnormalised."""
    per_element = 2 if y.dtype.startswith("complex") else 1
    return per_element * y.numel if normalization else 0


@cost("aten::_fft_c2c")
def fft_c2c(self: TensorRef, dim: Any, normalization: int, forward: bool, *, out: Out) -> Work:
    """5·N·log2 N for N points over `dim`, and a scale."""
    vector = _transform(self, dim, 1.0) + _scaling(out[0], normalization)
    return Work(vector=vector, kind=OTHER)


@cost("aten::_fft_r2c")
def fft_r2c(self: TensorRef, dim: Any, normalization: int, onesided: bool, *, out: Out) -> Work:
    """2.5·N·log2 N for N real points over `dim`, and a scale."""
    vector = _transform(self, dim, 0.5) + _scaling(out[0], normalization)
    return Work(vector=vector, kind=OTHER)


@cost("aten::_fft_c2r")
def fft_c2r(self: TensorRef, dim: Any, normalization: int, last_dim_size: int, *, out: Out) -> Work:
    """2.5·N·log2 N for N real points that come out, and a scale."""
    vector = _transform(out[0], dim, 0.5) + _scaling(out[0], normalization)
    return Work(vector=vector, kind=OTHER)
