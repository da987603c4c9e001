"""Reports of plans: what is in them, that it adds up, and what is not shown."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from plan_studies import DECODE, INFEASIBLE, MTP, TRAINING, plan_study, report, search_study

from tracer.report.blocks import Figure, Table, Text, blocks_of, placed
from tracer.report.data import as_csv, full_document, tables_of
from tracer.report.markdown import render, table
from tracer.report.pictures import Pictures
from tracer.report.search_report import search_document, search_report
from tracer.report.units import UNITS

KINDS = (TRAINING, DECODE, INFEASIBLE, MTP)

# Stage 1 has three expert layers and the head, stage 0 two expert layers and a dense one.
HEADINGS = {
    TRAINING: """\
1 What was asked
2 Summary
2.1 Conclusions
2.2 Next optimisations
3 Where the time goes
4 Stages
5 Communication envelope
6 Expert load
7 Kernels
7.1 Stage 1, which sets the pace
8 Memory feasibility
9 The pipeline's schedule
10 What this rests on
10.1 Accuracy of the kernel model
""",
    DECODE: """\
1 What was asked
2 Summary
2.1 Conclusions
2.2 Next optimisations
3 Where the time goes
4 Communication envelope
5 Expert load
6 Kernels
7 Memory feasibility
8 What this rests on
8.1 Accuracy of the kernel model
""",
    # One stage, too, and every rank has all experts.
    INFEASIBLE: """\
1 What was asked
2 Summary
2.1 Conclusions
2.2 Next optimisations
3 Where the time goes
4 Communication envelope
5 Kernels
6 Memory feasibility
7 What this rests on
7.1 Accuracy of the kernel model
""",
}
# With the module stage 0 has four layers, stage 1 two and the module.
HEADINGS[MTP] = """\
1 What was asked
2 Summary
2.1 Conclusions
2.2 Next optimisations
3 Where the time goes
4 Stages
5 Multi-token prediction
6 Communication envelope
7 Expert load
8 Kernels
8.1 Stage 0, which sets the pace
9 Memory feasibility
10 The pipeline's schedule
11 What this rests on
11.1 Accuracy of the kernel model
"""

# By hand: 16 GPUs in 2 stages leave 8 data ranks; nodes of h100_ib have 8 GPUs; the model has 6
# layers. The data ranks of a stage are one node, so are its 8 expert ranks.
AXES = """\
| axis | ranks | cuts | a group lies in |
| --- | --: | --- | --- |
| `dp` | 8 | the sequences of a step; optimizer state is cut too (ZeRO 1) | one node |
| `ep` | 8 | the routed experts, over ranks of one stage | one node |
| `pp` | 2 | 6 layers into 2 stages; 1f1b, 8 micro-batches | - |"""


def rows(report, name):
    found = next(t for t in tables_of(report.sections) if t.name == name)
    keys = [column.key for column in found.columns]
    return [dict(zip(keys, row, strict=True)) for row in found.data or found.rows]


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_reading(kind):
    items = placed(report(*kind).sections)
    assert "".join(f"{i.number} {i.section.title}\n" for i in items) == HEADINGS[kind]


def test_what_was_asked_in_words():
    made = report(*TRAINING)
    text = render(made)
    assert AXES in text
    assert text.startswith("# `")
    plan = "`ep=8 pp=2 dp=8 zero=1 micro_batches=8`"
    assert f"\n\nPlan {plan}, bf16, on " in text
    assert "| GPUs | `16` |" in text
    assert "| tokens a step | `4,096: 64 sequences of 64` |" in text  # 8 ranks x 8 micro-batches
    assert f"| plan | {plan} |" in text


@pytest.mark.parametrize("kind", KINDS)
def test_every_table_adds_up_to_what_it_is_of(kind):
    study, made = plan_study(*kind), report(*kind)
    step, d = study.step, study.detail

    def total(name, key="seconds"):
        return sum(row[key] or 0.0 for row in rows(made, name))

    assert total("breakdown") == pytest.approx(step.seconds)
    assert total("limits") == pytest.approx(step.seconds)
    assert total("breakdown", "share") == pytest.approx(1)
    assert total("kernels") == pytest.approx(d.compute["kernels"])
    assert total("modules") == pytest.approx(d.compute["kernels"])
    assert total("coverage") == pytest.approx(d.compute["kernels"])
    assert total("kernels", "flops") == total("modules", "flops")
    assert total("memory", "bytes") == pytest.approx(step.memory.total)
    exposed = d.parts["exposed communication"] + d.parts.get("between stages", 0.0)
    assert total("messages", "exposed") == pytest.approx(exposed)
    for row in rows(made, "messages"):
        assert row["exposed"] + row["hidden"] == pytest.approx(row["seconds"])
    if kind in (TRAINING, MTP):
        assert total("slots") == pytest.approx(step.seconds)
        assert max(row["total"] for row in rows(made, "memory_ranks")) == step.memory.total
        each = step.plan.micro_batches / step.plan.pp
        passes = [r["forward"] + r["input_gradient"] + r["weight_gradient"]
                  for r in rows(made, "stages")]  # fmt: skip
        assert each * sum(passes) == pytest.approx(d.parts["compute"] - d.compute.get(
            "slower beside messages", 0.0))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_empty_and_names_are_once(kind):
    blocks = list(blocks_of(report(*kind).sections))
    names = [b.name for b in blocks if isinstance(b, Figure)]
    assert len(names) == len(set(names)) >= 3
    tables_of(report(*kind).sections)  # raises where two have one name
    for block in blocks:
        if isinstance(block, Table):
            assert block.rows
            assert block.caption.startswith(("`", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
        if isinstance(block, Text):
            assert block.text.strip()
            assert "None" not in block.text
    assert all(p.svg.startswith("<?xml") and p.png for p in Pictures(report(*kind).sections))


@pytest.mark.parametrize("kind", KINDS)
def test_csv_and_json_hold_the_same_unrounded_values(kind):
    document = json.loads(json.dumps(full_document(report(*kind)), allow_nan=False))
    tables = tables_of(report(*kind).sections)
    assert document["tables"].keys() == {t.name for t in tables}
    for t in tables:
        there = document["tables"][t.name]
        lines = list(csv.reader(io.StringIO(as_csv(t))))
        assert lines[0] == [c["key"] for c in there["columns"]]
        assert len(lines) - 1 == len(there["rows"])
        for line, row in zip(lines[1:], there["rows"], strict=True):
            for cell, value in zip(line, row, strict=True):
                same = cell == "" if value is None else (
                    float(cell) == value if isinstance(value, int | float) else cell == value
                )  # fmt: skip
                assert same, (t.name, cell, value)
    assert document["plan"] == plan_study(*kind).step.as_dict() | (
        {"advice": plan_study(*kind).advice} if plan_study(*kind).advice else {}
    )


def test_what_does_not_fit_has_no_throughput_and_every_time_says_so():
    made, study = report(*INFEASIBLE), plan_study(*INFEASIBLE)
    assert not study.step.feasible
    text = render(made)
    assert f"**INFEASIBLE**: {study.step.reason}" in text
    assert study.advice[1:] in text
    assert not re.search(r"tokens/s|MFU|GPU hours|USD", text)
    for block in blocks_of(made.sections):
        if isinstance(block, Table) and any(c.unit == "s" for c in block.columns):
            if block.name in ("next_steps", "coverage"):
                continue
            assert "Hypothetical" in block.caption, block.name
    (first, *_) = rows(made, "conclusions")
    assert first["rule"] == "infeasible"
    what = [row["what"] for row in rows(made, "results")]
    assert what[0] == "step, hypothetical"
    assert study.advice[1:] in rows(made, "next_steps")[0]["finding"]
    assert "Hypothetical" not in render(report(*TRAINING))


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_agree_with_the_tables(kind):
    """Whatever a conclusion or a next step says is what the tables say."""
    made, study = report(*kind), plan_study(*kind)
    limits = {row["part"]: row["share"] for row in rows(made, "limits")}
    first = max(limits, key=limits.get)
    about = [r for r in rows(made, "conclusions") if "waits for" in r["finding"]]
    assert f"{limits[first]:.0%} of its" in about[0]["finding"]
    assert f"waits for {first}" in about[0]["finding"]
    for row in rows(made, "next_steps"):
        if row["share"] is not None:
            assert 0.05 <= row["share"] <= 1
            assert row["saves"] == pytest.approx(row["share"] * study.step.seconds)
    fits = [r["rule"] for r in rows(made, "conclusions") if r["rule"] in ("fits", "tight")]
    assert bool(fits) == study.step.feasible


def test_the_module_of_multi_token_prediction_has_its_share():
    study, made = plan_study(*MTP), report(*MTP)
    more = study.detail.mtp
    text = render(made)
    assert "| `pp` | 2 | 6 layers and the MTP module into 2 stages; 1f1b, 8 micro-batches |" in text
    # 6 layers, the module and its head over 2 stages: 4 and 4, of the last two its own.
    assert [row["layers"] for row in rows(made, "stages")] == ["0 to 3", "4 to 5, MTP"]
    parts = {row["pass"]: row["seconds"] for row in rows(made, "mtp")}
    assert parts == {"forward": more.forward, "input gradient": more.input,
                     "weight gradient": more.weight}  # fmt: skip
    # Its own modules are what it adds but for the head's second pass and the embedding's.
    own = sum(
        row["seconds"] for row in rows(made, "modules") if row["module"].startswith("model.mtp")
    )
    each = study.step.plan.micro_batches / study.step.plan.pp
    assert 0.5 < own / (each * more.compute) < 1
    assert f"{each * more.compute / study.detail.compute['kernels']:.1%} of all" in text
    (copied,) = [row for row in rows(made, "messages") if row["axis"] == "embedding"]
    assert copied["bytes"] == 96 * 64 * 2  # V·D in BF16
    counts = {row["what"]: row["value"] for row in rows(made, "mtp_counts")}
    assert counts["of them a copy of the embedding"] == 96 * 64
    assert counts["FLOPs of a step, all GPUs"] == study.step.flops_mtp
    found = {row["what"]: row["value"] for row in rows(made, "results")}
    assert found["MFU with the FLOPs of the MTP module, causal pairs"] == study.step.mfu_with_mtp


def test_results_are_those_of_the_record():
    record = plan_study(*TRAINING).step.as_dict()
    found = {row["what"]: row["value"] for row in rows(report(*TRAINING), "results")}
    assert found["tokens/s"] == record["tokens_per_s"]
    assert found["MFU of the bf16 peak, causal pairs"] == record["mfu_causal"]
    # 1e12 tokens at so many a second on 16 GPUs, 2 USD an hour.
    hours = 1e12 / record["tokens_per_s"] * 16 / 3600
    assert found["GPU hours for 1.000 T tokens"] == pytest.approx(hours)
    assert found["USD for 1.000 T tokens"] == pytest.approx(2 * hours)
    served = plan_study(*DECODE)
    found = {row["what"]: row["value"] for row in rows(report(*DECODE), "results")}
    # 4 ranks of 4 sequences, one token each a step.
    assert found["tokens/s"] == pytest.approx(16 / served.step.seconds)
    assert found["GPU hours for 1e6 tokens"] == pytest.approx(
        1e6 / 16 * served.step.seconds * 4 / 3600
    )


def test_a_pipeline_has_its_timeline_and_others_have_none():
    events = json.loads(report(*TRAINING).files["pipeline.json"]())["traceEvents"]
    assert sum(e["ph"] == "X" for e in events) == 2 * 2 * 8  # ranks x (F, B) x micro-batches
    assert set(report(*DECODE).files) == {"plan.json"}


def test_what_is_a_mean_over_ranks_says_so():
    deep, flat = render(report(*TRAINING)), render(report(*DECODE))
    assert "A GPU's step, the mean over the pipeline's ranks." in deep
    assert "slots are less sure than the step" in deep
    assert "at its end as the rank that takes longest over them" in deep
    assert "One step of the instance." in flat
    for words in ("all stages", "at its end", "in flight", "slots are less sure"):
        assert words not in flat


def test_markdown_has_every_block():
    text = render(report(*TRAINING))
    for block in blocks_of(report(*TRAINING).sections):
        if isinstance(block, Table):
            assert table(block) in text
        elif isinstance(block, Figure):
            assert f"](figures/{block.name}.png)" in text


def test_a_search_ranks_and_counts():
    study = search_study()
    made = search_report(study)
    found = study.found
    ranked = rows(made, "ranked")
    assert [row["step"] for row in ranked] == sorted(row["step"] for row in ranked)
    assert len(ranked) == len(found.ranked)
    dropped = rows(made, "dropped")
    assert sum(row["plans"] for row in dropped) == len(found.dropped)
    lines = list(csv.DictReader(io.StringIO(made.files["plans.csv"]())))
    assert len(lines) == len(found.ranked) + len(found.dropped)
    assert [line["plan"] for line in lines[: len(ranked)]] == [row["plan"] for row in ranked]
    for row in rows(made, "parts"):
        parts = sum(v or 0.0 for k, v in row.items() if k not in ("place", "plan", "step"))
        assert parts == pytest.approx(row["step"])
        assert row["step"] == pytest.approx(ranked[row["place"] - 1]["step"])
    text = render(made)
    assert "with tp up to 2, cp up to 1, pp up to 64, ep up to 16, under `1f1b`" in text
    assert search_document(study)["dropped"] == found.reasons
    assert all(c["unit"] in UNITS for t in full_document(made)["tables"].values()
               for c in t["columns"])  # fmt: skip
    assert len(list(Pictures(made.sections))) == 2
