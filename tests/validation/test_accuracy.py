"""Errors on measured kernels that no constant was fitted to, against the targets of the project."""

import pytest

from tracer.machine.adapters import eager_rows
from tracer.machine.eager import score_eager
from tracer.machine.measured import open_table, read_folder
from tracer.validate import score

# Family -> mean absolute error in % over 100 µs and overall, on rows that were not fitted.
TARGETS = {
    "gemm": (5, 6),
    "gemm_fp8": (8, 10),
    "gemm_fp8_block": (8, 10),
    "attention_prefill": (8, 9),
    "mla_prefill": (8, 9),
    "attention_decode": (5, 8),
    "mla_decode": (5, 8),
    "grouped": (12, 15),
    "collective": (8, 10),
}
BIAS = 3  # % of signed error, over 100 µs and overall


@pytest.fixture(scope="module")
def lines(measured):
    found = [score(rows) for rows in read_folder(measured)]
    return {(line.family, line.chip): line for line in found if line is not None}


CASES = [
    *((family, "h200_sxm") for family in TARGETS),
    *((family, "h100_sxm") for family in ("gemm", "gemm_fp8", "gemm_fp8_block")),
]


@pytest.mark.parametrize(("family", "chip"), CASES)
def test_target(lines, family, chip):
    line = lines[family, chip]
    assert line.unseen
    long, every = TARGETS[family]
    assert line.score.rows >= 60
    assert line.score.mape * 100 <= every
    assert abs(line.score.bias) * 100 <= BIAS
    over_100_us = line.classes[-1]
    assert over_100_us.mape * 100 <= long
    assert abs(over_100_us.bias) * 100 <= BIAS


@pytest.mark.parametrize(("family", "chip"), CASES)
def test_it_beats_a_roofline_by_far(lines, family, chip):
    line = lines[family, chip]
    assert line.score.mape < line.plain.mape / 3
    assert line.score.mape < line.single.mape / 2


@pytest.mark.parametrize(("family", "chip"), CASES)
def test_the_interval_of_one_kernel_means_what_it_says(lines, family, chip):
    # P10 to P90 should hold four fifths of the measurements.
    assert 0.6 <= lines[family, chip].inside <= 0.92


def test_eager_forward(measured):
    path = next(measured.glob("eager_ops_*.csv"))
    with open_table(path) as table:
        result = score_eager(path.stem, list(eager_rows(table)))
    assert result.measured == pytest.approx(31.905, abs=0.01)
    assert result.predicted == pytest.approx(31.905, rel=0.12)
    assert len(result.classes) == 6
    for name, (predicted, ms) in result.classes.items():
        assert predicted == pytest.approx(ms, rel=0.25), name
