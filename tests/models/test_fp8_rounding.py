"""Quantising: bit for bit by the definition of the formats, and its error against theory."""

import math

import numpy as np
import pytest
import torch
from fp8_by_definition import positive_values, quantize, round_to
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tracer.models import fp8

DTYPES = {"e4m3": fp8.E4M3, "e5m2": fp8.E5M2}
GROUPS = {"tensor": (10**6, 10**6), "row": (1, 10**6), "tile": (1, 128), "block": (128, 128)}
formats = pytest.mark.parametrize("name", DTYPES)
schemes = pytest.mark.parametrize("scheme", GROUPS)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def student(*shape, freedom=3, seed=0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.standard_t(freedom, shape).astype(np.float32))


def test_the_definition_itself():
    e4m3, e5m2 = positive_values("e4m3"), positive_values("e5m2")
    # 2^8 · 1.75 and 2^15 · 1.75; smallest 2^-6 · 1/8 and 2^-14 · 1/4. Codes: 126 is 1111.110.
    assert (e4m3[1], e4m3[-1], len(e4m3)) == (2**-9, 448, 127)
    assert (e5m2[1], e5m2[-1], len(e5m2)) == (2**-16, 57344, 124)
    # 17 lies between 16 and 18, 19 between 18 and 20: ties go to even mantissas, 16 and 20.
    assert round_to(np.array([17.0, -19.0, 17.01]), "e4m3").tolist() == [16, -20, 18]


@formats
@schemes
@pytest.mark.parametrize("power_of_two", [False, True])
def test_bit_for_bit(scheme, name, power_of_two):
    x = student(150, 200) * torch.logspace(-9, 3, 150)[:, None]
    x[3] = 0.0
    x[4, :7] = torch.tensor([1.0, 2.0**-10, 3.0 * 2.0**-10, -(2.0**-9), 17 / 256, 19 / 256, 0.5])
    got = fp8.quantize(x, scheme, DTYPES[name], power_of_two=power_of_two)
    values, scales = quantize(x.numpy(), *GROUPS[scheme], name, power_of_two)
    assert np.array_equal(got.values.float().numpy(), values)
    assert np.array_equal(got.scale_of_each().numpy(), scales)
    assert np.array_equal(got.dequantize().numpy(), values.astype(np.float32) * scales)


@settings(deadline=None, max_examples=60)
@given(
    x=arrays(np.float32, (3, 130), elements=st.floats(-1e6, 1e6, width=32)),
    scheme=st.sampled_from(list(GROUPS)),
    name=st.sampled_from(list(DTYPES)),
    power_of_two=st.booleans(),
)
def test_bit_for_bit_anywhere(x, scheme, name, power_of_two):
    got = fp8.quantize(torch.from_numpy(x), scheme, DTYPES[name], power_of_two=power_of_two)
    values, scales = quantize(x, *GROUPS[scheme], name, power_of_two)
    assert np.array_equal(got.values.float().numpy(), values)
    assert np.array_equal(got.scale_of_each().numpy(), scales)


@schemes
def test_bf16_input_is_not_divided_in_bf16(scheme):
    x = normal(40, 260).bfloat16()
    got, want = fp8.quantize(x, scheme), fp8.quantize(x.float(), scheme)
    assert torch.equal(got.values.float(), want.values.float())
    assert torch.equal(got.scales, want.scales)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    freedom=st.sampled_from([2, 3, 10]),
    outlier=st.sampled_from([1.0, 1e3, 1e6]),
    scheme=st.sampled_from(list(GROUPS)),
    name=st.sampled_from(list(DTYPES)),
)
def test_error_is_bounded_on_heavy_tails_and_outliers(seed, freedom, outlier, scheme, name):
    """|Δ| ≤ max(2^-(m+1)·|x|, half the smallest subnormal · scale), m mantissa bits."""
    x = student(20, 150, freedom=freedom, seed=seed)
    x[seed % 20, seed % 150] *= outlier
    q = fp8.quantize(x, scheme, DTYPES[name])
    relative = {"e4m3": 2**-4, "e5m2": 2**-3}[name]
    smallest = {"e4m3": 2**-10, "e5m2": 2**-17}[name]
    bound = torch.maximum(relative * x.abs(), smallest * q.scale_of_each())
    # Dividing and multiplying by the scale round in FP32.
    assert ((q.dequantize() - x).abs() <= bound * (1 + 2**-10)).all()


@formats
def test_theory_of_a_log_uniform_mantissa(name):
    """Over whole binades: both measures at their formulas, here as 2^-(m+1)·… by hand."""
    random = torch.Generator().manual_seed(0)
    x = torch.exp2(-8 * torch.rand(400, 500, generator=random))  # eight binades below the top
    error = fp8.error_of(x, "tensor", DTYPES[name], power_of_two=True)
    half_step = {"e4m3": 2**-4, "e5m2": 2**-3}[name]
    assert fp8.rounding_error(DTYPES[name]) == pytest.approx(half_step * 0.42466, rel=1e-4)
    assert fp8.norm_error(DTYPES[name]) == pytest.approx(half_step * 0.39249, rel=1e-4)
    # 200,000 elements, 1/√N of a spread of order one: 0.3 %; the norm is ruled by the top binade,
    # a third as many.
    assert error.element == pytest.approx(fp8.rounding_error(DTYPES[name]), rel=0.01)
    assert error.norm == pytest.approx(fp8.norm_error(DTYPES[name]), rel=0.02)
    assert (error.underflow, error.subnormal) == (0, 0)


@formats
@schemes
def test_normal_numbers_against_quadrature(name, scheme):
    """The error of N(0, 1) as an integral over the density, for the scales that were used."""
    x = normal(256, 1024)
    z = (np.arange(200_000) + 0.5) / 200_000 * 12 - 6
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    scales, counts = np.unique(fp8.quantize(x, scheme, DTYPES[name]).scales, return_counts=True)
    if len(scales) > 40:  # the integral is smooth in the scale
        order = np.linspace(0, len(scales) - 1, 40).astype(int)
        scales, counts = scales[order], np.ones(40)
    largest = positive_values(name)[-1]
    squares, zeros, weights = [], [], []
    for scale, count in zip(scales, counts, strict=True):
        inside = np.abs(z) <= scale * largest  # nothing of a group lies beyond its largest
        back = round_to(z[inside] / scale, name) * scale
        share = density[inside].sum()
        squares.append(((back - z[inside]) ** 2 * density[inside]).sum() / share)
        zeros.append(density[inside][back == 0].sum() / share)
        weights.append(count)
    expected = math.sqrt(np.average(squares, weights=weights))
    error = fp8.error_of(x, scheme, DTYPES[name])
    # In a tile of 128 the largest itself, 6 % of the sum of squares, is exact and in the integral
    # is not.
    assert error.norm == pytest.approx(expected, rel=0.04 if scheme == "tile" else 0.01)
    underflow = np.average(zeros, weights=weights)
    n = x.numel()
    assert abs(error.underflow - underflow) <= 5 * math.sqrt(underflow / n) + 1 / n


@formats
def test_scale_hardly_matters_for_normal_numbers(name):
    """So no 1.8× from blocks: all schemes within 4 % of one another."""
    x = 0.02 * normal(512, 512)
    norms = [fp8.error_of(x, scheme, DTYPES[name]).norm for scheme in GROUPS]
    assert max(norms) / min(norms) < 1.04
    # An integer's step does follow the scale: 4.7σ over 2.6σ, the mean largest of 128.
    gain = fp8.fixed_point_error(x, "tensor") / fp8.fixed_point_error(x, "tile")
    assert 1.5 < gain < 2.0


def test_scale_matters_for_outliers():
    """One huge element zeroes all below 2^-10/448 of it: P(|z| < 1e5·2^-10/448) by erf."""
    x = normal(256, 256)
    x[5, 7] = 1e5
    tensor, block, tile = (fp8.error_of(x, s) for s in ("tensor", "block", "tile"))
    share = math.erf(1e5 * fp8.zero_below(fp8.E4M3) / math.sqrt(2))
    assert fp8.zero_below(fp8.E4M3) == 2**-10 / 448
    assert share == pytest.approx(0.1725, rel=0.01)  # 2·φ(0)·0.218 = 0.174, a little less
    deviation = math.sqrt(share / x.numel())
    assert tensor.underflow == pytest.approx(share, abs=4 * deviation)
    # A quarter of the elements share the outlier's block, 128 of 65,536 its tile.
    assert block.underflow == pytest.approx(share / 4, abs=4 * deviation)
    assert tile.underflow == pytest.approx(share * 128 / 65536, abs=4 * deviation)
    assert tensor.element > 1.9 * block.element > 3.8 * tile.element
    # E5M2 reaches 2^-17/57344: P(|z| < 1.3e-5) is 1.0e-5.
    assert fp8.error_of(x, "tensor", fp8.E5M2).underflow < 1e-4


@formats
@schemes
def test_zeros_and_equal_numbers(name, scheme):
    zeros = fp8.quantize(torch.zeros(130, 140), scheme, DTYPES[name])
    assert (zeros.dequantize() == 0).all()
    for value in (1 / 3, -7e-9, 3e30):
        x = torch.full((130, 140), value)
        back = fp8.quantize(x, scheme, DTYPES[name]).dequantize()
        # Two roundings in FP32: c/448 and its multiple.
        assert ((back - x).abs() <= 2**-23 * x.abs()).all()
        x = x.bfloat16()
        assert torch.equal(fp8.quantize(x, scheme, DTYPES[name]).dequantize().bfloat16(), x)


@formats
@schemes
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_nan_and_inf_poison_their_group_and_no_other(name, scheme, power_of_two, bad):
    x = normal(256, 256)
    clean = fp8.quantize(x, scheme, DTYPES[name], power_of_two=power_of_two).dequantize()
    x[130, 200] = bad
    back = fp8.quantize(x, scheme, DTYPES[name], power_of_two=power_of_two).dequantize()
    rows, columns = GROUPS[scheme]
    row, column = torch.arange(256)[:, None], torch.arange(256)[None, :]
    group = (row // rows == 130 // rows) & (column // columns == 200 // columns)
    assert back[group].isnan().all()
    assert torch.equal(back[~group], clean[~group])


@settings(deadline=None, max_examples=200)
@given(st.floats(1e-18, 1e30))
def test_powers_of_two_are_the_next_one_up(amax):
    x = torch.tensor([[amax]], dtype=torch.float32)
    exact = fp8.quantize(x, "tensor").scales.item()
    scale = fp8.quantize(x, "tensor", power_of_two=True).scales.item()
    assert math.frexp(scale)[0] == 0.5
    assert exact <= scale < 2 * exact


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 2), "column"), "scheme is 'column'; supported are tensor, row, tile"),
        ((torch.zeros(2, 2), "row", torch.float16), "dtype is torch.float16; supported"),
        ((torch.zeros(2, 2, 2), "row"), r"shape is \(2, 2, 2\); scaling takes a matrix"),
        ((torch.zeros(0, 2), "tensor"), r"shape is \(0, 2\); scaling takes a matrix with"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(fp8.Fp8Error, match=message):
        fp8.quantize(*arguments)
