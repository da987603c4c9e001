"""Softmax in all its forms, forward and backward: a row is read once and stays on chip."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import OTHER, ROW, Work
from .common import Out

FORWARD_FLOPS = 5  # max, subtract, exponential, sum, divide; log: max, subtract, exp, sum, subtract
BACKWARD_FLOPS = 4  # (g - sum(g·y))·y; log: g - exp(y)·sum(g)


def _kind(ref: TensorRef, dim: int) -> str:
    """A kernel over rows, unless it runs along another axis than memory does."""
    last = len(ref.shape) - 1
    return ROW if last <= 0 or dim % len(ref.shape) == last else OTHER


@cost("aten::_softmax", "aten::_log_softmax")
def softmax(self: TensorRef, dim: int, half_to_float: bool, *, out: Out) -> Work:
    """Max, subtract, exponential, sum, divide: 5 an element."""
    return Work(vector=FORWARD_FLOPS * self.numel, kind=_kind(self, dim))


@cost("aten::_safe_softmax", "aten::softmax", "aten::log_softmax")
def safe_softmax(self: TensorRef, dim: int, dtype: Any = None, *, out: Out) -> Work:
    """5 an element."""
    return Work(vector=FORWARD_FLOPS * self.numel, kind=_kind(self, dim))


@cost("aten::_masked_softmax")
def masked_softmax(
    self: TensorRef, mask: TensorRef, dim: int | None = None, mask_type: int | None = None, *,
    out: Out,
) -> Work:  # fmt: skip
    """5 an element; the mask selects."""
    return Work(vector=FORWARD_FLOPS * self.numel, kind=ROW)


@cost("aten::_softmax_backward_data", "aten::_log_softmax_backward_data")
def softmax_backward(
    grad_output: TensorRef, output: TensorRef, dim: int, input_dtype: Any, *, out: Out
) -> Work:
    """Multiply, sum, subtract, multiply: 4 an element."""
    return Work(vector=BACKWARD_FLOPS * grad_output.numel, kind=_kind(grad_output, dim))


@cost("aten::_masked_softmax_backward")
def masked_softmax_backward(
    grad_output: TensorRef, output: TensorRef, mask: TensorRef, dim: int | None = None, *, out: Out
) -> Work:
    """4 an element."""
    return Work(vector=BACKWARD_FLOPS * grad_output.numel, kind=ROW)
