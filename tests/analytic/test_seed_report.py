"""The rules of `seed_report_rules.py` are the seed report's: every cell it printed comes out.

That report is no truth; that its rules are restated exactly makes a comparison with it fair.
"""

import functools
import json
import tomllib
from pathlib import Path

import pytest
import seed_report_rules as rules
import seed_report_studies as studies
from mla_formulas import Dims
from seed_report_tables import Table, tables, worked_example

from tracer.models import bundled_config

ROOT = Path(__file__).parents[2]
FIGURES = tomllib.loads((ROOT / "tests" / "published" / "seed_report.toml").read_text())
WHOLE = ROOT.parent / "shared" / "facts" / "seed_report_tables.json"

# Tables of words: terms (2), fingerprint (4.1), notation, formulas, byte terms (5.2, 5.4, 5.6).
WORDS = {("2", None), ("4.1", None), ("5.2", None), ("5.4", None), ("5.6", None)}
TARGETS = "Roofline Targets (FP8 Dense)"


@functools.cache
def ours() -> dict[str, Table]:
    return tables()


@functools.cache
def grid():
    return studies.sensitivity_grid()


@pytest.fixture(scope="module")
def printed():
    """The report's tables by our names; skips where they are not at hand."""
    if not WHOLE.is_file():
        pytest.skip("no ../shared/facts/seed_report_tables.json")
    found = {}
    for table in json.loads(WHOLE.read_text())["tables"]:
        if (table["section"], table["subtitle"]) not in WORDS:
            name = "6.2 targets" if table["subtitle"] == TARGETS else table["section"]
            found[name] = table["rows"]
    return found


def test_the_sizes_are_those_of_the_model():
    """The report leaves the gate's bias out; everything else is the released config."""
    config = Dims.of(bundled_config("deepseek-ai/DeepSeek-V3"))
    assert config.gate_bias and not rules.V3.gate_bias
    assert {**vars(config), "gate_bias": False} == vars(rules.V3)


@pytest.mark.parametrize("section", [name for name in FIGURES if "text" not in name])
def test_restated_rows(section):
    """Rows stand in the table that the rules print, in the same order."""
    rows = iter(ours()[section])
    for want in FIGURES[section]["rows"]:
        assert want in rows, f"{section}: {want}"


def test_worked_example():
    step = worked_example()
    cells = [
        f"{step.sum('flops'):.3e}", f"{step.sum('bytes_hbm'):.3e}", f"{step.intensity:.3e}",
        f"{1e3 * step.compute_seconds:.3f}", f"{1e3 * step.memory_seconds:.3f}",
        f"{step.achieved / 1e12:.2f}",
    ]  # fmt: skip
    assert [cells] == FIGURES["6.6.4 text"]["rows"]


def test_every_cell_of_every_numeric_table(printed):
    """Eighteen tables, 954 cells, 54 of them inputs (4.1, 5.3); five others are words."""
    assert set(ours()) == set(printed)
    for name, rows in printed.items():
        assert ours()[name] == rows, name
    cells = {name: sum(map(len, rows)) for name, rows in ours().items()}
    assert sum(cells.values()) == 954
    assert cells["4.1"] + cells["5.3"] == 54


def test_the_rules_take_symbols():
    """One expression for all sizes; at the anchor it is the number (exp included)."""
    sympy = pytest.importorskip("sympy")
    b, s = sympy.symbols("B S", positive=True)
    for phase in rules.PHASES.values():
        for x in rules.EXECUTIONS:
            symbolic, concrete = phase(b, s, x), phase(8, 255, x)
            for what in ("flops", "weights", "activations", "kv", "temporary"):
                value = sympy.sympify(symbolic.sum(what)).subs({b: 8, s: 255})
                assert float(value) == pytest.approx(concrete.sum(what), rel=1e-12)
    flops = sympy.expand(rules.prefill(b, s).sum("flops"))
    # 61 layers · 128 heads · 641 FLOPs a pair; all S² of them.
    assert flops.coeff(s, 2) == 61 * 128 * 641 * b == 5_004_928 * b


def test_grid_is_whole():
    """432 different points; the anchor's sizes among them give the plain decode step."""
    assert len(grid()) == len({p[:6] for p in grid()}) == 2 * 2 * 3 * 3 * 3 * 4
    for x in rules.EXECUTIONS:
        point = next(p for p in grid() if p[:6] == (x, 1, 8, 1.0, 1.0, 2048))
        assert point.step.sum("flops") == rules.decode(8, 2048, x).sum("flops")
        assert point.step.seconds == pytest.approx(rules.decode(8, 2048, x).seconds, rel=1e-14)


def test_all_of_the_grid_waits_for_memory():
    """By a hair: charging M = 8 rows an eighth of the peak brings compute to 0.96 of memory."""
    assert {p.step.regime for p in grid()} == {"hbm-bound"}
    nearest = max(p.step.compute_seconds / p.step.memory_seconds for p in grid())
    assert nearest == pytest.approx(0.962, abs=5e-4)


def test_a_rank_below_the_hidden_scale_moves_only_the_cache():
    """`hidden · max(hidden, rank)`: at hidden 1.25, ranks 0.5 and 1.0 cost the same FLOPs."""
    low, middle, high = (
        studies.grid_step(rules.EFFICIENT, 1, 8, rank, 1.25, 2048).lines[rules.ATTENTION]
        for rank in studies.RANK_SCALES
    )
    assert low.flops == middle.flops < high.flops
    assert low.weights == middle.weights
    assert 2 * low.kv == middle.kv == 61 * 576 * 8 * 2049


def test_the_module_prints_the_ends_and_the_ranking():
    """Ten points of section 7 with their T_est and the five knobs of 7.1."""
    lines = list(studies.summary())
    assert len(lines) == 15
    for line, row in zip(lines, FIGURES["7"]["rows"], strict=False):
        assert line.split()[-1] == row[7]
    for line, row in zip(lines[10:], FIGURES["7.1"]["rows"], strict=True):
        assert line.startswith(row[0]) and row[1] in line
