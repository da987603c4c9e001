"""Convolutions of any number of dimensions, transposed, grouped, depthwise and dilated ones.

2 FLOPs for every weight that meets a position (8 for complex). As published counts do, taps that
fall on padding are counted. The backends' own names are in `conv_backends`.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import CONV, Work
from .common import Out, given, multiply_add, product, wanted


def conv_flops(x: TensorRef, weight: TensorRef, y: TensorRef, transposed: bool) -> int:
    """2 FLOPs for every weight that meets a position.

    Forward: each output position sees weight[C_out, C_in/groups, *kernel]; transposed: each *input*
    position is spread through weight[C_in, C_out/groups, *kernel].
    """
    positions = (x if transposed else y).shape
    return multiply_add(x) * positions[0] * product(positions[2:]) * weight.numel


def conv_work(
    x: TensorRef, weight: TensorRef, y: TensorRef, bias: Any, transposed: bool = False
) -> Work:
    """A forward; the bias is one add an output element."""
    flops = conv_flops(x, weight, y, transposed)
    return Work(flops, vector=given(bias) * y.numel, kind=CONV)


def conv_backward_work(
    grad: TensorRef, x: TensorRef, weight: TensorRef, transposed: bool, output_mask: Any,
    name_x: str,
) -> Work:  # fmt: skip
    """Input and weight gradient meet the same pairs as the forward, once each."""
    dx, dw, *db = wanted(output_mask)
    read = {name: 0 for name, used in (("weight", dx), (name_x, dw)) if not used}
    flops = conv_flops(x, weight, grad, transposed) * (dx + dw)
    return Work(flops, vector=grad.numel * sum(db), kind=CONV, precision=grad.dtype, read=read)


@cost("aten::convolution", "aten::convolution_overrideable")
def convolution(
    input: TensorRef, weight: TensorRef, bias: TensorRef | None, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int, *, out: Out,
) -> Work:  # fmt: skip
    """2·(output positions)·C_out·C_in/groups·kernel; transposed: 2·(input positions)·weights."""
    return conv_work(input, weight, out[0], bias, transposed)


@cost("aten::_convolution")
def convolution_with_flags(
    input: TensorRef, weight: TensorRef, bias: TensorRef | None, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int, *flags: Any, out: Out,
) -> Work:  # fmt: skip
    """As `convolution`; the flags choose a backend."""
    return conv_work(input, weight, out[0], bias, transposed)


@cost("aten::convolution_backward")
def convolution_backward(
    grad_output: TensorRef, input: TensorRef, weight: TensorRef, bias_sizes: Any, stride: Any,
    padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: Any,
    output_mask: Any, *, out: Out,
) -> Work:  # fmt: skip
    """The forward's FLOPs for each of input and weight gradient; the bias gradient is a sum.

    Bytes: the input gradient does not read the input, nor the weight gradient the weight.
    """
    return conv_backward_work(grad_output, input, weight, transposed, output_mask, "input")


@cost("aten::convolution_backward_overrideable")
def convolution_backward_overrideable(
    grad_output: TensorRef, input: TensorRef, weight: TensorRef, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: Any, output_mask: Any, *,
    out: Out,
) -> Work:  # fmt: skip
    """As `convolution_backward`."""
    return conv_backward_work(grad_output, input, weight, transposed, output_mask, "input")


@cost("aten::conv_tbc")
def conv_tbc(
    self: TensorRef, weight: TensorRef, bias: TensorRef, pad: int = 0, *, out: Out
) -> Work:
    """[T, B, C_in] through weight [kernel, C_in, C_out]: 2·T_out·B·weights."""
    steps, batch, _ = out[0].shape
    flops = multiply_add(self) * steps * batch * weight.numel
    return Work(flops, vector=out[0].numel, kind=CONV)
