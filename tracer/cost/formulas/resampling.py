"""Interpolation and sampling: a weighted sum of taps for every output element.

k taps are k multiplies and k-1 adds; linear has 2 taps a dimension, cubic 4, summed row by row:
nearest 0, linear 3, bilinear 7, trilinear 15, bicubic 35. Finding the taps is not counted where it
is shared by all channels. A backward spreads each gradient over the same taps.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import COPY, ESTIMATED, GATHER, GEMM, OTHER, Work
from .common import Out, bytes_like, product

# Vector FLOPs an output element.
TAP_FLOPS: dict[str, int] = {
    **dict.fromkeys("upsample_nearest1d upsample_nearest2d upsample_nearest3d".split(), 0),
    **dict.fromkeys((f"_upsample_nearest_exact{d}d" for d in (1, 2, 3)), 0),
    "upsample_linear1d": 3,
    "upsample_bilinear2d": 7,
    "upsample_trilinear3d": 15,
    "upsample_bicubic2d": 35,
}
# Taps a dimension of the antialiased forms, before they widen with the downscale.
_ANTIALIASED = {"_upsample_bilinear2d_aa": 2, "_upsample_bicubic2d_aa": 4,
                "_upsample_lanczos2d_aa": 6}  # fmt: skip


def _register(name: str, steps: int) -> None:
    @cost(f"aten::{name}")
    def upsample(self: TensorRef, output_size: Any, /, *rest: Any, out: Out) -> Work:
        return Work(vector=steps * out[0].numel, kind=OTHER)

    @cost(f"aten::{name}_backward")
    def upsample_backward(
        grad_output: TensorRef, output_size: Any, input_size: Any, *rest: Any, out: Out
    ) -> Work:
        return Work(vector=max(steps, 1) * grad_output.numel, kind=OTHER)

    upsample.__doc__ = f"{steps} an output element."
    upsample_backward.__doc__ = f"{max(steps, 1)} an element of the output's gradient."


def _antialiased(small_to: tuple[int, ...], x: tuple[int, ...], taps: int) -> int:
    """Two passes, along the width and then the height, `taps` wide or more where it shrinks."""
    planes = product(x[:-2])
    (height, width), (new_height, new_width) = x[-2:], small_to[-2:]
    across = -(-taps * max(width, new_width) // new_width)
    down = -(-taps * max(height, new_height) // new_height)
    return 2 * planes * new_width * (height * across + new_height * down)


def _register_antialiased(name: str, taps: int) -> None:
    @cost(f"aten::{name}")
    def upsample_aa(self: TensorRef, output_size: Any, *rest: Any, out: Out) -> Work:
        """Two FLOPs a tap, width then height; taps widen with the downscale.

        Estimated: taps at the border are cut off.
        """
        vector = _antialiased(out[0].shape, self.shape, taps)
        return Work(vector=vector, kind=OTHER, confidence=ESTIMATED)

    @cost(f"aten::{name}_backward")
    def upsample_aa_backward(
        grad_output: TensorRef, output_size: Any, input_size: Any, *rest: Any, out: Out
    ) -> Work:
        """As the forward.

        Estimated: taps at the border are cut off.
        """
        vector = _antialiased(grad_output.shape, tuple(input_size), taps)
        return Work(vector=vector, kind=OTHER, confidence=ESTIMATED)


for _name, _steps in TAP_FLOPS.items():
    _register(_name, _steps)
for _name, _taps in _ANTIALIASED.items():
    _register_antialiased(_name, _taps)

_BILINEAR, _NEAREST, _BICUBIC = 0, 1, 2  # interpolation_mode
# By dimensions and mode: taps and vector FLOPs an output element.
_TAPS = {
    (2, _BILINEAR): (4, 7), (2, _NEAREST): (1, 0), (2, _BICUBIC): (16, 35),
    (3, _BILINEAR): (8, 15), (3, _NEAREST): (1, 0),
}  # fmt: skip
_LOCATE_FLOPS = 12  # a grid point: unnormalise, floor, and the weights of its taps


def _sample_flops(x: TensorRef, grid: TensorRef, mode: int) -> int:
    points = grid.numel // grid.shape[-1]
    _, steps = _TAPS[grid.shape[-1], mode]
    return points * (x.shape[1] * steps + _LOCATE_FLOPS)


def _register_sampler(name: str) -> None:
    @cost(f"aten::{name}")
    def grid_sampler(
        input: TensorRef, grid: TensorRef, interpolation_mode: int = 0, padding_mode: int = 0,
        align_corners: bool = False, /, *, out: Out,
    ) -> Work:  # fmt: skip
        """Bilinear 7, bicubic 35, trilinear 15 an output element, and 12 a grid point.

        Bytes: an element of the input for every tap, at most the whole input.
        Estimated: the grid decides which part of the input is read.
        """
        taps, _ = _TAPS[grid.shape[-1], interpolation_mode]
        return Work(
            vector=_sample_flops(input, grid, interpolation_mode),
            kind=GATHER,
            read={"input": min(input.nbytes, taps * bytes_like(out[0], input))},
            confidence=ESTIMATED,
        )


for _name in "grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback".split():
    _register_sampler(_name)
_register_sampler("cudnn_grid_sampler")


@cost("aten::grid_sampler_2d_backward", "aten::grid_sampler_3d_backward",
      "aten::_grid_sampler_2d_cpu_fallback_backward")  # fmt: skip
def grid_sampler_backward(
    grad_output: TensorRef, input: TensorRef, grid: TensorRef, interpolation_mode: int,
    *rest: Any, out: Out,
) -> Work:  # fmt: skip
    """Twice the forward: gradients of the input and of the grid.

    Estimated: the grid decides which part of the input is touched.
    """
    vector = 2 * _sample_flops(input, grid, interpolation_mode)
    return Work(vector=vector, kind=GATHER, confidence=ESTIMATED)


@cost("aten::cudnn_grid_sampler_backward")
def cudnn_grid_sampler_backward(
    self: TensorRef, grid: TensorRef, grad_output: TensorRef, *, out: Out
) -> Work:
    """Twice the forward.

    Estimated: the grid decides which part of the input is touched.
    """
    vector = 2 * _sample_flops(self, grid, _BILINEAR)
    return Work(vector=vector, kind=GATHER, confidence=ESTIMATED)


@cost("aten::affine_grid_generator", "aten::cudnn_affine_grid_generator")
def affine_grid(theta: TensorRef, *rest: Any, out: Out) -> Work:
    """A matrix [d, d+1] times each point of the grid, as a batched product."""
    return Work(2 * out[0].numel * theta.shape[-1], precision=theta.dtype, kind=GEMM)


@cost("aten::cudnn_affine_grid_generator_backward")
def affine_grid_backward(grad: TensorRef, *rest: Any, out: Out) -> Work:
    """The transposed product."""
    return Work(2 * grad.numel * out[0].shape[-1], precision=grad.dtype, kind=GEMM)


@cost("aten::im2col")
def im2col(self: TensorRef, kernel_size: Any, *rest: Any, out: Out) -> Work:
    """No arithmetic: every window is copied out.

    Bytes: the input is read once, at most all of it.
    """
    return Work(kind=OTHER, read={"self": min(self.nbytes, bytes_like(out[0], self))})


@cost("aten::col2im")
def col2im(self: TensorRef, output_size: Any, *rest: Any, out: Out) -> Work:
    """An add for every element of every window."""
    return Work(vector=self.numel, kind=OTHER)


@cost("aten::pixel_shuffle", "aten::pixel_unshuffle", "aten::channel_shuffle")
def shuffle(self: TensorRef, factor: int, /, *, out: Out) -> Work:
    """No arithmetic."""
    return Work(kind=COPY)


def _register_pad_backward(name: str) -> None:
    @cost(f"aten::{name}")
    def pad_backward(grad_output: TensorRef, self: TensorRef, padding: Any, *, out: Out) -> Work:
        """An add for every element of the padded gradient.

        Bytes: the input lends its shape only.
        """
        return Work(vector=grad_output.numel, kind=OTHER, read={"self": 0})


for _dims in (1, 2, 3):
    _register_pad_backward(f"reflection_pad{_dims}d_backward")
    _register_pad_backward(f"replication_pad{_dims}d_backward")
