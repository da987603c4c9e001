"""docs/seed_tables.md: all 23 tables, each figure from its own source."""

import importlib.util
from pathlib import Path

import pytest
import seed_report_rules as rules
import seed_report_traced as traced

from tracer.report.text import si, size

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "seed_tables.md").read_text()


def script(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(what):
    """The rest of the line that starts with `what`."""
    line = next(
        x for x in PAGE.splitlines() if x.split("|")[1:2] and x.split("|")[1].strip() == what
    )
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_all_tables_in_order(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    beside = script("seed_beside")
    assert len(beside.BESIDE) == len(beside.TABLES) == 23
    headings = [line[3:] for line in PAGE.splitlines() if line.startswith("## ")]
    assert headings == [f"{entry.section} {entry.title}" for entry in beside.TABLES]
    assert PAGE.count("\nOurs: *") == 23


def test_the_page_is_what_the_script_writes(monkeypatch):
    """As `scripts/seed_beside.py --check`: every figure of ours is that of today's report."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    lines = script("seed_beside").page().splitlines()
    assert lines == PAGE.splitlines(), "run scripts/seed_beside.py"


@pytest.mark.parametrize("execution", ["naive", "efficient"])
def test_both_sides_of_decode(execution):
    theirs = rules.decode(8, 255, next(x for x in rules.EXECUTIONS if x.name == execution))
    ours = traced.ledger(traced.anchor("decode", execution)).total()
    flops = cells(f"decode, {execution}, FLOPs")
    assert flops[:2] == [f"{si(theirs.sum('flops'))}FLOP", f"{si(ours.total_flops)}FLOP"]
    moved = cells(f"decode, {execution}, bytes")
    assert moved[:2] == [size(theirs.sum("bytes_hbm")), size(ours.total_bytes)]
    assert float(moved[2]) == pytest.approx(ours.total_bytes / theirs.sum("bytes_hbm"), rel=5e-3)
