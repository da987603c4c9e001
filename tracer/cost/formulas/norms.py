"""Layer, RMS, group, batch and weight norms, forward and backward. Vector FLOPs an element.

Forward: mean 1, variance 3, normalise 2, and 1 each for a weight and a bias. Backward of the input:
x̂ again (2), g·w (1), its sum (1), its sum with x̂ (2), and the combination (4); the weight gradient
2, the bias gradient 1.

Rows of layer, RMS and group norms stay on chip between the statistics and their use. The statistics
of a batch norm need the whole tensor first: in training it is read twice.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import POINTWISE, REDUCTION, ROW, Work
from .common import Out, given, wanted

_STATISTICS, _NORMALISE = 4, 2
_INPUT_GRADIENT = 10


def _affine(weight: Any, bias: Any) -> int:
    return given(weight) + given(bias)


def backward_steps(output_mask: Any, has_weight: bool) -> int:
    """Vector FLOPs an element for the gradients that are asked for."""
    dx, dw, db = (*wanted(output_mask), 0)[:3]
    # Without a weight there is no g·w; the weight gradient alone still needs x̂ (2).
    steps = dx * (_INPUT_GRADIENT - (not has_weight))
    return steps + dw * (2 if dx else 4) + db


@cost("aten::_fused_rms_norm", "aten::rms_norm")
def rms_norm(
    input: TensorRef, normalized_shape: Any, weight: TensorRef | None = None, eps: Any = None, *,
    out: Out,
) -> Work:  # fmt: skip
    """Square, sum, scale, and 1 for the weight."""
    return Work(vector=(3 + given(weight)) * input.numel, kind=ROW)


@cost("aten::_fused_rms_norm_backward")
def rms_norm_backward(
    grad_out: TensorRef, input: TensorRef, normalized_shape: Any, rstd: TensorRef,
    weight: TensorRef | None, output_mask: Any, *, out: Out,
) -> Work:  # fmt: skip
    """Input gradient 6 (x̂, g·w, product, sum, combination), weight gradient 2."""
    dx, dw, *_ = wanted(output_mask)
    steps = dx * (5 + given(weight)) + dw * (2 if dx else 3)
    return Work(vector=steps * grad_out.numel, kind=ROW)


@cost("aten::native_layer_norm")
def layer_norm(
    input: TensorRef, normalized_shape: Any, weight: Any, bias: Any, eps: float, *, out: Out
) -> Work:
    """6 an element, and 1 each for weight and bias."""
    return Work(vector=(6 + _affine(weight, bias)) * input.numel, kind=ROW)


@cost("aten::native_group_norm")
def group_norm(
    input: TensorRef, weight: Any, bias: Any, N: Any, C: Any, HxW: Any, group: int,
    eps: float, *, out: Out,
) -> Work:  # fmt: skip
    """6 an element, and 1 each for weight and bias."""
    return Work(vector=(6 + _affine(weight, bias)) * input.numel, kind=ROW)


@cost("aten::native_layer_norm_backward")
def layer_norm_backward(
    grad_out: TensorRef, input: TensorRef, normalized_shape: Any, mean: TensorRef, rstd: TensorRef,
    weight: Any, bias: Any, output_mask: Any, *, out: Out,
) -> Work:  # fmt: skip
    """Input gradient 10, weight gradient 2, bias gradient 1."""
    steps = backward_steps(output_mask, weight is not None)
    return Work(vector=steps * grad_out.numel, kind=ROW)


@cost("aten::native_group_norm_backward")
def group_norm_backward(
    grad_out: TensorRef, input: TensorRef, mean: TensorRef, rstd: TensorRef, weight: Any,
    N: Any, C: Any, HxW: Any, group: int, output_mask: Any, *, out: Out,
) -> Work:  # fmt: skip
    """Input gradient 10, weight gradient 2, bias gradient 1."""
    steps = backward_steps(output_mask, weight is not None)
    return Work(vector=steps * grad_out.numel, kind=ROW)


def _batch_norm(x: TensorRef, weight: Any, bias: Any, training: bool) -> Work:
    steps = _NORMALISE + _affine(weight, bias)
    if not training:
        return Work(vector=steps * x.numel, kind=POINTWISE)
    return Work(
        vector=(_STATISTICS + steps) * x.numel, kind=REDUCTION, read={"input": 2 * x.nbytes}
    )


@cost("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm",
      "aten::_native_batch_norm_legit",
      "aten::_native_batch_norm_legit_functional")  # fmt: skip
def batch_norm(
    input: TensorRef, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
    momentum: float, eps: float, /, *, out: Out,
) -> Work:  # fmt: skip
    """Training: statistics 4, normalise 2, weight and bias 1 each; inference: without statistics.

    Bytes: in training the input is read twice.
    """
    return _batch_norm(input, weight, bias, bool(training))


@cost("aten::_native_batch_norm_legit.no_stats", "aten::_native_batch_norm_legit.no_stats_out")
def batch_norm_no_stats(
    input: TensorRef, weight: Any, bias: Any, training: bool, momentum: float, eps: float, *,
    out: Out,
) -> Work:  # fmt: skip
    """Training: 6 an element, and 1 each for weight and bias (instance norm comes here).

    Bytes: in training the input is read twice.
    """
    return _batch_norm(input, weight, bias, bool(training))


@cost("aten::_native_batch_norm_legit_no_training", "aten::_batch_norm_no_update")
def batch_norm_inference(
    input: TensorRef, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float,
    eps: float, *, out: Out,
) -> Work:  # fmt: skip
    """Normalise 2, and 1 each for weight and bias."""
    return _batch_norm(input, weight, bias, training=False)


@cost("aten::_batch_norm_with_update", "aten::_batch_norm_with_update_functional")
def batch_norm_training(
    input: TensorRef, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float,
    eps: float, *, out: Out,
) -> Work:  # fmt: skip
    """Statistics 4, normalise 2, and 1 each for weight and bias.

    Bytes: the input is read twice.
    """
    return _batch_norm(input, weight, bias, training=True)
