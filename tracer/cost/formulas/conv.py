"""Convolutions of any number of dimensions, transposed and grouped ones included."""

from __future__ import annotations

import math
from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import CONV, Work

Out = tuple[TensorRef, ...]


def conv_flops(x: TensorRef, weight: TensorRef, y: TensorRef, transposed: bool) -> int:
    """2 FLOPs for every weight that meets a position.

    Forward: each output position sees weight[C_out, C_in/groups, *kernel]; transposed: each *input*
    position is spread through weight[C_in, C_out/groups, *kernel].
    """
    positions = (x if transposed else y).shape
    return 2 * positions[0] * math.prod(positions[2:]) * weight.numel


@cost("aten::convolution", "aten::_convolution", "aten::convolution_overrideable")
def convolution(
    input: TensorRef, weight: TensorRef, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool = False, *rest: Any, out: Out, **_: Any,
) -> Work:  # fmt: skip
    """Forward; the bias is one add an output element."""
    vector = out[0].numel if bias is not None else 0
    return Work(conv_flops(input, weight, out[0], bool(transposed)), vector=vector, kind=CONV)


@cost("aten::convolution_backward", "aten::convolution_backward_overrideable")
def convolution_backward(
    grad_output: TensorRef, input: TensorRef, weight: TensorRef, bias_sizes: Any, stride: Any,
    padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: Any,
    output_mask: Any, *, out: Out,
) -> Work:  # fmt: skip
    """Input and weight gradient meet the same pairs as the forward, once each."""
    once = conv_flops(input, weight, grad_output, transposed)
    need_input, need_weight, need_bias = (bool(flag) for flag in output_mask)
    return Work(once * (need_input + need_weight), vector=grad_output.numel * need_bias, kind=CONV)
