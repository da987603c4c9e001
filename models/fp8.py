"""Block-scaled FP8 as in DeepSeek-V3 (arXiv 2412.19437, section 3.3), in plain PyTorch.

Values are E4M3, scales FP32, and value times scale is the number that was meant. Activations are
scaled in tiles of 1×128 along the contraction, weights in blocks of 128×128.

Shapes: M rows (tokens), N output features, K contraction, E experts; KB, NB, MB are K, N, M in
tiles of 128, rounded up. A matrix product is written a_MK · b_NKᵀ: both operands have K innermost,
which is the only layout that FP8 tensor cores of Hopper read.

The products:

* dense: `torch._scaled_mm`. CPU has no block-scaled kernel, so real CPU tensors go through FP32
  copies: the same numbers but for the order of the sum.
* experts: torch has no block-scaled grouped product, so the two below are custom ops. They stand
  for `m_grouped_fp8_gemm_nt_contiguous` and `k_grouped_fp8_gemm_tn_contiguous` of DeepGEMM; the
  implementation here is a reference through FP32 copies, on any device.
"""

from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor

TILE = 128
E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
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


def _scale(amax: torch.Tensor) -> torch.Tensor:
    return amax.float().clamp(min=SMALLEST_AMAX) / E4M3_MAX


def quantize_rows(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """1×128 tiles along K: E4M3 [M, K] and FP32 scales [M, KB].

    The scales are stored with M innermost, as the matrix product reads them.
    """
    size = x_MK.shape[-1]
    x_MBt = _pad(x_MK, -1).unflatten(-1, (tiles(size), TILE))
    scale_MB1 = _scale(x_MBt.abs().amax(dim=-1, keepdim=True))
    values_MK = (x_MBt / scale_MB1).to(E4M3).flatten(-2)
    if size % TILE:
        values_MK = values_MK[:, :size]
    return values_MK, scale_MB1.squeeze(-1).t().contiguous().t()


def quantize_columns(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """1×128 tiles along M, transposed: E4M3 [K, M rounded up to 128] and FP32 scales [K, MB].

    The weight gradient contracts over tokens, so both of its operands need this form (section
    3.3.2, "Fine-Grained Quantization"). Added tokens are zero and add nothing to the sum.
    """
    x_BtK = _pad(x_MK, 0).unflatten(0, (-1, TILE))
    scale_B1K = _scale(x_BtK.abs().amax(dim=1, keepdim=True))
    values_MK = (x_BtK / scale_B1K).to(E4M3).flatten(0, 1)
    return values_MK.t().contiguous(), scale_B1K.squeeze(1).t()


def quantize_blocks(w_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """128×128 blocks: E4M3 [..., N, K] and FP32 scales [..., NB, KB].

    Matches `weight` and `weight_scale_inv` of the released checkpoints.
    """
    rows, columns = w_NK.shape[-2:]
    w_NK = _pad(_pad(w_NK, -1), -2)
    w_BtCt = w_NK.unflatten(-1, (-1, TILE)).unflatten(-3, (-1, TILE))
    scale_B1C1 = _scale(w_BtCt.abs().amax(dim=(-3, -1), keepdim=True))
    values_NK = (w_BtCt / scale_B1C1).to(E4M3).flatten(-4, -3).flatten(-2)
    if rows % TILE or columns % TILE:
        values_NK = values_NK[..., :rows, :columns].contiguous()
    return values_NK, scale_B1C1.squeeze(-1).squeeze(-2)


def dequantize(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """FP32 numbers behind E4M3 values [..., N, K] and their scales, by rows or by blocks.

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
    a_MK: torch.Tensor, a_scale: torch.Tensor, b_NK: torch.Tensor, b_scale: torch.Tensor
) -> torch.Tensor:
    """The product a·bᵀ in BF16 [M, N]. Scales of `a` [M, KB]; of `b` [NB, KB] or [N, KB]."""
    if a_MK.device.type == "cpu" and not isinstance(a_MK, FakeTensor):
        return (dequantize(a_MK, a_scale) @ dequantize(b_NK, b_scale).t()).bfloat16()
    return torch._scaled_mm(
        a_MK, b_NK.t(), scale_a=a_scale, scale_b=b_scale.t(), out_dtype=torch.bfloat16
    )


@torch.library.custom_op("deepseek::grouped_mm_fp8_block", mutates_args=())
def grouped_mm(
    x_fp8: torch.Tensor,
    x_scale: torch.Tensor,
    w_fp8: torch.Tensor,
    w_scale: torch.Tensor,
    offs: torch.Tensor,
) -> torch.Tensor:
    """One product per expert: rows offs[e-1]..offs[e] of x [M, K] times w[e]ᵀ, BF16 [M, N].

    Args:
        x_fp8: E4M3 [M, K], rows sorted by expert.
        x_scale: FP32 [M, KB].
        w_fp8: E4M3 [E, N, K].
        w_scale: FP32 [E, NB, KB].
        offs: INT32 [E], where the rows of each expert end.
    """
    x_MK, w_ENK = dequantize(x_fp8, x_scale), dequantize(w_fp8, w_scale)
    return torch._grouped_mm(x_MK, w_ENK.transpose(-2, -1), offs=offs).bfloat16()


@grouped_mm.register_fake
def _(x_fp8, x_scale, w_fp8, w_scale, offs):
    return x_fp8.new_empty(x_fp8.shape[0], w_fp8.shape[1], dtype=torch.bfloat16)


@torch.library.custom_op("deepseek::grouped_wgrad_fp8_block", mutates_args=())
def grouped_wgrad(
    dy_fp8: torch.Tensor,
    dy_scale: torch.Tensor,
    x_fp8: torch.Tensor,
    x_scale: torch.Tensor,
    offs: torch.Tensor,
) -> torch.Tensor:
    """Weight gradient per expert: dy over tokens offs[e-1]..offs[e] times x, BF16 [E, N, K].

    Args:
        dy_fp8: E4M3 [N, M], tokens sorted by expert and innermost.
        dy_scale: FP32 [N, MB].
        x_fp8: E4M3 [K, M].
        x_scale: FP32 [K, MB].
        offs: INT32 [E], where the tokens of each expert end.

    Tiles are 128 consecutive tokens, whichever experts they belong to. DeepGEMM wants each
    expert's tokens padded to whole tiles instead, which would make the shape depend on the data.
    """
    dy_NM, x_KM = dequantize(dy_fp8, dy_scale), dequantize(x_fp8, x_scale)
    return torch._grouped_mm(dy_NM, x_KM.t(), offs=offs).bfloat16()


@grouped_wgrad.register_fake
def _(dy_fp8, dy_scale, x_fp8, x_scale, offs):
    shape = (offs.shape[0], dy_fp8.shape[0], x_fp8.shape[0])
    return dy_fp8.new_empty(shape, dtype=torch.bfloat16)


class LinearFn(torch.autograd.Function):
    """y = x·wᵀ with the forward, input-gradient and weight-gradient products all in FP8."""

    @staticmethod
    def forward(ctx, x_MK, x_fp8, x_scale, w_NK):
        w_fp8, w_scale = quantize_blocks(w_NK)
        # The activation is kept in E4M3, half the bytes of BF16 (section 3.3.3).
        ctx.save_for_backward(x_fp8, x_scale, w_fp8, w_scale)
        return mm(x_fp8, x_scale, w_fp8, w_scale)

    @staticmethod
    def backward(ctx, dy_MN):
        x_fp8, x_scale, w_fp8, w_scale = ctx.saved_tensors
        dx_MK = dw_NK = None
        if ctx.needs_input_grad[0]:
            # A block of wᵀ is a block of w: only the values have to move.
            dx_MK = mm(*quantize_rows(dy_MN), w_fp8.t().contiguous(), w_scale.t())
        if ctx.needs_input_grad[3]:
            x_MK = dequantize(x_fp8, x_scale)
            dw_NK = mm(*quantize_columns(dy_MN), *quantize_columns(x_MK))
        return dx_MK, None, None, dw_NK


class GroupedLinearFn(torch.autograd.Function):
    """`LinearFn` per expert. Rows are sorted by expert; `offs` says where each one's end."""

    @staticmethod
    def forward(ctx, x_MK, x_fp8, x_scale, w_ENK, offs):
        w_fp8, w_scale = quantize_blocks(w_ENK)
        ctx.save_for_backward(x_fp8, x_scale, w_fp8, w_scale, offs)
        return grouped_mm(x_fp8, x_scale, w_fp8, w_scale, offs)

    @staticmethod
    def backward(ctx, dy_MN):
        x_fp8, x_scale, w_fp8, w_scale, offs = ctx.saved_tensors
        dx_MK = dw_ENK = None
        if ctx.needs_input_grad[0]:
            w_EKN = w_fp8.transpose(-2, -1).contiguous()
            dx_MK = grouped_mm(*quantize_rows(dy_MN), w_EKN, w_scale.transpose(-2, -1), offs)
        if ctx.needs_input_grad[3]:
            x_MK = dequantize(x_fp8, x_scale)
            dw_ENK = grouped_wgrad(*quantize_columns(dy_MN), *quantize_columns(x_MK), offs)
        return dx_MK, None, None, dw_ENK, None
