"""The FP8 linears of the reference model: dense and by expert, forward and both gradients.

Everything is in E4M3 with FP32 scales, and activations are kept for backward in E4M3, as in
section 3.3 of arXiv 2412.19437. Shapes are those of `tiles`; E experts.

Torch has no block-scaled grouped product, so the two of the experts are custom ops. They stand for
`m_grouped_fp8_gemm_nt_contiguous` and `k_grouped_fp8_gemm_tn_contiguous` of DeepGEMM; the
implementation here is a reference through FP32 copies, on any device.
"""

import torch

from .tiles import dequantize, mm, quantize_blocks, quantize_columns, quantize_rows


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
            dx_MK = grouped_input_gradient(*quantize_rows(dy_MN), w_fp8, w_scale, offs)
        if ctx.needs_input_grad[3]:
            dw_ENK = grouped_weight_gradient(dy_MN, x_fp8, x_scale, offs)
        return dx_MK, None, None, dw_ENK, None


def grouped_input_gradient(dy_fp8, dy_scale, w_fp8, w_scale, offs):
    """[M, K] from the gradient's rows, E4M3 [M, N], and the weights of the forward."""
    w_EKN = w_fp8.transpose(-2, -1).contiguous()
    return grouped_mm(dy_fp8, dy_scale, w_EKN, w_scale.transpose(-2, -1), offs)


def grouped_weight_gradient(dy_MN, x_fp8, x_scale, offs):
    """[E, N, K] from the gradient's rows [M, N] and the activation that the forward kept."""
    x_MK = dequantize(x_fp8, x_scale)
    return grouped_wgrad(*quantize_columns(dy_MN), *quantize_columns(x_MK), offs)
