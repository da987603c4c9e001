"""Batch norm's backward and the pieces of its synchronised form; weight norm; renorm."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import POINTWISE, REDUCTION, ROW, Work
from .common import Out, given, wanted
from .norms import backward_steps


def _batch_norm_backward(x: TensorRef, weight: Any, train: bool, mask: Any, names: Any) -> Work:
    if not train:  # the statistics are constants: dx = g·w·rstd
        dx, dw, db = (*wanted(mask), 0)[:3]
        return Work(vector=(2 * dx + 4 * dw + db) * x.numel, kind=REDUCTION)
    # Both sums need the whole gradient before the first dx can be written.
    twice = dict.fromkeys(names, 2 * x.nbytes)
    return Work(
        vector=backward_steps(mask, weight is not None) * x.numel, kind=REDUCTION, read=twice
    )


@cost("aten::native_batch_norm_backward")
def native_batch_norm_backward(
    grad_out: TensorRef, input: TensorRef, weight: Any, running_mean: Any, running_var: Any,
    save_mean: Any, save_invstd: Any, train: bool, eps: float, output_mask: Any, *, out: Out,
) -> Work:  # fmt: skip
    """Input gradient 10 (2 in inference), weight gradient 2, bias gradient 1.

    Bytes: in training gradient and input are read twice.
    """
    names = ("grad_out", "input")
    return _batch_norm_backward(input, weight, train, output_mask, names)


@cost("aten::batch_norm_backward")
def batch_norm_backward(
    grad_out: TensorRef, input: TensorRef, weight: Any, running_mean: Any, running_var: Any,
    save_mean: Any, save_var: Any, update: bool, eps: float, output_mask: Any, reserve: Any, *,
    out: Out,
) -> Work:  # fmt: skip
    """Input gradient 10 (2 in inference), weight gradient 2, bias gradient 1.

    Bytes: in training gradient and input are read twice.
    """
    names = ("grad_out", "input")
    return _batch_norm_backward(input, weight, update, output_mask, names)


@cost("aten::cudnn_batch_norm_backward", "aten::miopen_batch_norm_backward")
def cudnn_batch_norm_backward(
    input: TensorRef, grad_output: TensorRef, weight: Any, running_mean: Any, running_var: Any,
    save_mean: Any, save_var: Any, epsilon: float, *reserve: Any, out: Out,
) -> Work:  # fmt: skip
    """Input gradient 10, weight gradient 2, bias gradient 1.

    Bytes: gradient and input are read twice.
    """
    names = ("input", "grad_output")
    return _batch_norm_backward(input, weight, True, (True, True, True), names)


@cost("aten::batch_norm_stats")
def batch_norm_stats(input: TensorRef, eps: float, *, out: Out) -> Work:
    """Mean 1, variance 3."""
    return Work(vector=4 * input.numel, kind=REDUCTION)


@cost("aten::batch_norm_update_stats")
def batch_norm_update_stats(
    input: TensorRef, running_mean: Any, running_var: Any, momentum: float, *, out: Out
) -> Work:
    """Mean 1, variance 3."""
    return Work(vector=4 * input.numel, kind=REDUCTION)


@cost("aten::batch_norm_elemt")
def batch_norm_elemt(
    input: TensorRef, weight: Any, bias: Any, mean: TensorRef, invstd: TensorRef, eps: float, *,
    out: Out,
) -> Work:  # fmt: skip
    """Normalise 2, and 1 each for weight and bias."""
    return Work(vector=(2 + given(weight) + given(bias)) * input.numel, kind=POINTWISE)


@cost("aten::batch_norm_gather_stats", "aten::batch_norm_gather_stats_with_counts")
def batch_norm_gather_stats(
    input: TensorRef, mean: TensorRef, invstd: TensorRef, running_mean: Any, running_var: Any,
    momentum: float, eps: float, count: Any, /, *, out: Out,
) -> Work:  # fmt: skip
    """Combines the statistics of every rank: 5 a rank and channel.

    Bytes: the input lends its type only.
    """
    return Work(vector=5 * mean.numel, kind=REDUCTION, read={"input": 0})


@cost("aten::batch_norm_backward_reduce")
def batch_norm_backward_reduce(
    grad_out: TensorRef, input: TensorRef, mean: TensorRef, invstd: TensorRef, weight: Any,
    input_g: bool, weight_g: bool, bias_g: bool, *, out: Out,
) -> Work:  # fmt: skip
    """The sum of the gradient (1) and of its product with x - mean (3)."""
    return Work(vector=4 * input.numel, kind=REDUCTION)


@cost("aten::batch_norm_backward_elemt")
def batch_norm_backward_elemt(
    grad_out: TensorRef, input: TensorRef, mean: TensorRef, invstd: TensorRef, weight: Any,
    sum_dy: TensorRef, sum_dy_xmu: TensorRef, count: TensorRef, *, out: Out,
) -> Work:  # fmt: skip
    """Centre, its factor, two subtractions, and the scale: 5 an element."""
    return Work(vector=5 * input.numel, kind=POINTWISE)


@cost("aten::_weight_norm_interface")
def weight_norm(v: TensorRef, g: TensorRef, dim: int = 0, *, out: Out) -> Work:
    """Square, add, scale: 3 an element."""
    return Work(vector=3 * v.numel, kind=ROW)


@cost("aten::_weight_norm_interface_backward")
def weight_norm_backward(
    grad_w: TensorRef, saved_v: TensorRef, saved_g: TensorRef, saved_norms: TensorRef, dim: int, *,
    out: Out,
) -> Work:  # fmt: skip
    """The sum of g·v (2), then two multiplies and a subtraction: 5 an element."""
    return Work(vector=5 * grad_w.numel, kind=ROW)


@cost("aten::renorm", "aten::renorm_")
def renorm(self: TensorRef, p: Any, dim: int, maxnorm: Any, *, out: Out) -> Work:
    """Power, add, scale: 3 an element."""
    return Work(vector=3 * self.numel, kind=ROW)
