"""Fourier transforms and decompositions against algorithms run with numbers that count."""

import cmath
import math

import pytest
import torch
from op_records import Counted, ledger_of, record, ref, work

aten = torch.ops.aten

COMPLEX_MULTIPLY, COMPLEX_ADD = 6, 2  # (a + bi)(c + di): 4 multiplies, 2 adds


class Transform:
    """The radix-2 transform, counting the real operations of its butterflies."""

    def __init__(self):
        self.steps = 0

    def __call__(self, x):
        if len(x) == 1:
            return x
        even, odd = self(x[::2]), self(x[1::2])
        n = len(x)
        turned = [cmath.exp(-2j * cmath.pi * k / n) * odd[k] for k in range(n // 2)]
        self.steps += n // 2 * (COMPLEX_MULTIPLY + 2 * COMPLEX_ADD)
        return [e + t for e, t in zip(even, turned, strict=True)] + [
            e - t for e, t in zip(even, turned, strict=True)
        ]


@pytest.mark.parametrize("n", [1, 2, 8, 64, 256])
def test_complex_transform(n):
    radix2 = Transform()
    x = torch.randn(n, dtype=torch.complex128)
    assert torch.allclose(torch.tensor(radix2(x.tolist()), dtype=x.dtype), torch.fft.fft(x))
    assert ledger_of(torch.fft.fft, x).total().vector_flops == radix2.steps
    assert ledger_of(torch.fft.fft, torch.randn(3, n)).total().total_flops == 0


def test_real_transforms_are_half_of_a_complex_one():
    n, batch = 64, 3
    radix2 = Transform()
    radix2([1.0] * n)
    x = torch.randn(batch, n)
    assert ledger_of(torch.fft.rfft, x).total().vector_flops == batch * radix2.steps // 2
    back = ledger_of(torch.fft.irfft, torch.randn(batch, n // 2 + 1, dtype=torch.complex64))
    scale = batch * n  # an inverse is divided by n
    assert back.total().vector_flops == batch * radix2.steps // 2 + scale


def test_two_dimensions_are_rows_then_columns():
    rows, columns = 8, 32
    by_rows, by_columns = Transform(), Transform()
    by_rows([1.0] * columns)
    by_columns([1.0] * rows)
    x = torch.randn(rows, columns, dtype=torch.complex64)
    expected = rows * by_rows.steps + columns * by_columns.steps
    assert ledger_of(torch.fft.fft2, x).total().vector_flops == expected


def test_sizes_that_are_no_power_of_two():
    x = torch.randn(2, 100, dtype=torch.complex64)
    expected = round(2 * 5 * 100 * math.log2(100))
    assert ledger_of(torch.fft.fft, x).total().vector_flops == expected


# -- linear algebra, to leading order --------------------------------------------------------------

N = 24


def counted_matrix(rows, columns):
    return [[Counted(1.0 + (i == j) * columns) for j in range(columns)] for i in range(rows)]


def run_lu(m, n):
    a = counted_matrix(m, n)
    for k in range(min(m, n)):
        for i in range(k + 1, m):
            factor = a[i][k] / a[k][k]
            for j in range(k + 1, n):
                a[i][j] = a[i][j] - factor * a[k][j]


def run_cholesky(n):
    a = counted_matrix(n, n)
    for k in range(n):
        a[k][k] = a[k][k].sqrt()
        for i in range(k + 1, n):
            a[i][k] = a[i][k] / a[k][k]
        for j in range(k + 1, n):
            for i in range(j, n):
                a[i][j] = a[i][j] - a[i][k] * a[j][k]


def run_triangular(n, columns):
    a, b = counted_matrix(n, n), counted_matrix(n, columns)
    for c in range(columns):
        for i in range(n):
            for j in range(i):
                b[i][c] = b[i][c] - a[i][j] * b[j][c]
            b[i][c] = b[i][c] / a[i][i]


def run_householder_qr(m, n):
    """R only: every reflector meets the columns right of it."""
    a = counted_matrix(m, n)
    for k in range(n):
        norm = Counted(0.0)
        for i in range(k, m):
            norm = norm + a[i][k] * a[i][k]
        norm = norm.sqrt()
        a[k][k] = a[k][k] + norm
        for j in range(k + 1, n):
            along = Counted(0.0)
            for i in range(k, m):
                along = along + a[i][k] * a[i][j]
            along = along / (norm * a[k][k])
            for i in range(k, m):
                a[i][j] = a[i][j] - along * a[i][k]


def steps(function, *sizes):
    Counted.reset()
    function(*sizes)
    return Counted.total()


def matrix(*shape):
    a = torch.randn(*shape, dtype=torch.float64)
    return a @ a.mT + N * torch.eye(N, dtype=a.dtype) if shape[-1] == shape[-2] == N else a


CASES = {
    "cholesky": (lambda: ledger_of(torch.linalg.cholesky, matrix(N, N)), (run_cholesky, N)),
    "lu": (lambda: ledger_of(torch.linalg.lu_factor, matrix(N, N)), (run_lu, N, N)),
    "wide lu": (lambda: ledger_of(torch.linalg.lu_factor, matrix(16, 40)), (run_lu, 16, 40)),
    "tall lu": (lambda: ledger_of(torch.linalg.lu_factor, matrix(40, 16)), (run_lu, 40, 16)),
    "r of qr": (
        lambda: ledger_of(torch.linalg.qr, matrix(40, 16), "r"),
        (run_householder_qr, 40, 16),
    ),
    "triangular": (
        lambda: ledger_of(
            torch.linalg.solve_triangular, matrix(N, N).triu(), matrix(N, 5), upper=True
        ),
        (run_triangular, N, 5),
    ),
    "determinant": (lambda: ledger_of(torch.linalg.det, matrix(N, N)), (run_lu, N, N)),
}


@pytest.mark.parametrize("name", CASES)
def test_factorisations_by_running_them(name):
    """The formulas are leading terms; what is left out is of the next order, n² in n³."""
    traced, algorithm = CASES[name]
    total = traced().total()
    expected = steps(*algorithm)
    assert total.total_flops == 0
    assert abs(total.vector_flops - expected) / expected < 0.12


def test_solves_are_a_factorisation_and_two_triangular_solves():
    lu, triangular = steps(run_lu, N, N), steps(run_triangular, N, 5)
    total = ledger_of(torch.linalg.solve, matrix(N, N), matrix(N, 5)).total()
    assert abs(total.vector_flops - (lu + 2 * triangular)) / (lu + 2 * triangular) < 0.1
    again = record(
        aten.linalg_lu_solve.default, ref(N, 5), LU=ref(N, N), pivots=ref(N), B=ref(N, 5)
    )
    assert work(again).vector == 2 * N * N * 5
    cholesky = record(aten.cholesky_solve.default, ref(N, 5), self=ref(N, 5), input2=ref(N, N))
    assert work(cholesky).vector == 2 * N * N * 5


def test_an_inverse_solves_for_every_column_of_the_identity():
    """2n³/3 for the LU, and 4n³/3 where the zeros of the identity are not multiplied."""
    assert ledger_of(torch.linalg.inv, matrix(N, N)).total().vector_flops == 2 * N**3


def test_batches_are_sums():
    one = ledger_of(torch.linalg.cholesky, matrix(N, N)).total().vector_flops
    many = torch.stack([matrix(N, N)] * 6).view(2, 3, N, N)
    assert ledger_of(torch.linalg.cholesky, many).total().vector_flops == 6 * one


def test_complex_factorisations_count_four_times():
    """A complex multiply-add has 4 multiplies and 4 adds for one of each."""
    real = ref(N, N, dtype="float64")
    cplx = ref(N, N, dtype="complex128")
    one = work(record(aten.linalg_lu_factor_ex.default, real, A=real)).vector
    assert work(record(aten.linalg_lu_factor_ex.default, cplx, A=cplx)).vector == 4 * one


def test_the_iterative_ones_say_that_they_are_estimates():
    a = matrix(N, N)
    for function in (torch.linalg.svd, torch.linalg.eigh, torch.linalg.eig, torch.linalg.svdvals):
        ledger = ledger_of(function, a)
        assert {part.confidence for part in ledger.parts()} == {"estimated"}
        assert ledger.total().vector_flops >= N**3  # each does at least one reduction of n³
        assert ledger.total().total_flops == 0
