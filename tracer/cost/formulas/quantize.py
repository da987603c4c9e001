"""Quantised tensors: scale, shift, round, clamp; all elementwise."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import POINTWISE, REDUCTION, Work
from .common import Out, elements

_QUANTIZE, _DEQUANTIZE = 4, 2  # divide, add, round, clamp; subtract, multiply


@cost("aten::quantize_per_tensor", "aten::quantize_per_channel",
      "aten::quantize_per_tensor_dynamic")  # fmt: skip
def quantize(values: Any, /, *rest: Any, out: Out, **_: Any) -> Work:
    """Divide, add, round, clamp: 4 an element."""
    return Work(vector=_QUANTIZE * elements(out), kind=POINTWISE)


@cost("aten::dequantize")
def dequantize(values: Any, /, *, out: Out) -> Work:
    """Subtract, multiply: 2 an element."""
    return Work(vector=_DEQUANTIZE * elements(out), kind=POINTWISE)


@cost("aten::fake_quantize_per_tensor_affine_cachemask",
      "aten::fake_quantize_per_channel_affine_cachemask",
      "aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
      "aten::_fake_quantize_learnable_per_tensor_affine",
      "aten::_fake_quantize_learnable_per_channel_affine")  # fmt: skip
def fake_quantize(self: TensorRef, *rest: Any, out: Out, **_: Any) -> Work:
    """Quantise and back: 6 an element."""
    return Work(vector=(_QUANTIZE + _DEQUANTIZE) * self.numel, kind=POINTWISE)


@cost("aten::_fake_quantize_learnable_per_tensor_affine_backward",
      "aten::_fake_quantize_learnable_per_channel_affine_backward")  # fmt: skip
def fake_quantize_backward(grad: TensorRef, x: TensorRef, /, *rest: Any, out: Out) -> Work:
    """Quantise again (4), the gradients of input (1), scale (3) and zero point (2)."""
    return Work(vector=10 * x.numel, kind=REDUCTION)


@cost("aten::_fused_moving_avg_obs_fq_helper",
      "aten::_fused_moving_avg_obs_fq_helper_functional")  # fmt: skip
def observe_and_fake_quantize(self: TensorRef, *rest: Any, out: Out) -> Work:
    """Minimum and maximum (2), then quantise and back (6)."""
    return Work(vector=8 * self.numel, kind=REDUCTION)


@cost("aten::quantized_batch_norm")
def quantized_batch_norm(input: TensorRef, *rest: Any, out: Out) -> Work:
    """Back to real (2), normalise (4), quantise (4)."""
    return Work(vector=10 * input.numel, kind=POINTWISE)
