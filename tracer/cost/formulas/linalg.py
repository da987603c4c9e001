"""Decompositions and solves: LAPACK's operation counts (LAWN 41), to leading order.

They are vector FLOPs: matrix FLOPs are those of products and convolutions, which run at the matrix
peak; a factorisation does not. Complex ones count four times. Iterative ones (eigenvalues, singular
values) use the textbook constants of Golub and Van Loan and are estimates.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import COPY, ESTIMATED, EXACT, FREE, OTHER, Work
from .common import Out, multiply_add, product


def _dims(a: TensorRef) -> tuple[int, int, int]:
    """Batch, rows, columns."""
    return product(a.shape[:-2]), a.shape[-2], a.shape[-1]


def _work(a: TensorRef, flops: int, confidence: str = EXACT) -> Work:
    return Work(vector=multiply_add(a) // 2 * flops, kind=OTHER, confidence=confidence)


def lu_flops(m: int, n: int) -> int:
    """m·n² - n³/3 with n the shorter side; 2n³/3 for a square."""
    m, n = max(m, n), min(m, n)
    return m * n * n - n**3 // 3


def qr_flops(m: int, n: int) -> int:
    """2·m·n² - 2n³/3 with n the shorter side."""
    m, n = max(m, n), min(m, n)
    return 2 * m * n * n - 2 * n**3 // 3


@cost("aten::cholesky")
def cholesky(self: TensorRef, upper: bool = False, *, out: Out) -> Work:
    """n³/3."""
    batch, n, _ = _dims(self)
    return _work(self, batch * n**3 // 3)


@cost("aten::linalg_cholesky_ex")
def cholesky_ex(
    self: TensorRef, *, upper: bool = False, check_errors: bool = False, out: Out
) -> Work:
    """n³/3."""
    batch, n, _ = _dims(self)
    return _work(self, batch * n**3 // 3)


@cost("aten::linalg_lu", "aten::linalg_lu_factor_ex")
def lu(
    A: TensorRef, *, pivot: bool = True, check_errors: bool = False, out: Out
) -> Work:  # fmt: skip
    """m·n² - n³/3."""
    batch, m, n = _dims(A)
    return _work(A, batch * lu_flops(m, n))


@cost("aten::_linalg_det", "aten::_linalg_slogdet")
def det(A: TensorRef, *, out: Out) -> Work:
    """An LU, and the product of the diagonal."""
    batch, n, _ = _dims(A)
    return _work(A, batch * (lu_flops(n, n) + n))


@cost("aten::linalg_inv_ex")
def inv(A: TensorRef, *, check_errors: bool = False, out: Out) -> Work:
    """2n³."""
    batch, n, _ = _dims(A)
    return _work(A, batch * 2 * n**3)


@cost("aten::_linalg_solve_ex")
def solve(
    A: TensorRef, B: TensorRef, *, left: bool = True, check_errors: bool = False,
    out: Out,
) -> Work:  # fmt: skip
    """An LU, and 2n² a right-hand side."""
    batch, n, _ = _dims(A)
    return _work(A, batch * lu_flops(n, n) + 2 * n * out[0].numel)


@cost("aten::linalg_lu_solve")
def lu_solve(
    LU: TensorRef, pivots: TensorRef, B: TensorRef, *, left: bool = True,
    adjoint: bool = False, out: Out,
) -> Work:  # fmt: skip
    """2n² a right-hand side."""
    return _work(LU, 2 * LU.shape[-1] * out[0].numel)


@cost("aten::cholesky_solve", "aten::_cholesky_solve_helper")
def cholesky_solve(
    self: TensorRef, factor: TensorRef, upper: bool = False, /, *, out: Out
) -> Work:  # fmt: skip
    """2n² a right-hand side: two triangular solves."""
    return _work(factor, 2 * factor.shape[-1] * out[0].numel)


@cost("aten::cholesky_inverse")
def cholesky_inverse(self: TensorRef, upper: bool = False, *, out: Out) -> Work:
    """2n³/3."""
    batch, n, _ = _dims(self)
    return _work(self, batch * 2 * n**3 // 3)


@cost("aten::linalg_solve_triangular")
def solve_triangular(
    self: TensorRef, B: TensorRef, *, upper: bool, left: bool = True,
    unitriangular: bool = False, out: Out,
) -> Work:  # fmt: skip
    """n² a right-hand side."""
    return _work(self, self.shape[-1] * out[0].numel)


@cost("aten::triangular_solve")
def triangular_solve(
    self: TensorRef, A: TensorRef, upper: bool = True, transpose: bool = False,
    unitriangular: bool = False, *, out: Out,
) -> Work:  # fmt: skip
    """n² a right-hand side."""
    return _work(A, A.shape[-1] * out[0].numel)


@cost("aten::linalg_ldl_factor_ex")
def ldl_factor(
    self: TensorRef, *, hermitian: bool = False, check_errors: bool = False, out: Out
) -> Work:
    """n³/3."""
    batch, n, _ = _dims(self)
    return _work(self, batch * n**3 // 3)


@cost("aten::linalg_ldl_solve")
def ldl_solve(
    LD: TensorRef, pivots: TensorRef, B: TensorRef, *, hermitian: bool = False,
    out: Out,
) -> Work:  # fmt: skip
    """2n² a right-hand side."""
    return _work(LD, 2 * LD.shape[-1] * out[0].numel)


@cost("aten::geqrf")
def geqrf(self: TensorRef, *, out: Out) -> Work:
    """2mn² - 2n³/3, n the shorter side."""
    batch, m, n = _dims(self)
    return _work(self, batch * qr_flops(m, n))


@cost("aten::linalg_qr")
def qr(A: TensorRef, mode: str = "reduced", *, out: Out) -> Work:
    """2mn² - 2n³/3 for R; Q of k columns adds 4mnk - 2(m+n)k² + 4k³/3."""
    batch, m, n = _dims(A)
    flops = qr_flops(m, n)
    if mode != "r":
        flops += _form_q(m, out[0].shape[-1], min(m, n))
    return _work(A, batch * flops)


def _form_q(m: int, n: int, k: int) -> int:
    """LAPACK's orgqr: an m×n Q from k reflectors."""
    return 4 * m * n * k - 2 * (m + n) * k * k + 4 * k**3 // 3


@cost("aten::linalg_householder_product")
def householder_product(input: TensorRef, tau: TensorRef, *, out: Out) -> Work:
    """4mnk - 2(m+n)k² + 4k³/3 for k reflectors."""
    batch, m, n = _dims(input)
    return _work(input, batch * _form_q(m, n, tau.shape[-1]))


@cost("aten::ormqr")
def ormqr(
    self: TensorRef, input2: TensorRef, input3: TensorRef, left: bool = True,
    transpose: bool = False, *, out: Out,
) -> Work:  # fmt: skip
    """Q of k reflectors, m high, times a matrix with n columns: 4mnk - 2nk²."""
    m = input3.shape[-2] if left else input3.shape[-1]
    columns = input3.numel // m
    k = input2.shape[-1]
    return _work(self, 4 * m * columns * k - 2 * columns * k * k)


@cost("aten::linalg_lstsq")
def lstsq(
    self: TensorRef, b: TensorRef, rcond: float | None = None, *, driver: str | None = None,
    out: Out,
) -> Work:  # fmt: skip
    """A QR, Qᵀb (4mn - 2n² a right-hand side) and a triangular solve (n²).

    Estimated: drivers that find the rank iterate.
    """
    batch, m, n = _dims(self)
    columns = b.numel // m // max(1, batch)
    n = min(m, n)
    flops = qr_flops(m, n) + columns * (4 * m * n - 2 * n * n + n * n)
    return _work(self, batch * flops, ESTIMATED)


@cost("aten::_linalg_eigh")
def eigh(
    A: TensorRef, UPLO: str = "L", compute_v: bool = True, *, out: Out
) -> Work:  # fmt: skip
    """4n³/3 for the values, 9n³ with vectors.

    Estimated: it iterates.
    """
    batch, n, _ = _dims(A)
    return _work(A, batch * (9 * n**3 if compute_v else 4 * n**3 // 3), ESTIMATED)


@cost("aten::linalg_eig")
def eig(self: TensorRef, *, out: Out) -> Work:
    """25n³ with vectors.

    Estimated: it iterates.
    """
    batch, n, _ = _dims(self)
    return _work(self, batch * 25 * n**3, ESTIMATED)


@cost("aten::linalg_eigvals", "aten::_linalg_eigvals")
def eigvals(self: TensorRef, *, out: Out) -> Work:
    """10n³.

    Estimated: it iterates.
    """
    batch, n, _ = _dims(self)
    return _work(self, batch * 10 * n**3, ESTIMATED)


@cost("aten::_linalg_svd")
def svd(
    A: TensorRef, full_matrices: bool = False, compute_uv: bool = True, *,
    driver: str | None = None, out: Out,
) -> Work:  # fmt: skip
    """4mn² - 4n³/3 for the values; with vectors 6mn² + 20n³, or 4m²n + 22n³ if U is square.

    Estimated: it iterates.
    """
    batch, m, n = _dims(A)
    m, n = max(m, n), min(m, n)
    if not compute_uv:
        flops = 4 * m * n * n - 4 * n**3 // 3
    elif full_matrices:
        flops = 4 * m * m * n + 22 * n**3
    else:
        flops = 6 * m * n * n + 20 * n**3
    return _work(A, batch * flops, ESTIMATED)


@cost("aten::linalg_pinv")
def pinv(
    self: TensorRef, *, atol: Any = None, rtol: Any = None, hermitian: bool = False, out: Out
) -> Work:
    """A thin SVD, and V·S⁻¹·Uᵀ (2mn²).

    Estimated: it iterates.
    """
    batch, m, n = _dims(self)
    m, n = max(m, n), min(m, n)
    return _work(self, batch * (8 * m * n * n + 20 * n**3), ESTIMATED)


@cost("aten::linalg_matrix_exp")
def matrix_exp(self: TensorRef, *, out: Out) -> Work:
    """Five products of 2n³, those of the Taylor polynomial of degree 18.

    Estimated: the norm of the matrix decides the degree and the squarings.
    """
    batch, n, _ = _dims(self)
    return _work(self, batch * 10 * n**3, ESTIMATED)


@cost("aten::_compute_linear_combination")
def linear_combination(
    input: TensorRef, coefficients: TensorRef, *, out: Out
) -> Work:  # fmt: skip
    """A multiply-add for every coefficient and element."""
    return _work(input, 2 * out[0].numel * coefficients.shape[-1])


@cost("aten::lu_unpack")
def lu_unpack(
    LU_data: TensorRef, LU_pivots: TensorRef, unpack_data: bool = True,
    unpack_pivots: bool = True, *, out: Out,
) -> Work:  # fmt: skip
    """Copies the triangles and writes the permutation."""
    return Work(kind=COPY)


@cost("aten::_linalg_check_errors")
def check_errors(info: TensorRef, api_name: str, *, is_matrix: bool, out: Out) -> Work:
    """Looks at a status on the host."""
    return Work(kind=FREE)
