"""Dense matrix products. [M,K] @ [K,N] is 2·M·K·N FLOPs, whatever the layout or the precision.

A complex multiply-add is 8 FLOPs. An epilogue (bias, scale) is vector work on the output.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import GEMM, Work
from .common import Out, Refs, given, multiply_add, wanted


def _product(a: TensorRef, y: TensorRef, k: int) -> int:
    """FLOPs where every element of `y` is a dot product over `k` elements of `a`."""
    return multiply_add(a) * y.numel * k


def _accumulate(self: TensorRef, y: TensorRef, beta: Any, alpha: Any) -> dict[str, Any]:
    """The epilogue of beta·self + alpha·product: an add, and a multiply for a factor not 1."""
    steps = (alpha != 1) + (0 if beta == 0 else 1 + (beta != 1))
    return {"vector": steps * y.numel, "read": {"self": 0} if beta == 0 else None}


@cost("aten::mm", "aten::bmm")
def mm(self: TensorRef, mat2: TensorRef, out_dtype: Any = None, *, out: Out) -> Work:
    """2·M·K·N, for every matrix of a batch."""
    return Work(_product(self, out[0], self.shape[-1]), kind=GEMM)


@cost("aten::_int_mm")
def int_mm(self: TensorRef, mat2: TensorRef, *, out: Out) -> Work:
    """2·M·K·N at the INT8 rate; the INT32 result is written."""
    return Work(_product(self, out[0], self.shape[-1]), kind=GEMM)


@cost("aten::_foreach_mm")
def foreach_mm(self: Refs, mat2: Refs, *, out: Out) -> Work:
    """2·M·K·N for every pair of the lists."""
    flops = sum(_product(a, a, b.shape[-1]) for a, b in zip(self, mat2, strict=True))
    return Work(flops, kind=GEMM)


@cost("aten::addmm", "aten::addmm_")
def addmm(
    self: TensorRef, mat1: TensorRef, mat2: TensorRef, out_dtype: Any = None, *,
    beta: Any = 1, alpha: Any = 1, out: Out,
) -> Work:  # fmt: skip
    """2·M·K·N; an add an output element, a multiply for each of beta and alpha that is not 1.

    Bytes: `self` broadcasts; beta = 0 does not read it.
    """
    epilogue = _accumulate(self, out[0], beta, alpha)
    flops = _product(mat1, out[0], mat1.shape[-1])
    return Work(flops, precision=mat1.dtype, kind=GEMM, **epilogue)


@cost("aten::baddbmm", "aten::baddbmm_")
def baddbmm(
    self: TensorRef, batch1: TensorRef, batch2: TensorRef, out_dtype: Any = None, *,
    beta: Any = 1, alpha: Any = 1, out: Out,
) -> Work:  # fmt: skip
    """2·B·M·K·N and the epilogue of `addmm`.

    Bytes: `self` broadcasts; beta = 0 does not read it.
    """
    return addmm(self, batch1, batch2, beta=beta, alpha=alpha, out=out)


@cost("aten::_addmm_activation")
def addmm_activation(
    self: TensorRef, mat1: TensorRef, mat2: TensorRef, *,
    beta: Any = 1, alpha: Any = 1, use_gelu: bool = False, out: Out,
) -> Work:  # fmt: skip
    """`addmm` with ReLU (1 an output element) or GELU (8) in its epilogue."""
    work = addmm(self, mat1, mat2, beta=beta, alpha=alpha, out=out)
    return work._replace(vector=work.vector + (8 if use_gelu else 1) * out[0].numel)


@cost("aten::addbmm", "aten::addbmm_")
def addbmm(
    self: TensorRef, batch1: TensorRef, batch2: TensorRef, *,
    beta: Any = 1, alpha: Any = 1, out: Out,
) -> Work:  # fmt: skip
    """2·M·(B·K)·N: products summed over the batch are one with a longer K; epilogue of `addmm`.

    Bytes: `self` broadcasts; beta = 0 does not read it.
    """
    batch, _, k = batch1.shape
    epilogue = _accumulate(self, out[0], beta, alpha)
    return Work(
        _product(batch1, out[0], batch * k), precision=batch1.dtype, kind=GEMM, **epilogue
    )  # fmt: skip


@cost("aten::mv", "aten::dot", "aten::vdot")
def mv(self: TensorRef, other: TensorRef, /, *, out: Out) -> Work:
    """2·M·K: a matrix or a vector times a vector."""
    return Work(multiply_add(self) * self.numel, kind=GEMM)


@cost("aten::addmv", "aten::addmv_")
def addmv(
    self: TensorRef, mat: TensorRef, vec: TensorRef, *, beta: Any = 1, alpha: Any = 1, out: Out
) -> Work:
    """2·M·K and the epilogue of `addmm`.

    Bytes: beta = 0 does not read `self`.
    """
    epilogue = _accumulate(self, out[0], beta, alpha)
    return Work(multiply_add(mat) * mat.numel, precision=mat.dtype, kind=GEMM, **epilogue)


@cost("aten::addr", "aten::addr_")
def addr(
    self: TensorRef, vec1: TensorRef, vec2: TensorRef, *, beta: Any = 1, alpha: Any = 1, out: Out
) -> Work:
    """An outer product has K = 1: a multiply an element of vector work, and the epilogue."""
    epilogue = _accumulate(self, out[0], beta, alpha)
    epilogue["vector"] += out[0].numel
    return Work(kind=GEMM, **epilogue)


@cost("aten::linear", "aten::mkldnn_linear")
def linear(
    input: TensorRef, weight: TensorRef, bias: TensorRef | None = None, /, *, out: Out
) -> Work:
    """2·T·K·N for T rows, and an add an output element for a bias."""
    flops = _product(input, out[0], input.shape[-1])
    return Work(flops, vector=given(bias) * out[0].numel, kind=GEMM)


@cost("aten::linear_backward", "aten::mkldnn_linear_backward")
def linear_backward(
    self: TensorRef, grad_output: TensorRef, weight: TensorRef, output_mask: Any, *, out: Out
) -> Work:
    """Input and weight gradient, a forward each; the bias gradient is a sum.

    Bytes: the input gradient reads the weight, the weight gradient reads the input.
    """
    dx, dw, db = wanted(output_mask)
    product = _product(grad_output, grad_output, weight.shape[-1])
    read = {name: 0 for name, used in (("weight", dx), ("self", dw)) if not used}
    return Work(product * (dx + dw), vector=grad_output.numel * db, kind=GEMM, read=read)


@cost("aten::mkldnn_linear_backward_input")
def linear_backward_input(
    input_size: Any, grad_output: TensorRef, weight: TensorRef, *, out: Out
) -> Work:
    """2·T·N·K: the output's gradient [T, N] @ weight [N, K]."""
    return Work(_product(grad_output, grad_output, weight.shape[-1]), kind=GEMM)


@cost("aten::mkldnn_linear_backward_weights")
def linear_backward_weights(
    grad_output: TensorRef, input: TensorRef, weight: TensorRef, bias_defined: bool, *, out: Out
) -> Work:
    """2·T·N·K: the transposed gradient @ input [T, K]; the bias gradient is a sum.

    Bytes: the weight lends its shape only.
    """
    return Work(
        _product(grad_output, grad_output, weight.shape[-1]),
        vector=grad_output.numel * bool(bias_defined),
        kind=GEMM,
        read={"weight": 0},
    )


@cost("aten::matmul_backward")
def matmul_backward(
    grad: TensorRef, self: TensorRef, other: TensorRef, mask: Any, *, out: Out
) -> Work:
    """A forward for each gradient that is asked for."""
    inner = self.shape[-1]
    return Work(_product(grad, grad, inner) * sum(wanted(mask)), kind=GEMM)


@cost("aten::_trilinear")
def trilinear(
    i1: TensorRef, i2: TensorRef, i3: TensorRef, expand1: Any, expand2: Any, expand3: Any,
    sumdim: Any, unroll_dim: int = 1, *, out: Out,
) -> Work:  # fmt: skip
    """Bilinear layers, as torch runs them: i1 with i2, summed where i3 has no dimension, then i3.

    Both are batched products: 2 FLOPs for every point of their joint shapes.
    """
    first, second = 1, 1
    shapes = zip(
        _unsqueezed(i1, expand1), _unsqueezed(i2, expand2), _unsqueezed(i3, expand3), strict=True
    )
    for dim, (a, b, c) in enumerate(shapes):
        first *= max(a, b)
        summed_early = dim in sumdim and dim in expand3
        second *= 1 if summed_early else max(a, b, c)
    return Work(multiply_add(i1) * (first + second), kind=GEMM)


def _unsqueezed(tensor: TensorRef, dims: Any) -> list[int]:
    shape = list(tensor.shape)
    for dim in sorted(dims):
        shape.insert(dim, 1)
    return shape
