"""The fit finds constants that it was given, and refuses those that the rows cannot show."""

import numpy as np
import pytest

from tracer.hardware import load_chip
from tracer.machine.calibration import calibration_of
from tracer.machine.families import predict
from tracer.machine.fit import FitError, fit

RANDOM = np.random.default_rng(7)
SIZES = np.exp(RANDOM.uniform(np.log(1e3), np.log(1e9), 200))


def line(values, sizes=SIZES):
    """Latency and bandwidth."""
    return values["latency"] + sizes / values["bandwidth"]


def test_it_finds_latency_and_bandwidth():
    true = {"latency": 3e-6, "bandwidth": 2e12}
    found = fit(line, line(true), {"latency": 1e-6, "bandwidth": 1e13})
    assert found.values == pytest.approx(true, rel=1e-4)
    assert max(found.spreads.values()) < 1e-4
    assert 1 <= found.condition < 10


def test_noise_of_five_percent_widens_the_spreads_and_moves_the_values_little():
    true = {"latency": 3e-6, "bandwidth": 2e12}
    noisy = line(true) * np.exp(RANDOM.normal(0, 0.05, 200))
    found = fit(line, noisy, {"latency": 1e-6, "bandwidth": 1e13})
    assert found.values == pytest.approx(true, rel=0.03)
    assert 0.002 < max(found.spreads.values()) < 0.03


def test_a_few_wild_rows_do_not_matter():
    true = {"latency": 3e-6, "bandwidth": 2e12}
    wild = line(true)
    wild[::20] *= 30  # plain least squares of the logarithms: 18 % off
    found = fit(line, wild, {"latency": 1e-6, "bandwidth": 1e13})
    assert found.values == pytest.approx(true, rel=0.06)


def test_a_constant_that_no_row_sees_is_refused():
    large = SIZES + 1e10

    def model(values):
        return line(values, large)

    with pytest.raises(FitError, match="no row depends on latency"):
        fit(model, model({"latency": 3e-9, "bandwidth": 2e12}),
            {"latency": 1e-9, "bandwidth": 1e12})  # fmt: skip


def test_constants_that_only_show_as_a_product_are_refused():
    def model(values):
        return 1e-6 + SIZES / (values["share"] * values["rate"])

    with pytest.raises(FitError, match=r"combination of (share, rate|rate, share)"):
        fit(model, model({"share": 0.5, "rate": 1e12}), {"share": 0.9, "rate": 1e12})


def test_too_few_rows_are_refused():
    with pytest.raises(FitError, match="3 rows cannot fit 2 constants"):
        fit(lambda v: line(v, SIZES[:3]), np.ones(3), {"latency": 1e-6, "bandwidth": 1e12})


def test_an_upper_limit_holds():
    fast = line({"latency": 3e-6, "bandwidth": 2e12})
    start = {"latency": 1e-6, "bandwidth": 5e11}
    found = fit(line, fast, start, upper={"bandwidth": 1e12})
    assert found.values["bandwidth"] == pytest.approx(1e12)


def test_gemm_constants_come_back_from_their_own_times():
    cal = calibration_of(load_chip("h200_sxm"))
    grid = [(m, n, k) for m in (1, 64, 512, 8192) for n in (512, 4096, 12288)
            for k in (128, 2048, 16384)]  # fmt: skip
    x = dict(zip("mnk", np.array(grid, float).T, strict=True))
    true = {"launch": 4e-6, "memory": 0.7, "matrix": 0.6, "prologue": 300.0}

    def model(values):
        changed = cal
        for name, value in values.items():
            changed = changed.with_value("gemm", name, value)
        return predict("gemm", x, changed)

    start = {"launch": 2e-6, "memory": 0.9, "matrix": 0.9, "prologue": 100.0}
    assert fit(model, model(true), start).values == pytest.approx(true, rel=1e-3)
