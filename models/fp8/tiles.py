"""Block-scaled FP8 as in DeepSeek-V3 (arXiv 2412.19437, section 3.3): quantise and multiply.

Values are E4M3 unless asked for E5M2, scales FP32, and value times scale is the number that was
meant. Activations are scaled in tiles of 1×128 along the contraction, weights in blocks of 128×128.
With `power_of_two` a scale is rounded up to a power of two, what UE8M0 scales hold.

Shapes: M rows (tokens), N output features, K contraction; KB, NB, MB are K, N, M in tiles of 128,
rounded up. A matrix product is written a_MK · b_NKᵀ: both operands have K innermost, which is the
only layout that FP8 tensor cores of Hopper read.

The product is `torch._scaled_mm`. CPU has no block-scaled kernel, so real CPU tensors go through
FP32 copies: the same numbers but for the order of the sum.

A NaN or an Inf poisons the elements that share its scale: all of them come back NaN, so that a
broken gradient is seen. Nothing saturates, because a scale maps the largest element to the largest
number of the format. A tile of zeros comes back as zeros, one of equal numbers within 2^-23 of
them, which is exactly in BF16; with a power of two as the scale it is rounded like any other.
"""

from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor

TILE = 128
E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2
E4M3_MAX = torch.finfo(E4M3).max  # 448
# An all-zero tile would divide by zero. Far below any gradient, far above FP32's subnormals.
SMALLEST_AMAX = 1e-20


class Quantized(NamedTuple):
    """One activation in both forms, so that the linears that share it quantise it once.

    source: what was quantised, [M, K], for autograd; None in inference.
    values: E4M3, [M, K].
    scales: FP32, [M, KB].
    """

    source: torch.Tensor | None
    values: torch.Tensor
    scales: torch.Tensor


def tiles(size: int) -> int:
    """Number of tiles of 128 that cover `size` elements."""
    return (size + TILE - 1) // TILE


def _pad(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Zeros behind `dim` up to whole tiles; x itself where it fits. (F.pad refuses symbols.)"""
    size = x.shape[dim]
    if size % TILE == 0:
        return x
    shape = list(x.shape)
    shape[dim] = TILE * tiles(size) - size
    return torch.cat((x, x.new_zeros(shape)), dim=dim)


def scale_for(
    amax: torch.Tensor, dtype: torch.dtype = E4M3, power_of_two: bool = False
) -> torch.Tensor:
    """FP32 scale with which the largest absolute value `amax` becomes the format's largest.

    A power of two is the next one up, so that nothing overflows; Inf and NaN stay.
    """
    scale = amax.float().clamp(min=SMALLEST_AMAX) / torch.finfo(dtype).max
    if not power_of_two:
        return scale
    # Adding all ones below the exponent carries into it, unless the mantissa was zero.
    up = ((scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return torch.where(scale.isfinite(), up, scale)


def quantize_rows(
    x_MK: torch.Tensor, dtype: torch.dtype = E4M3, power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """1×128 tiles along K: FP8 [M, K] and FP32 scales [M, KB].

    The scales are stored with M innermost, as the matrix product reads them.
    """
    size = x_MK.shape[-1]
    x_MBt = _pad(x_MK, -1).unflatten(-1, (tiles(size), TILE))
    scale_MB1 = scale_for(x_MBt.abs().amax(dim=-1, keepdim=True), dtype, power_of_two)
    values_MK = (x_MBt / scale_MB1).to(dtype).flatten(-2)
    if size % TILE:
        values_MK = values_MK[:, :size]
    return values_MK, scale_MB1.squeeze(-1).t().contiguous().t()


def quantize_columns(
    x_MK: torch.Tensor, dtype: torch.dtype = E4M3, power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """1×128 tiles along M, transposed: FP8 [K, M rounded up to 128] and FP32 scales [K, MB].

    The weight gradient contracts over tokens, so both of its operands need this form (section
    3.3.2, "Fine-Grained Quantization"). Added tokens are zero and add nothing to the sum.
    """
    x_BtK = _pad(x_MK, 0).unflatten(0, (-1, TILE))
    scale_B1K = scale_for(x_BtK.abs().amax(dim=1, keepdim=True), dtype, power_of_two)
    values_MK = (x_BtK / scale_B1K).to(dtype).flatten(0, 1)
    return values_MK.t().contiguous(), scale_B1K.squeeze(1).t()


def quantize_blocks(
    w_NK: torch.Tensor, dtype: torch.dtype = E4M3, power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """128×128 blocks: FP8 [..., N, K] and FP32 scales [..., NB, KB].

    Matches `weight` and `weight_scale_inv` of the released checkpoints.
    """
    rows, columns = w_NK.shape[-2:]
    w_NK = _pad(_pad(w_NK, -1), -2)
    w_BtCt = w_NK.unflatten(-1, (-1, TILE)).unflatten(-3, (-1, TILE))
    scale_B1C1 = scale_for(w_BtCt.abs().amax(dim=(-3, -1), keepdim=True), dtype, power_of_two)
    values_NK = (w_BtCt / scale_B1C1).to(dtype).flatten(-4, -3).flatten(-2)
    if rows % TILE or columns % TILE:
        values_NK = values_NK[..., :rows, :columns].contiguous()
    return values_NK, scale_B1C1.squeeze(-1).squeeze(-2)


def dequantize(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """FP32 numbers behind FP8 values [..., N, K] and their scales, by rows or by blocks.

    Scales [..., N, KB] are of 1×128 tiles, [..., NB, KB] of 128×128 blocks.
    """
    if scales.shape[-2] == values.shape[-2] and values.shape[-1] % TILE == 0:
        # By rows, whole tiles: broadcast instead of spelling out a scale per element.
        return (values.float().unflatten(-1, (-1, TILE)) * scales.unsqueeze(-1)).flatten(-2)
    scales = scales.repeat_interleave(TILE, dim=-1)[..., : values.shape[-1]]
    if scales.shape[-2] != values.shape[-2]:
        scales = scales.repeat_interleave(TILE, dim=-2)[..., : values.shape[-2], :]
    return values.float() * scales


def mm(
    a_MK: torch.Tensor,
    a_scale: torch.Tensor,
    b_NK: torch.Tensor,
    b_scale: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """The product a·bᵀ [M, N]. Scales of `a` [M, KB]; of `b` [NB, KB] or [N, KB]."""
    if a_MK.device.type == "cpu" and not isinstance(a_MK, FakeTensor):
        return (dequantize(a_MK, a_scale) @ dequantize(b_NK, b_scale).t()).to(out_dtype)
    return torch._scaled_mm(
        a_MK, b_NK.t(), scale_a=a_scale, scale_b=b_scale.t(), out_dtype=out_dtype
    )
