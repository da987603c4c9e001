"""Distances between all pairs of rows."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import GEMM, OTHER, Work
from .common import Out


@cost("aten::_cdist_forward")
def cdist(x1: TensorRef, x2: TensorRef, p: float, compute_mode: Any, *, out: Out) -> Work:
    """Subtract, power, add: 3 for each component of every pair."""
    return Work(vector=3 * out[0].numel * x1.shape[-1], kind=OTHER)


@cost("aten::_euclidean_dist")
def euclidean_dist(x1: TensorRef, x2: TensorRef, *, out: Out) -> Work:
    """Products and squared norms as one product whose K is two longer; clamp and square root."""
    k = x1.shape[-1]
    norms = 2 * (x1.numel + x2.numel) + x1.numel
    return Work(2 * out[0].numel * (k + 2), vector=norms + 2 * out[0].numel, kind=GEMM)


@cost("aten::_cdist_backward")
def cdist_backward(
    grad: TensorRef, x1: TensorRef, x2: TensorRef, p: float, cdist: TensorRef, *, out: Out
) -> Work:
    """Subtract, power, two factors, add: 5 for each component of every pair."""
    return Work(vector=5 * cdist.numel * x1.shape[-1], kind=OTHER)


@cost("aten::_pdist_forward")
def pdist(self: TensorRef, p: float = 2.0, *, out: Out) -> Work:
    """Subtract, power, add: 3 for each component of every pair."""
    return Work(vector=3 * out[0].numel * self.shape[-1], kind=OTHER)


@cost("aten::_pdist_backward")
def pdist_backward(
    grad: TensorRef, self: TensorRef, p: float, pdist: TensorRef, *, out: Out
) -> Work:
    """5 for each component of every pair, and both rows of it gain."""
    return Work(vector=6 * pdist.numel * self.shape[-1], kind=OTHER)
