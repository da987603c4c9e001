"""Four ways to scale a matrix into FP8, and the product of two scaled matrices.

| scheme | one scale for | scales |
| - | - | - |
| tensor | the whole matrix | [1, 1] |
| row | a row, over all of the contraction | [M, 1] |
| tile | 1×128 along the contraction | [M, KB] |
| block | 128×128 | [MB, KB] |

NaN and Inf: see `tiles`, for all four. A matrix [M, K] has its contraction innermost.
"""

from typing import Literal, NamedTuple, get_args

import torch

from . import tiles
from .accumulate import PROMOTE, hopper_sum
from .tiles import E4M3, E5M2, TILE, scale_for

Scheme = Literal["tensor", "row", "tile", "block"]
Accumulate = Literal["fp32", "hopper", "promoted"]


class Fp8Error(ValueError):
    """Operands or a recipe that FP8 cannot serve; the message is one line."""


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuse a value that is not among those of a `Literal`."""
    if value not in get_args(choices):
        raise Fp8Error(f"{name} is {value!r}; supported are {', '.join(get_args(choices))}")


class Scaled(NamedTuple):
    """A matrix in FP8.

    values: E4M3 or E5M2, [M, K].
    scales: FP32, of the shape that the scheme has (see above).
    scheme: which.
    """

    values: torch.Tensor
    scales: torch.Tensor
    scheme: Scheme

    def dequantize(self) -> torch.Tensor:
        """The numbers meant, FP32 [M, K]."""
        if self.scheme in ("tensor", "row"):
            return self.values.float() * self.scales
        return tiles.dequantize(self.values, self.scales)

    def scale_of_each(self) -> torch.Tensor:
        """The scale of every element, FP32 [M, K]."""
        ones = torch.ones_like(self.values, dtype=torch.float32)
        return Scaled(ones, self.scales, self.scheme).dequantize()


def quantize(
    x_MK: torch.Tensor,
    scheme: Scheme,
    dtype: torch.dtype = E4M3,
    *,
    power_of_two: bool = False,
) -> Scaled:
    """Scale a matrix so that the largest element of each group is the format's largest; round.

    Args:
        x_MK: BF16, FP16 or FP32.
        scheme: what shares a scale.
        dtype: E4M3 or E5M2.
        power_of_two: round scales up to powers of two, as UE8M0 holds them.

    Raises:
        Fp8Error: not a matrix, another format, another scheme.
    """
    check_choice("scheme", scheme, Scheme)
    if dtype not in (E4M3, E5M2):
        raise Fp8Error(f"dtype is {dtype}; supported are {E4M3} and {E5M2}")
    if x_MK.dim() != 2 or not x_MK.numel():
        raise Fp8Error(f"shape is {tuple(x_MK.shape)}; scaling takes a matrix with elements")
    if scheme == "tile":
        return Scaled(*tiles.quantize_rows(x_MK, dtype, power_of_two), scheme)
    if scheme == "block":
        return Scaled(*tiles.quantize_blocks(x_MK, dtype, power_of_two), scheme)
    amax = x_MK.abs().amax(dim=(0, 1) if scheme == "tensor" else 1, keepdim=True)
    scales = scale_for(amax, dtype, power_of_two)
    return Scaled((x_MK / scales).to(dtype), scales, scheme)


def product(
    a: Scaled,
    b: Scaled,
    out_dtype: torch.dtype = torch.bfloat16,
    accumulate: Accumulate = "fp32",
) -> torch.Tensor:
    """The product a·bᵀ [M, N] of `a` [M, K] and `b` [N, K].

    "fp32" is `torch._scaled_mm` where the device has it for these scales, and the FP32 product of
    the dequantised operands elsewhere: the same numbers but for the order of the sum. "hopper" and
    "promoted" emulate the tensor cores (see `accumulate`) on any device, slowly; scales that change
    along K are applied at each promotion, as the paper does, so they have no "hopper".

    Raises:
        Fp8Error: shapes do not fit, "hopper" with scales along K, or another accumulation.
    """
    check_choice("accumulate", accumulate, Accumulate)
    if a.values.shape[1] != b.values.shape[1]:
        raise Fp8Error(
            f"contractions differ: {a.values.shape[1]} of a and {b.values.shape[1]} of b"
        )
    along_k = {a.scheme, b.scheme} & {"tile", "block"}
    if accumulate != "fp32":
        if along_k and accumulate == "hopper":
            raise Fp8Error(
                f"scales by {' and '.join(sorted(along_k))} change along the contraction: they "
                "need accumulate='promoted'"
            )
        emulate = _promoted_by_tile if along_k else _unscaled_then_scaled
        return emulate(a, b, accumulate).to(out_dtype)
    if not along_k and _has_kernel(a, b):
        return _scaled_mm(a, b, out_dtype)
    if a.scheme == "tile" and along_k == {a.scheme, b.scheme}:
        return tiles.mm(a.values, a.scales, b.values, b.scales, out_dtype)
    return (a.dequantize() @ b.dequantize().t()).to(out_dtype)


def _has_kernel(a: Scaled, b: Scaled) -> bool:
    if a.values.device.type == "cpu":
        return True
    # cuBLAS wants both free sizes and K in whole 16s, and has no E5M2 × E5M2.
    sixteens = all(size % 16 == 0 for size in (*a.values.shape, b.values.shape[0]))
    return sixteens and not a.values.dtype == b.values.dtype == E5M2


def _scaled_mm(a: Scaled, b: Scaled, out_dtype: torch.dtype) -> torch.Tensor:
    a_scale, b_scale = a.scales, b.scales.t()
    by_row = "row" in (a.scheme, b.scheme)
    if by_row:
        a_scale = a_scale.expand(a.values.shape[0], 1).contiguous()
        b_scale = b_scale.expand(1, b.values.shape[0]).contiguous()
    # The row-wise kernel of CUDA writes BF16 only.
    kernel = torch.bfloat16 if by_row and a.values.device.type != "cpu" else out_dtype
    y_MN = torch._scaled_mm(
        a.values, b.values.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=kernel
    )
    return y_MN.to(out_dtype)


def _unscaled_then_scaled(a: Scaled, b: Scaled, accumulate: Accumulate) -> torch.Tensor:
    promote = PROMOTE if accumulate == "promoted" else None
    return hopper_sum(a.values, b.values, promote) * a.scales * b.scales.t()


def _promoted_by_tile(a: Scaled, b: Scaled, accumulate: Accumulate) -> torch.Tensor:
    total_MN = a.values.new_zeros(a.values.shape[0], b.values.shape[0], dtype=torch.float32)
    # One element of each tile of 128 tells the scale of all 128.
    a_scale, b_scale = a.scale_of_each()[:, ::TILE], b.scale_of_each()[:, ::TILE]
    for i in range(a_scale.shape[1]):
        tile = slice(TILE * i, TILE * (i + 1))
        part_MN = hopper_sum(a.values[:, tile], b.values[:, tile], None)
        total_MN += part_MN * a_scale[:, i : i + 1] * b_scale[:, i : i + 1].t()
    return total_MN
