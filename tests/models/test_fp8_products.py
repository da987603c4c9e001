"""Products of scaled matrices: kernel against emulation, and Hopper's sum by exact fractions."""

import math
from fractions import Fraction
from typing import get_args

import pytest
import torch

from tracer.models import fp8
from tracer.models.fp8.scaling import Scheme


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("a_scheme", get_args(Scheme))
@pytest.mark.parametrize("b_scheme", get_args(Scheme))
@pytest.mark.parametrize("dtype", [fp8.E4M3, fp8.E5M2])
@pytest.mark.parametrize("out", [torch.bfloat16, torch.float32])
def test_product(a_scheme, b_scheme, dtype, out):
    """Every pair of schemes, whether a kernel runs it or not: the exact sum in FP64."""
    a = fp8.quantize(normal(33, 300) * torch.logspace(-2, 2, 33)[:, None], a_scheme, dtype)
    b = fp8.quantize(normal(140, 300, seed=1) * torch.logspace(-2, 2, 140)[:, None], b_scheme)
    got = fp8.product(a, b, out)
    want = a.dequantize().double() @ b.dequantize().double().t()
    terms = a.dequantize().double().abs() @ b.dequantize().double().abs().t()
    # 300 additions in FP32 and what rounds the result: 2^-8 of a BF16, ½ ulp each side of a tie.
    bound = 300 * 2**-24 * terms + (2**-8 * want.abs() if out == torch.bfloat16 else 0)
    assert got.dtype == out
    assert ((got.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("scheme", ["tensor", "row"])
def test_the_kernel_is_used_where_there_is_one(scheme, monkeypatch):
    calls = []
    kernel = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    fp8.product(fp8.quantize(normal(32, 64), scheme), fp8.quantize(normal(16, 64), scheme))
    assert calls == [1]
    fp8.product(fp8.quantize(normal(32, 64), "tile"), fp8.quantize(normal(16, 64), "block"))
    assert calls == [1]  # CPU has none by block


def instruction(c: Fraction, products: list[Fraction]) -> Fraction:
    """The docstring of `accumulate`, in exact arithmetic."""

    def floor_log2(t: Fraction) -> int:
        e = t.numerator.bit_length() - t.denominator.bit_length()
        return e if t >= Fraction(2) ** e else e - 1

    def cut(t: Fraction, unit: Fraction) -> Fraction:
        return math.trunc(t / unit) * unit  # trunc is toward zero

    terms = [c, *products]
    largest = max(abs(t) for t in terms)
    if not largest:
        return Fraction(0)
    unit = Fraction(2) ** (floor_log2(largest) - 13)
    total = sum(cut(t, unit) for t in terms)
    return cut(total, Fraction(2) ** (floor_log2(abs(total)) - 13)) if total else total


def by_fractions(a, b, promote):
    """The sum of a_k·b_k; partial sums rounded to FP32 where they are promoted."""
    total, c = torch.zeros(()), Fraction(0)
    for start in range(0, len(a), 32):
        if promote and start % promote == 0:
            total, c = total + torch.tensor(float(c), dtype=torch.float32), Fraction(0)
        pairs = zip(a[start : start + 32], b[start : start + 32], strict=True)
        c = instruction(c, [Fraction(x) * Fraction(y) for x, y in pairs])
    return (total + torch.tensor(float(c), dtype=torch.float32)).item()


@pytest.mark.parametrize("promote", [None, 128, 64])
@pytest.mark.parametrize("k", [20, 300])
@pytest.mark.parametrize("dtype", [fp8.E4M3, fp8.E5M2])
def test_hopper_sum_by_fractions(promote, k, dtype):
    """Bit for bit, over a wide range and with signs."""
    a = (normal(5, k) * torch.exp2(4 * normal(5, k, seed=1))).clamp(-400, 400).to(dtype)
    b = normal(4, k, seed=2).to(fp8.E4M3)
    got = fp8.hopper_sum(a, b, promote)
    for i in range(5):
        for j in range(4):
            want = by_fractions(a[i].float().tolist(), b[j].float().tolist(), promote)
            assert got[i, j].item() == want


def test_hopper_sum_by_hand():
    """256 sets the unit 2^(8-13) = 1/32: 1/64 is lost, 1/32 stays, 3/64 becomes 1/32."""
    ones = torch.ones(1, 32).to(fp8.E4M3)

    def total(*values, promote=None):
        row = torch.tensor([[*values, *[0.0] * (32 - len(values))]])
        return fp8.hopper_sum(row.to(fp8.E4M3), ones, promote).item()

    assert total(1 / 64, 1 / 64) == 1 / 32  # alone they are exact
    assert total(256.0, 1 / 64, 1 / 64) == 256
    assert total(256.0, 1 / 32) == 256 + 1 / 32
    assert total(256.0, 3 / 64) == 256 + 1 / 32
    assert total(256.0, -3 / 64) == 256 - 1 / 32  # toward zero
    # 256·32 = 2^13 has the unit 1: 129 elements on, a half is lost unless it starts from zero.
    row = torch.tensor([[256.0] * 32 + [0.0] * 96 + [0.5] * 32]).to(fp8.E4M3)
    col = torch.ones(1, 160).to(fp8.E4M3)
    assert fp8.hopper_sum(row, col, None).item() == 8192
    assert fp8.hopper_sum(row, col, 128).item() == 8192 + 16


def sum_errors(draw, size, k):
    """(relative error in the norm, largest error over the RMS of results), by accumulation."""
    a, b = fp8.quantize(draw(size, k), "tensor"), fp8.quantize(draw(size, k, seed=1), "tensor")
    want = a.dequantize().double() @ b.dequantize().double().t()
    rms, result = want.square().mean().sqrt(), {}
    for accumulate in ("fp32", "hopper", "promoted"):
        off = fp8.product(a, b, torch.float32, accumulate).double() - want
        result[accumulate] = ((off.norm() / want.norm()).item(), (off.abs().max() / rms).item())
    return result


def test_promotion_repairs_4096():
    """Section 3.3.2: "a maximum relative error of nearly 2%" at K = 4096, without promotion."""
    errors = sum_errors(normal, 128, 4096)
    assert 0.01 < errors["hopper"][1] < 0.02
    # Each of the 32 partial sums is off as one of K = 128 is, at random: no growth with K.
    assert errors["promoted"][0] == pytest.approx(
        sum_errors(normal, 128, 128)["hopper"][0], rel=0.1
    )
    assert errors["hopper"][0] > 8 * errors["promoted"][0]
    assert errors["fp32"][0] < 1e-6


def test_sums_of_one_sign_drift():
    """Of positive terms all cuts point down, by half a unit on average once it is above their own.

    With terms of 1/4 on average the accumulator is in [512, 1024) for the second half: the unit is
    1/16, half of it 1/8 of the mean term. The half before it loses half as much, and so on:
    1/8 · (1/2 + 1/8 + 1/32 + ...) = 1/8 · 2/3 = 8.3 %, less where terms are multiples of the unit.
    """

    def uniform(*shape, seed=0):
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

    errors = sum_errors(uniform, 32, 4096)
    assert 0.06 < errors["hopper"][0] < 0.0834
    assert errors["promoted"][0] < 1e-3


def test_scales_along_k_are_applied_at_promotion():
    a = fp8.quantize(normal(20, 300) * torch.logspace(-3, 3, 300), "tile")
    b = fp8.quantize(normal(140, 300, seed=1), "block")
    got = fp8.product(a, b, torch.float32, "promoted").double()
    want = a.dequantize().double() @ b.dequantize().double().t()
    terms = a.dequantize().double().abs() @ b.dequantize().double().abs().t()
    # An instruction cuts 33 terms and its result by a unit of at most 2^-13 of Σ|a·b| of its tile;
    # four to a tile.
    assert ((got - want).abs() <= 4 * 34 * 2**-13 * terms).all()
    assert (got - want).norm() / want.norm() < 1e-3
    with pytest.raises(fp8.Fp8Error, match="scales by block and tile change along"):
        fp8.product(a, b, accumulate="hopper")


def test_refusals():
    a, b = fp8.quantize(normal(4, 32), "row"), fp8.quantize(normal(4, 48), "row")
    with pytest.raises(fp8.Fp8Error, match="contractions differ: 32 of a and 48 of b"):
        fp8.product(a, b)
    with pytest.raises(fp8.Fp8Error, match="accumulate is 'fp16'; supported are fp32, hopper, p"):
        fp8.product(a, a, accumulate="fp16")
