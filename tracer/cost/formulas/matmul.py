"""Dense matrix products. [M,K] @ [K,N] is 2·M·K·N FLOPs, whatever the layout or the precision."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import GEMM, Work

Out = tuple[TensorRef, ...]


def _bias_adds(out: Out) -> int:
    """An added matrix or vector costs one vector FLOP an output element."""
    return out[0].numel


@cost("aten::mm", "aten::_int_mm", "aten::bmm")
def mm(self: TensorRef, mat2: TensorRef, out_dtype: Any = None, *, out: Out) -> Work:
    """[..., M, K] @ [..., K, N]."""
    return Work(flops=2 * out[0].numel * self.shape[-1], kind=GEMM)


@cost("aten::addmm", "aten::baddbmm")
def addmm(
    self: TensorRef, mat1: TensorRef, mat2: TensorRef, out_dtype: Any = None, *,
    beta: Any = 1, alpha: Any = 1, out: Out,
) -> Work:  # fmt: skip
    """Self + mat1 @ mat2; `self` broadcasts."""
    return Work(
        2 * out[0].numel * mat1.shape[-1],
        vector=_bias_adds(out),
        precision=mat1.dtype,
        kind=GEMM,
    )


@cost("aten::_addmm_activation")
def addmm_activation(
    self: TensorRef, mat1: TensorRef, mat2: TensorRef, *,
    beta: Any = 1, alpha: Any = 1, use_gelu: bool = False, out: Out,
) -> Work:  # fmt: skip
    """Relu or gelu of self + mat1 @ mat2, as one kernel with an epilogue."""
    return addmm(self, mat1, mat2, out=out)._replace(vector=2 * out[0].numel)


@cost("aten::addbmm")
def addbmm(
    self: TensorRef, batch1: TensorRef, batch2: TensorRef, *,
    beta: Any = 1, alpha: Any = 1, out: Out,
) -> Work:  # fmt: skip
    """Self + the sum over the batch of batch1 @ batch2: a product with K = batch · K."""
    batch, _, k = batch1.shape
    return Work(
        2 * out[0].numel * batch * k, vector=_bias_adds(out), precision=batch1.dtype, kind=GEMM
    )


@cost("aten::mv", "aten::dot", "aten::vdot")
def mv(self: TensorRef, vec: TensorRef, *, out: Out) -> Work:
    """[M, K] @ [K], or [K] · [K]."""
    return Work(2 * self.numel, kind=GEMM)


@cost("aten::addmv")
def addmv(
    self: TensorRef, mat: TensorRef, vec: TensorRef, *, beta: Any = 1, alpha: Any = 1, out: Out
) -> Work:
    """Self + mat @ vec."""
    return Work(2 * mat.numel, vector=_bias_adds(out), precision=mat.dtype, kind=GEMM)


@cost("aten::addr", "aten::ger", "aten::outer")
def addr(self: TensorRef, *vectors: Any, out: Out, **_: Any) -> Work:
    """An outer product: K = 1, so vector work and no matrix FLOPs in the published sense."""
    return Work(vector=2 * out[0].numel, kind=GEMM)


@cost("aten::linear", "aten::mkldnn_linear")
def linear(input: TensorRef, weight: TensorRef, bias: Any = None, *, out: Out) -> Work:
    """[..., K] @ [N, K]ᵀ + bias, where it reaches the dispatcher whole."""
    vector = _bias_adds(out) if bias is not None else 0
    return Work(2 * out[0].numel * input.shape[-1], vector=vector, kind=GEMM)


@cost("aten::linear_backward")
def linear_backward(
    self: TensorRef, grad_output: TensorRef, weight: TensorRef, output_mask: Any, *, out: Out
) -> Work:
    """Input and weight gradient, a forward each; bias gradient, a sum."""
    product = 2 * grad_output.numel * weight.shape[-1]
    wanted = [bool(flag) for flag in output_mask]
    return Work(product * (wanted[0] + wanted[1]), vector=grad_output.numel * wanted[2], kind=GEMM)


@cost("aten::_scaled_mm", "aten::_scaled_mm_v2")
def scaled_mm(self: TensorRef, mat2: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """FP8 (or FP4) product with scales: a multiply an output element for every block of K."""
    packed = 2 if "float4" in self.dtype else 1  # two FP4 values share a byte and a shape element
    return Work(2 * out[0].numel * self.shape[-1] * packed, vector=out[0].numel, kind=GEMM)


@cost("aten::_trilinear")
def trilinear(
    i1: TensorRef, i2: TensorRef, i3: TensorRef, expand1: Any, expand2: Any, expand3: Any,
    sumdim: Any, unroll_dim: int = 1, *, out: Out,
) -> Work:  # fmt: skip
    """Bilinear layers: sum of i1·i2·i3 over `sumdim`, two multiplies and an add a point."""
    points = 1
    for a, b, c in zip(
        _unsqueezed(i1, expand1), _unsqueezed(i2, expand2), _unsqueezed(i3, expand3), strict=True
    ):
        points *= max(a, b, c)
    return Work(3 * points, kind=GEMM)


def _unsqueezed(tensor: TensorRef, dims: Any) -> list[int]:
    shape = list(tensor.shape)
    for dim in sorted(dims):
        shape.insert(dim, 1)
    return shape
