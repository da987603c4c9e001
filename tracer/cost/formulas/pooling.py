"""Pooling: an operation for every element of every window, forward and backward.

The input and its gradient are read or written once: neighbouring windows share the cache.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import OTHER, REDUCTION, Work
from .common import Out, bytes_like, product


def window(kernel_size: Any, dims: int) -> int:
    """Elements of a window; a single size stands for every dimension."""
    sizes = tuple(kernel_size) if isinstance(kernel_size, (tuple, list)) else (kernel_size,)
    return product(sizes * dims if len(sizes) == 1 else sizes)


def adaptive_windows(sizes: tuple[int, ...], outputs: tuple[int, ...]) -> int:
    """Elements of all windows together: output i of n covers floor(i·s/n) .. ceil((i+1)·s/n)."""
    total = 1
    for size, count in zip(sizes, outputs, strict=True):
        total *= sum(-(-(i + 1) * size // count) - i * size // count for i in range(count))
    return total


def _adaptive(x: TensorRef, y: TensorRef, dims: int) -> int:
    planes = product(x.shape[:-dims])
    return planes * adaptive_windows(x.shape[-dims:], y.shape[-dims:])


def _register(name: str, dims: int) -> None:
    @cost(f"aten::{name}")
    def pool(self: TensorRef, kernel_size: Any, *rest: Any, out: Out) -> Work:
        """An add or a comparison for every element of every window."""
        return Work(vector=out[0].numel * window(kernel_size, dims), kind=OTHER)


def _register_backward(name: str, dims: int) -> None:
    @cost(f"aten::{name}")
    def pool_backward(
        grad_output: TensorRef, self: TensorRef, kernel_size: Any, *rest: Any, out: Out
    ) -> Work:
        """An add for every element of every window.

        Bytes: the input lends its shape only.
        """
        vector = grad_output.numel * window(kernel_size, dims)
        return Work(vector=vector, kind=OTHER, read={"self": 0})


for _name, _dims in {
    "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3, "max_pool2d_with_indices": 2,
    "max_pool3d_with_indices": 3, "mkldnn_max_pool2d": 2, "mkldnn_max_pool3d": 3,
    "quantized_max_pool1d": 1, "quantized_max_pool2d": 2, "quantized_max_pool3d": 3,
    "fractional_max_pool2d": 2, "fractional_max_pool3d": 3,
}.items():  # fmt: skip
    _register(_name, _dims)
for _name, _dims in {"avg_pool2d_backward": 2, "avg_pool3d_backward": 3}.items():
    _register_backward(_name, _dims)


@cost("aten::max_pool2d_with_indices_backward", "aten::max_pool3d_with_indices_backward",
      "aten::fractional_max_pool2d_backward", "aten::fractional_max_pool3d_backward",
      "aten::adaptive_max_pool2d_backward", "aten::adaptive_max_pool3d_backward")  # fmt: skip
def max_pool_backward(
    grad_output: TensorRef, self: TensorRef, *rest: Any, out: Out
) -> Work:  # fmt: skip
    """An add for every output, at the place that the indices name.

    Bytes: the input lends its shape only.
    """
    return Work(vector=grad_output.numel, kind=OTHER, read={"self": 0})


@cost("aten::max_pool2d_backward", "aten::mkldnn_max_pool2d_backward",
      "aten::mkldnn_max_pool3d_backward")  # fmt: skip
def max_pool_backward_by_value(grad_output: TensorRef, *rest: Any, out: Out) -> Work:
    """An add for every output, where the input is the largest of its window."""
    return Work(vector=grad_output.numel, kind=OTHER)


def _register_adaptive(name: str, dims: int) -> None:
    @cost(f"aten::{name}")
    def adaptive_pool(self: TensorRef, output_size: Any, *, out: Out) -> Work:
        """An add or a comparison for every element of every window; windows may overlap."""
        # One window over everything is a plain reduction of a row.
        whole = product(out[0].shape[-dims:]) == 1
        return Work(vector=_adaptive(self, out[0], dims), kind=REDUCTION if whole else OTHER)


def _register_adaptive_backward(name: str, dims: int) -> None:
    @cost(f"aten::{name}")
    def adaptive_pool_backward(grad_output: TensorRef, self: TensorRef, *, out: Out) -> Work:
        """An add for every element of every window.

        Bytes: the input lends its shape only.
        """
        return Work(vector=_adaptive(self, grad_output, dims), kind=OTHER, read={"self": 0})


for _name, _dims in {
    "_adaptive_avg_pool2d": 2, "_adaptive_avg_pool3d": 3, "adaptive_max_pool2d": 2,
    "adaptive_max_pool3d": 3, "mkldnn_adaptive_avg_pool2d": 2, "adaptive_avg_pool1d": 1,
    "adaptive_avg_pool2d": 2, "adaptive_avg_pool3d": 3,
}.items():  # fmt: skip
    _register_adaptive(_name, _dims)
for _name, _dims in {
    "_adaptive_avg_pool2d_backward": 2, "_adaptive_avg_pool3d_backward": 3,
    "mkldnn_adaptive_avg_pool2d_backward": 2, "adaptive_avg_pool3d_backward": 3,
}.items():  # fmt: skip
    _register_adaptive_backward(_name, _dims)


@cost("aten::max_unpool2d", "aten::max_unpool3d")
def max_unpool(self: TensorRef, indices: TensorRef, *rest: Any, out: Out) -> Work:
    """No arithmetic.

    Bytes: zeros are written first, then the values to their places.
    """
    return Work(kind=OTHER, write={0: out[0].nbytes + bytes_like(self, out[0])})
