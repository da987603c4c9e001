"""`--compare` of plans: both sides from one route, differences that add up, bad input."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from plan_studies import DECODE, INFEASIBLE, TRAINING, arguments, plan_study

from tracer import plan
from tracer.errors import UserError
from tracer.report.blocks import Text, blocks_of
from tracer.report.data import full_document, tables_of
from tracer.report.plan_report import plan_document, plan_report
from tracer.report.plan_sections.compared import section
from tracer.report.plan_sides import names_a_file, plan_side_from, side_of_plan

OTHER = "ep=4 pp=1 dp=16 zero=1 micro_batches=4"


def rows(made, name):
    found = next(t for t in tables_of((made,)) if t.name == name)
    keys = [column.key for column in found.columns]
    return [dict(zip(keys, row, strict=True)) for row in found.data or found.rows]


def text_of(made):
    return " ".join(b.text for b in blocks_of((made,)) if isinstance(b, Text))


def test_op_level_differences_add_up_to_those_of_the_steps():
    study = plan_study(*TRAINING, "--compare", OTHER)
    made, other = section(study), study.compared
    assert other.record["plan"] == "ep=4 dp=16 zero=1 micro_batches=4"
    ops = rows(made, "compared_kernels")
    mine = study.detail.compute["kernels"]
    theirs = sum(cost.seconds for cost in other.kernels.values())
    assert sum(row["seconds"] for row in ops) == pytest.approx(mine)
    assert sum(row["other_seconds"] for row in ops) == pytest.approx(theirs)
    assert sum(row["more"] for row in ops) == pytest.approx(mine - theirs)
    total = next(t for t in tables_of((made,)) if t.name == "compared_kernels").total
    assert total[3:6] == pytest.approx((mine, theirs, mine - theirs))
    parts = rows(made, "compared_breakdown")
    assert sum(row["this"] for row in parts) == pytest.approx(study.step.seconds)
    assert sum(row["difference"] for row in parts) == pytest.approx(
        study.step.seconds - other.record["step_s"]
    )
    memory = rows(made, "compared_memory")
    assert sum(row["other"] for row in memory) == pytest.approx(other.record["memory"]["total"])
    results = {row["what"]: row for row in rows(made, "compared_results")}
    rate = results["tokens/s"]
    assert rate["change"] == pytest.approx(rate["this"] / rate["other"] - 1)
    sent = rows(made, "compared_messages")
    mine = sum(s.seconds for s in study.detail.sent)
    assert sum(row["seconds"] for row in sent) == pytest.approx(mine)
    assert "different numbers of tokens" not in text_of(made)  # 64 sequences on either side
    # Experts over 4 ranks in place of 8: rows of twice as many experts in each product.
    (product,) = [row for row in ops if row["module"].endswith("experts")
                  and row["op"] == "_grouped_mm" and row["pass"] == "forward"]  # fmt: skip
    assert product["flops"] == pytest.approx(product["other_flops"])


@pytest.mark.parametrize("kind", [TRAINING, DECODE, INFEASIBLE])
def test_a_report_read_back_is_the_same_side(tmp_path, kind):
    study = plan_study(*kind)
    (tmp_path / "report.json").write_text(json.dumps(full_document(plan_report(study))))
    read = plan_side_from(names_a_file(str(tmp_path)))
    mine = side_of_plan(study)
    assert read.kernels == mine.kernels
    assert read.messages == mine.messages
    assert read.parts == pytest.approx({k: v for k, v in mine.parts.items() if v})
    assert dict(read.record) == plan_document(study)
    made = section(replace(study, compared=read))
    assert "No difference: the same ops" in text_of(made)
    assert all(row["difference"] == 0 for row in rows(made, "compared_memory"))


def test_a_plan_json_has_seconds_and_memory_alone(tmp_path):
    study = plan_study(*TRAINING)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(study.step.as_dict()))
    made = section(replace(study, compared=plan_side_from(path)))
    assert all(abs(row["difference"]) < 1e-12 for row in rows(made, "compared_breakdown"))
    assert "has no kernels and no messages" in text_of(made)
    names = {t.name for t in tables_of((made,))}
    assert not names & {"compared_kernels", "compared_messages"}


def test_cautions():
    def against(mine, other):
        return text_of(section(replace(plan_study(*mine), compared=side_of_plan(
            plan_study(*other)))))  # fmt: skip

    assert "The other plan does not fit: its seconds are hypothetical" in against(
        TRAINING, INFEASIBLE
    )
    assert "This plan does not fit" in against(INFEASIBLE, TRAINING)
    assert "different numbers of tokens" in against(TRAINING, INFEASIBLE)
    assert "One is training, the other decode" in against(TRAINING, DECODE)


def test_another_cluster_or_model(tmp_path):
    from report_studies import CONFIGS

    small = tmp_path / "config.json"
    small.write_text(json.dumps(CONFIGS["deepseek"] | {"num_hidden_layers": 4}))
    for other, key, value in (("h800_ib", "cluster", "h800_ib"), (str(tmp_path), "plan", None)):
        study = plan_study(*TRAINING, "--compare", other)
        record = study.compared.record
        assert record["plan"] == str(study.step.plan)
        assert value is None or record[key] == value
        assert sum(study.compared.parts.values()) == pytest.approx(record["step_s"])
    assert record["flops"] < study.step.flops


def test_a_server_of_another_plan_takes_its_sequences():
    study = plan_study(*DECODE, "--compare", "ep=2 dp=2 micro_batch=8")
    assert study.compared.record["batch_per_data_rank"] == 8
    assert plan_study(*DECODE, "--compare", "ep=2 dp=2").compared.record[
        "batch_per_data_rank"
    ] == 4  # fmt: skip


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("pp=3x", "give a whole number"),
        ("fast", "give a plan as it is printed"),
        ("pp=9 micro_batches=9", "6 layers over PP=9"),
        ("gone.json", "No such file"),
        ("nobody/nothing", "not bundled"),
        ("ep=3 dp=3", "do not divide by EP=3"),
    ],
)
def test_what_cannot_be_compared_with_is_one_line_and_writes_nothing(tmp_path, capsys, other, says):
    out = tmp_path / "out"
    assert plan.main([*arguments(*TRAINING), "--compare", other, "--out", str(out)]) == 2
    found = capsys.readouterr()
    assert says in found.err
    assert "--compare" in found.err
    assert len(found.err.strip().splitlines()) == 1
    assert not found.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no report.json of a plan"),
        ("{}", "no report.json of a plan"),
        ("[]", "no report.json of a plan"),
        ('{"tables": {}, "model": {}}', "a report of one chip"),
        ('{"tables": 3, "plan": {}}', "no report.json of a plan"),
    ],
)
def test_files_that_are_something_else(tmp_path, text, says):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        plan_side_from(path)


def test_both_sides_on_the_terminal(capsys):
    assert plan.main([*arguments(*TRAINING), "--compare", OTHER]) == 0
    text = capsys.readouterr().out
    assert "compared with" in text
    assert "tokens/s a GPU" in text
    assert plan.main([*arguments(*TRAINING), "--compare", OTHER, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["compared"]["plan"] == "ep=4 dp=16 zero=1 micro_batches=4"
