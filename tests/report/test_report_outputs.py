"""Markdown, CSV and JSON of one report: the same numbers, names that cannot break out of it."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from report_studies import sections, study

from tracer.report.accuracy import accuracy_csv, accuracy_rows
from tracer.report.blocks import Diagram, Figure, Node, Table, blocks_of, placed
from tracer.report.data import as_csv, full_document, tables_of
from tracer.report.document import report_of
from tracer.report.markdown import mermaid, render
from tracer.report.units import UNITS

ROOT = Path(__file__).parents[2]

HEADINGS = """\
1 How to read this report
1.1 What was run
1.2 Conventions and assumptions in force
1.3 Coverage
1.4 Accuracy of the kernel model
2 Key terms and units
3 Executive summary
3.1 Conclusions
3.2 Next optimisations
3.3 Results
3.4 What each step waits for
4 Architecture
4.1 Model fingerprint
4.2 Architecture diagrams
4.3 Parameters and memory
4.4 Modules
5 Analytical model
5.1 Notation
5.2 Execution assumptions
5.3 By module: training, efficient
5.4 By module: prefill, efficient
5.5 By module: decode, efficient
5.6 Formulas used
5.7 Byte accounting
5.8 Which bytes dominate
6 Roofline analysis
6.1 Reading a roofline point
6.2 Roofline overview
6.3 What the spread comes from
6.4 Naive against efficient, by category
6.5 Shares by category
6.6 Category roofline: training
6.7 Category roofline: prefill
6.8 Category roofline: decode
6.9 Can decode become compute-bound?
6.10 Memory feasibility
7 Architectural limits
8 Explorer
9 Appendix A: full FLOP derivations
9.1 training, efficient
9.2 prefill, efficient
9.3 decode, efficient
10 Appendix B: failure modes and a checklist
"""


def test_the_order_of_reading():
    found = "".join(
        f"{item.number} {item.section.title}\n" for item in placed(sections("deepseek"))
    )
    assert found == HEADINGS


@pytest.fixture(scope="module")
def text():
    return render(report_of(study("deepseek")))


def test_markdown_has_every_block(text):
    for block in blocks_of(sections("deepseek")):
        if isinstance(block, Figure):
            assert f"](figures/{block.name}.png)" in text
        elif isinstance(block, Table):
            head = " | ".join(column.header for column in block.columns)
            assert f"| {head} |" in text, block.name
        elif isinstance(block, Diagram):
            assert f"```mermaid\n{mermaid(block)}\n```" in text
    assert text.count("```") % 2 == 0


def test_links_of_the_contents_lead_to_headings(text):
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    links = re.findall(r"^ *\* \[.*\]\(#(.*)\)$", text, re.M)
    assert len(links) == len(HEADINGS.splitlines())
    assert set(links) <= anchors


def test_rows_have_as_many_cells_as_their_head(text):
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block[:200]


def test_csv_and_json_hold_the_same_unrounded_values():
    found = full_document(report_of(study("deepseek")))
    again = json.loads(json.dumps(found, allow_nan=False))
    tables = tables_of(sections("deepseek"))
    assert again["tables"].keys() == {table.name for table in tables}
    for table in tables:
        there = again["tables"][table.name]
        assert all(c["unit"] in UNITS and c["meaning"] for c in there["columns"])
        rows = list(csv.reader(io.StringIO(as_csv(table))))
        assert rows[0] == [column["key"] for column in there["columns"]]
        assert len(rows) - 1 == len(there["rows"]) == len(table.data or table.rows)
        for line, row in zip(rows[1:], there["rows"], strict=True):
            for cell, value in zip(line, row, strict=True):
                if value is None:
                    assert cell == ""
                elif isinstance(value, int | float):
                    assert float(cell) == value
                else:
                    assert cell == value


def test_a_column_of_a_csv_adds_up_to_its_total():
    checked = 0
    for table in tables_of(sections("deepseek")):
        if table.total is None:
            continue
        rows = list(csv.DictReader(io.StringIO(as_csv(table))))
        for column, total in zip(table.columns, table.total, strict=True):
            if UNITS[column.unit].adds and total is not None:
                whole = sum(float(row[column.key] or 0) for row in rows)
                assert whole == pytest.approx(total), (table.name, column.key)
                checked += 1
    assert checked > 20


def test_mermaid_takes_any_name():
    nodes = (Node("a", ('say "hi" <b>', "#1")), Node("b", ("x`y",), "op"), Node("c", ("z",), "end"))
    found = mermaid(Diagram("d", "", nodes, (("a", "b"),)))
    assert '    a["say #quot;hi#quot; #lt;b#gt;<br/>#35;1"]' in found
    assert '    b("x#96;y")' in found
    assert "    a --> b" in found


def test_names_of_a_module_stay_in_code():
    found = render(report_of(study("odd")))
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", found, flags=re.S)
    assert "onerror" in found
    assert "<img" not in outside


def test_the_bundled_accuracy_is_that_of_the_page():
    """Two files that one command writes: the table of `docs/accuracy.md` and the bundled one."""
    page = (ROOT / "docs" / "accuracy.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    head, *rows = [line for line in lines if len(line) > 10]
    there = [dict(zip(head, row, strict=True)) for row in rows if row[0] != "-"]
    here = accuracy_rows()
    assert len(here) == len(there) > 5
    for row, expected in zip(here, there, strict=True):
        assert row.family == expected["family"]
        assert row.chip == expected["chip"]
        assert row.constants == expected["constants"]
        assert f"{row.rows:,}" == expected["rows"]
        assert f"{row.mape:.1f}" == expected["MAPE"]
        assert f"{row.bias:+.1f}" == expected["bias"]
        assert f"{row.plain:.1f}" == expected["plain"]
        assert f"{row.single:.1f}" == expected["one eff."]
    assert accuracy_rows(ROOT / "no such file") == []


def test_accuracy_round_trips(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(accuracy_csv(accuracy_rows()))
    assert accuracy_rows(path) == accuracy_rows()


def test_the_method_is_the_one_in_force():
    """What the prose says of seconds must be so: the kernel model is no roofline."""
    default = render(report_of(study("llama")))
    assert "launch + max(compute, memory)" not in default
    assert "constants were fitted to measured kernels" in default
    roof = ("--assume", "model=roofline", "--phase", "decode")
    other = render(report_of(study("llama", *roof)))
    assert "launch + max(compute, memory)" in other
    assert "fitted to measured kernels" not in other
    assert "Accuracy of the kernel model" not in other


def test_sentences_agree_with_the_tables():
    """Conclusions name the regime of the results table, and limits that its numbers show."""
    for name in ("deepseek", "llama", "vit"):
        tables = {t.name: t for t in tables_of(sections(name))}
        keys = [c.key for c in tables["results"].columns]
        for row in tables["results"].rows:
            cells = dict(zip(keys, row, strict=True))
            if cells["exec"] != "efficient":
                continue
            about = [c[0] for c in tables["conclusions"].rows
                     if c[0].lower().startswith(f"{cells['phase']} is ")]  # fmt: skip
            (sentence,) = about
            assert f"waits for {cells['regime']}," in sentence
            assert f"{cells['regime_share']:.0%} of its" in sentence
