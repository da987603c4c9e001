"""Products of scaled low-precision operands: FP8, FP4, and weights packed to 8 or 4 bits.

The matrix FLOPs are those of the product; scales that the tensor cores do not apply themselves are
vector work: one multiply-add an output element for every block of K.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import COPY, GEMM, Work
from .common import Out, given

_ACTIVATION_STEPS = {"none": 0, "relu": 1, "silu": 4, "gelu": 8}
# Scale types of the MX and NVFP4 formats, which Blackwell's tensor cores apply in hardware.
_HARDWARE_SCALES = ("float8_e8m0fnu", "float8_e4m3fn")


def packed(operand: TensorRef) -> int:
    """Values in one element: two FP4 values share a byte and a place in the shape."""
    return 2 if "float4" in operand.dtype else 1


def scale_steps(scale: TensorRef, rows: int) -> int:
    """Vector FLOPs an output element spends on scales of the left operand [M, K].

    One scale, or one a row: a multiply when the product is done. One for each of B blocks of K: a
    multiply-add a block.
    """
    if scale.dtype in _HARDWARE_SCALES:
        return 0
    blocks = max(1, scale.numel // rows) if rows else 1
    return 1 if blocks == 1 else 2 * blocks


def _scaled(self: TensorRef, scale: TensorRef, bias: Any, y: TensorRef) -> Work:
    k = self.shape[-1] * packed(self)
    rows = self.numel // self.shape[-1] if self.shape[-1] else 0
    vector = (scale_steps(scale, rows) + given(bias)) * y.numel
    return Work(2 * y.numel * k, vector=vector, kind=GEMM)


@cost("aten::_scaled_mm")
def scaled_mm(
    self: TensorRef, mat2: TensorRef, scale_a: TensorRef, scale_b: TensorRef,
    bias: TensorRef | None = None, scale_result: TensorRef | None = None, out_dtype: Any = None,
    use_fast_accum: bool = False, *, out: Out,
) -> Work:  # fmt: skip
    """2·M·K·N at the operands' rate (FP4: K is twice the shape); scales and bias on the output."""
    work = _scaled(self, scale_a, bias, out[0])
    return work._replace(vector=work.vector + given(scale_result) * out[0].numel)


@cost("aten::_scaled_mm_v2")
def scaled_mm_v2(
    self: TensorRef, mat2: TensorRef, scale_a: Any, recipe_a: Any, swizzle_a: Any, scale_b: Any,
    recipe_b: Any, swizzle_b: Any, bias: TensorRef | None = None, out_dtype: Any = None,
    contraction_dim: Any = (), use_fast_accum: bool = False, *, out: Out,
) -> Work:  # fmt: skip
    """2·M·K·N at the operands' rate (FP4: K is twice the shape); scales and bias on the output."""
    return _scaled(self, scale_a[0], bias, out[0])


@cost("aten::_weight_int8pack_mm")
def weight_int8pack_mm(
    self: TensorRef, mat2: TensorRef, scales: TensorRef, *, out: Out
) -> Work:  # fmt: skip
    """2·M·K·N in the activations' precision, the weight unpacked on the way; a scale an output.

    Bytes: of the weight, those of its packed form.
    """
    return Work(2 * out[0].numel * self.shape[-1], vector=mat2.numel + out[0].numel, kind=GEMM)


@cost("aten::_weight_int4pack_mm", "aten::_weight_int4pack_mm_for_cpu",
      "aten::_weight_int4pack_mm_with_scales_and_zeros")  # fmt: skip
def weight_int4pack_mm(
    self: TensorRef, mat2: TensorRef, qGroupSize: int, scales: TensorRef,
    zeros: TensorRef | None = None, /, *, out: Out,
) -> Work:  # fmt: skip
    """2·M·K·N in the activations' precision; each weight is scaled and shifted once (2 vector).

    Bytes: of the weight, those of its packed form.
    """
    k, n = self.shape[-1], out[0].shape[-1]
    return Work(2 * out[0].numel * k, vector=2 * k * n, kind=GEMM)


@cost("aten::_dyn_quant_matmul_4bit")
def dyn_quant_matmul_4bit(
    inp: TensorRef, packed_weights: TensorRef, block_size: int, in_features: int,
    out_features: int, *, out: Out,
) -> Work:  # fmt: skip
    """2·M·K·N at the INT8 rate: activations are quantised on the way (4 vector an element)."""
    vector = 4 * inp.numel + 2 * out[0].numel * max(1, in_features // block_size)
    return Work(2 * out[0].numel * in_features, vector=vector, precision="int8", kind=GEMM)


@cost("aten::_mixed_dtypes_linear")
def mixed_dtypes_linear(
    input: TensorRef, weight: TensorRef, scale: TensorRef, *, bias: TensorRef | None = None,
    activation: str | None = None, out: Out,
) -> Work:  # fmt: skip
    """2·M·K·N in the activations' precision; weights scaled, bias and activation as epilogue."""
    steps = given(bias) + _ACTIVATION_STEPS.get(activation or "none", 1)
    k, n = input.shape[-1], out[0].shape[-1]
    return Work(2 * out[0].numel * k, vector=k * n + steps * out[0].numel, kind=GEMM)


@cost("aten::_sparse_semi_structured_linear")
def semi_structured_linear(
    input: TensorRef, weight: TensorRef, meta: TensorRef, *, bias: TensorRef | None = None,
    activation: str | None = None, out_dtype: Any = None, out: Out,
) -> Work:  # fmt: skip
    """2 FLOPs for every *stored* weight and row, half of the dense count: peaks are dense peaks."""
    rows = input.numel // input.shape[-1]
    steps = given(bias) + _ACTIVATION_STEPS.get(activation or "none", 1)
    return Work(2 * rows * weight.numel, vector=steps * out[0].numel, kind=GEMM)


@cost("aten::_sparse_semi_structured_mm")
def semi_structured_mm(
    mat1: TensorRef, mat1_meta: TensorRef, mat2: TensorRef, *, out_dtype: Any = None, out: Out
) -> Work:
    """2 FLOPs for every stored element of mat1 and column of mat2."""
    return Work(2 * mat1.numel * mat2.shape[-1], kind=GEMM)


@cost("aten::_sparse_semi_structured_addmm")
def semi_structured_addmm(
    input: TensorRef, mat1: TensorRef, mat1_meta: TensorRef, mat2: TensorRef, *, alpha: Any = 1,
    beta: Any = 1, out_dtype: Any = None, out: Out,
) -> Work:  # fmt: skip
    """2 FLOPs for every stored element of mat1 and column of mat2, and the addition."""
    flops = 2 * mat1.numel * mat2.shape[-1]
    return Work(flops, vector=out[0].numel, precision=mat1.dtype, kind=GEMM)


@cost("aten::_cslt_sparse_mm")
def cslt_sparse_mm(
    compressed_A: TensorRef, dense_B: TensorRef, bias: TensorRef | None = None,
    alpha: Any = None, out_dtype: Any = None, transpose_result: bool = False, alg_id: int = 0,
    split_k: int = 1, split_k_mode: int = -1, *, out: Out,
) -> Work:  # fmt: skip
    """M·K·N: of the K products behind an output element half are stored."""
    k = dense_B.shape[0]
    vector = (given(bias) + given(alpha)) * out[0].numel
    return Work(out[0].numel * k, vector=vector, precision=dense_B.dtype, kind=GEMM)


@cost("aten::_convert_weight_to_int4pack", "aten::_convert_weight_to_int4pack_for_cpu",
      "aten::_dyn_quant_pack_4bit_weight", "aten::_cslt_compress",
      "aten::_sparse_semi_structured_tile", "aten::_sparse_semi_structured_apply",
      "aten::_sparse_semi_structured_apply_dense")  # fmt: skip
def pack(weight: TensorRef, /, *_: Any, out: Out, **__: Any) -> Work:
    """Packing moves bytes and computes nothing that counts."""
    return Work(kind=COPY)
