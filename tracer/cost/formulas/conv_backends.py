"""Convolutions under the names of the libraries that run them, each with its own argument order."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import Work
from .common import Out
from .conv import conv_backward_work, conv_work


@cost("aten::cudnn_convolution")
def cudnn_convolution(
    self: TensorRef, weight: TensorRef, padding: Any, stride: Any, dilation: Any, groups: int,
    *flags: Any, out: Out,
) -> Work:  # fmt: skip
    """As `convolution`; the bias is a separate add."""
    return conv_work(self, weight, out[0], None)


@cost("aten::cudnn_convolution_transpose")
def cudnn_convolution_transpose(
    self: TensorRef, weight: TensorRef, padding: Any, output_padding: Any, stride: Any,
    dilation: Any, groups: int, *flags: Any, out: Out,
) -> Work:  # fmt: skip
    """As transposed `convolution`; the bias is a separate add."""
    return conv_work(self, weight, out[0], None, transposed=True)


@cost("aten::_mps_convolution", "aten::mkldnn_convolution", "aten::miopen_convolution",
      "aten::miopen_depthwise_convolution")  # fmt: skip
def padding_first(
    self: TensorRef, weight: TensorRef, bias: TensorRef | None, padding: Any, stride: Any,
    dilation: Any, groups: int, *flags: Any, out: Out,
) -> Work:  # fmt: skip
    """As `convolution`."""
    return conv_work(self, weight, out[0], bias)


@cost("aten::miopen_convolution_transpose")
def miopen_convolution_transpose(
    self: TensorRef, weight: TensorRef, bias: TensorRef | None, padding: Any, output_padding: Any,
    stride: Any, dilation: Any, groups: int, *flags: Any, out: Out,
) -> Work:  # fmt: skip
    """As transposed `convolution`."""
    return conv_work(self, weight, out[0], bias, transposed=True)


@cost("aten::_mps_convolution_transpose")
def mps_convolution_transpose(
    self: TensorRef, weight: TensorRef, padding: Any, output_padding: Any, stride: Any,
    dilation: Any, groups: int, *, out: Out,
) -> Work:  # fmt: skip
    """As transposed `convolution`."""
    return conv_work(self, weight, out[0], None, transposed=True)


@cost("aten::cudnn_convolution_relu", "aten::miopen_convolution_relu")
def with_relu(
    self: TensorRef, weight: TensorRef, bias: TensorRef | None, stride: Any, padding: Any,
    dilation: Any, groups: int, *, out: Out,
) -> Work:  # fmt: skip
    """As `convolution`, with a ReLU (1) in the epilogue."""
    work = conv_work(self, weight, out[0], bias)
    return work._replace(vector=work.vector + out[0].numel)


@cost("aten::cudnn_convolution_add_relu", "aten::miopen_convolution_add_relu")
def with_add_relu(
    self: TensorRef, weight: TensorRef, z: TensorRef, alpha: Any, bias: TensorRef | None,
    stride: Any, padding: Any, dilation: Any, groups: int, *, out: Out,
) -> Work:  # fmt: skip
    """As `convolution`, then alpha·z added (1, or 2 if alpha is not 1) and a ReLU (1)."""
    work = conv_work(self, weight, out[0], bias)
    steps = 2 + (alpha not in (None, 1))
    return work._replace(vector=work.vector + steps * out[0].numel)


@cost("aten::_conv_depthwise2d", "aten::conv_depthwise3d", "aten::_slow_conv2d_forward",
      "aten::slow_conv3d_forward", "aten::slow_conv_dilated2d",
      "aten::slow_conv_dilated3d")  # fmt: skip
def kernel_size_third(
    self: TensorRef, weight: TensorRef, kernel_size: Any, bias: TensorRef | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, *, out: Out,
) -> Work:  # fmt: skip
    """As `convolution`."""
    return conv_work(self, weight, out[0], bias)


@cost("aten::slow_conv_transpose2d", "aten::slow_conv_transpose3d")
def slow_conv_transpose(
    self: TensorRef, weight: TensorRef, kernel_size: Any, bias: TensorRef | None = None,
    stride: Any = 1, padding: Any = 0, output_padding: Any = 0, dilation: Any = 1, *, out: Out,
) -> Work:  # fmt: skip
    """As transposed `convolution`."""
    return conv_work(self, weight, out[0], bias, transposed=True)


@cost("aten::_nnpack_spatial_convolution")
def nnpack(
    input: TensorRef, weight: TensorRef, bias: TensorRef | None, padding: Any, stride: Any = 1,
    *, out: Out,
) -> Work:  # fmt: skip
    """As `convolution`."""
    return conv_work(input, weight, out[0], bias)


@cost("aten::_slow_conv2d_backward")
def slow_conv2d_backward(
    grad_output: TensorRef, self: TensorRef, weight: TensorRef, kernel_size: Any, stride: Any,
    padding: Any, output_mask: Any = (True, True, True), *, out: Out,
) -> Work:  # fmt: skip
    """As `convolution_backward`."""
    return conv_backward_work(grad_output, self, weight, False, output_mask, "self")


@cost("aten::mps_convolution_backward")
def mps_backward(
    self: TensorRef, grad_output: TensorRef, weight: TensorRef, padding: Any, stride: Any,
    dilation: Any, groups: int, output_mask: Any, *, out: Out,
) -> Work:  # fmt: skip
    """As `convolution_backward`."""
    return conv_backward_work(grad_output, self, weight, False, output_mask, "self")


@cost("aten::mps_convolution_transpose_backward")
def mps_transpose_backward(
    self: TensorRef, grad_output: TensorRef, weight: TensorRef, padding: Any, output_padding: Any,
    stride: Any, dilation: Any, groups: int, output_mask: Any, *, out: Out,
) -> Work:  # fmt: skip
    """As `convolution_backward` of a transposed one."""
    return conv_backward_work(grad_output, self, weight, True, output_mask, "self")
