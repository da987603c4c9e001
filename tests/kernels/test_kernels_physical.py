"""What must hold of any shape, with the constants of every chip: no time below the roofline, more
work takes no less time.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from simple_chip import sizes, small

from tracer.hardware import chip_ids, load_chip
from tracer.machine.calibration import calibration_of, rates
from tracer.machine.families import PRECISIONS, predict, roofline
from tracer.machine.measured import COLUMNS

CHIPS = ("h200_sxm", "h100_sxm", "b200_sxm", "a100_sxm", "l40s", "mi300x", "tpu7x", "trainium2")
RANGES = {
    "m": sizes, "n": sizes, "k": sizes, "heads": small, "kv_heads": st.integers(1, 16),
    "batch": small, "keys": sizes, "size": st.integers(16, 256), "tokens": sizes,
    "top_k": st.integers(1, 16), "experts": small, "hidden": st.integers(64, 16384),
    "inner": st.integers(64, 16384), "bytes": st.integers(1, 1 << 33), "elements": sizes,
    "ranks": st.integers(2, 8), "reduces": st.integers(0, 1), "access": st.integers(0, 3),
}  # fmt: skip
# Not more work: eight ranks with a switch that adds up send less than three without; more KV heads
# for the same heads leave fewer rows to pad.
OTHER = ("ranks", "access", "reduces", "top_k", "experts", "kv_heads")
GROWING = {
    name: [column for column in columns if column not in OTHER] for name, columns in COLUMNS.items()
}


@st.composite
def shapes(draw, family):
    values = {name: float(draw(RANGES[name])) for name in COLUMNS[family]}
    if "kv_heads" in values:
        values["heads"] *= values["kv_heads"]
    return values


def columns_of(*rows):
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("family", COLUMNS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_kernel_beats_the_datasheet(family, data):
    chip = load_chip(data.draw(st.sampled_from(CHIPS)))
    x = columns_of(data.draw(shapes(family)))
    if family == "collective":
        # The ring's volume is no bound where a switch adds up: n ranks receive B bytes at least.
        assert chip.link_bandwidth
        bound = x["bytes"] * (x["ranks"] - 1) / x["ranks"] / chip.link_bandwidth
    else:
        bound = np.maximum(*roofline(family, x, chip))
    seconds = predict(family, x, calibration_of(chip))
    assert np.isfinite(seconds).all()
    assert (seconds >= bound * (1 - 1e-9)).all()


@pytest.mark.parametrize("family", COLUMNS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_more_work_takes_no_less_time(family, data):
    calibration = calibration_of(load_chip(data.draw(st.sampled_from(CHIPS))))
    first = data.draw(shapes(family))
    name = data.draw(st.sampled_from(GROWING[family]))
    assume(not (name == "heads" and "kv_heads" in first))  # heads come in whole groups
    second = {**first, name: first[name] + data.draw(st.integers(1, 10_000))}
    before, after = predict(family, columns_of(first, second), calibration)
    # A continuous split of k moves along its optimum, which floating point finds to 1e-9.
    assert after >= before * (1 - 1e-6), (name, first)


def test_long_products_approach_the_rate_that_the_constants_give():
    chip = load_chip("h200_sxm")
    cal = calibration_of(chip)
    x = {name: np.array([1e5]) for name in ("m", "n", "k")}
    seconds = float(predict("gemm", x, cal)[0])
    share = 2e15 / seconds / rates(chip, "bf16").matrix
    # The main loop's share less the sag of a kernel that runs for seconds.
    assert share == pytest.approx(cal["gemm"].matrix / (1 + cal["power"].sag), rel=0.01)


def test_long_decode_approaches_the_memory():
    chip = load_chip("h200_sxm")
    x = {"heads": 32.0, "kv_heads": 8.0, "batch": 256.0, "keys": 131072.0, "size": 128.0}
    seconds = predict("attention_decode", {k: np.array([v]) for k, v in x.items()},
                      calibration_of(chip))  # fmt: skip
    nbytes = 256 * 8 * 131072 * 2 * 128 * 2
    share = nbytes / seconds[0] / chip.memory_bandwidth
    assert share == pytest.approx(calibration_of(chip)["attention_decode"].memory, rel=0.01)


def test_nothing_is_faster_than_a_launch():
    cal = calibration_of(load_chip("h200_sxm"))
    x = {name: np.array([1.0]) for name in ("m", "n", "k")}
    assert predict("gemm", x, cal)[0] >= cal["gemm"].launch


@pytest.mark.parametrize("chip_id", chip_ids())
def test_every_chip_has_constants_and_says_whose(chip_id):
    chip = load_chip(chip_id)
    cal = calibration_of(chip)
    assert chip.name in cal.note()
    assert cal.status() in ("calibrated", "same generation", "uncalibrated")
    assert ("UNCALIBRATED" in cal.note()) == (cal.status() == "uncalibrated")
    for family, precision in PRECISIONS.items():
        if precision in chip.peak:
            x = {name: np.array([64.0]) for name in COLUMNS[family]}
            x = {**x, **({"access": np.array([0.0])} if "access" in x else {})}
            assert np.isfinite(predict(family, x, cal)).all()


def test_matrix_work_reaches_as_far_as_the_best_measured_product():
    base, other = load_chip("h200_sxm"), load_chip("mi300x")
    cal = calibration_of(other)
    # 668.4 of 1307.4 TFLOP/s on an MI300X, 794.5 of 989.4 on Hopper.
    ratio = (668.4 / 1307.4) / (794.5 / 989.4)
    assert cal.rates("bf16").matrix == pytest.approx(rates(other, "bf16").matrix * ratio, rel=2e-3)
    assert calibration_of(base).rates("bf16") == rates(base, "bf16")
    assert cal.origin["power"] == cal.origin["gemm"] == "h200_sxm"


def test_whose_constants():
    def status(chip_id):
        return calibration_of(load_chip(chip_id)).status()

    assert status("h100_sxm") == status("h800_sxm") == "same generation"
    assert status("b200_sxm") == status("a100_sxm") == status("mi300x") == "uncalibrated"
    assert status("h20") == "uncalibrated"  # Hopper, but its SMs are capped


def test_shares_stay_shares():
    cal = calibration_of(load_chip("h200_sxm"))
    for family, values in cal.families.items():
        for name, value in values._asdict().items():
            assert value >= 0
            if name in ("memory", "matrix", "link", "portable", "exposed"):
                assert value <= 1, (family, name)
        assert len(values) <= 6, family
