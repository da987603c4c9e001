"""`--compare`: another model, chip or run beside this one."""

import json
from dataclasses import replace

import pytest
from report_studies import SIZES, given, study

from tracer.errors import UserError
from tracer.report import files
from tracer.report.blocks import Section, Text, blocks_of
from tracer.report.data import tables_of
from tracer.report.document import as_document
from tracer.report.sections.comparison import section
from tracer.report.sides import is_config, side_from, side_of
from tracer.run import main


def rows(table):
    keys = [column.key for column in table.columns]
    return [dict(zip(keys, row, strict=True)) for row in table.rows]


def test_a_run_read_back_is_the_same_run(tmp_path):
    mine = study("llama")
    (tmp_path / "ops.csv").write_text(files.ops_csv(mine))
    (tmp_path / "report.json").write_text(json.dumps(as_document(mine)))
    read = side_from(tmp_path / "report.json")
    assert read.steps.keys() == side_of(mine).steps.keys()
    made = section(replace(mine, compared=read))
    texts = [b.text for b in blocks_of((made,)) if isinstance(b, Text)]
    assert sum("No difference" in text for text in texts) == 3


def test_another_model_differs_where_it_differs():
    made = section(replace(study("deepseek"), compared=side_of(study("llama"))))
    assert isinstance(made, Section)
    tables = {t.name: t for t in tables_of((made,))}
    for row in rows(tables["compared_steps"]):
        a, b = (
            next(s for s in study(name).steps
                 if (s.workload.phase, s.ledger.execution) == (row["phase"], row["exec"]))
            for name in ("deepseek", "llama")
        )  # fmt: skip
        assert (row["flops"], row["other_flops"]) == (a.cost.total_flops, b.cost.total_flops)
        assert row["step_change"] == pytest.approx(a.times.step / b.times.step - 1)
    ops = rows(tables["compared_decode"])
    step = next(s for s in study("deepseek").steps
                if (s.workload.phase, s.ledger.execution) == ("decode", "efficient"))  # fmt: skip
    llama = next(s for s in study("llama").steps
                 if (s.workload.phase, s.ledger.execution) == ("decode", "efficient"))  # fmt: skip
    # What is the same on both sides cancels, so the differences add up to that of the steps.
    assert sum(row["flops"] - row["other_flops"] for row in ops) == (
        step.cost.total_flops - llama.cost.total_flops
    )


def test_a_config_of_any_name_is_a_model_and_a_run_is_a_run(tmp_path):
    config = tmp_path / "small.json"
    config.write_text('{"model_type": "llama"}')
    assert is_config(config)
    config.write_text(json.dumps(as_document(study("llama"))))
    assert not is_config(config)
    assert not is_config(tmp_path / "gone.json")


def test_the_same_model_on_the_same_chip_is_an_earlier_run():
    made = section(replace(study("llama"), compared=side_of(study("llama"))))
    assert made.title == "Compared with an earlier run"


def test_other_sizes_are_told(tmp_path):
    """An earlier run has the sizes that it was given, in memory and read back."""
    mine, larger = study("llama"), study("llama", "--batch", "3", "--seq", "40")
    (tmp_path / "ops.csv").write_text(files.ops_csv(larger))
    (tmp_path / "report.json").write_text(json.dumps(as_document(larger)))
    for other in (side_of(larger), side_from(tmp_path / "report.json")):
        texts = [b.text for b in blocks_of((section(replace(mine, compared=other)),))
                 if isinstance(b, Text)]  # fmt: skip
        assert (
            "**Not the same work**: training has B = 2, S = 32 here and B = 3, S = 40 there; "
            "prefill has B = 2, S = 32 here and B = 3, S = 40 there; decode has B = 2, L = 48 "
            "here and B = 3, L = 48 there. The changes hold what that makes."
        ) in texts
    same = section(replace(mine, compared=side_of(mine)))
    assert not any("same work" in b.text for b in blocks_of((same,)) if isinstance(b, Text))


def test_what_cannot_be_compared_with(tmp_path, capsys):
    with pytest.raises(UserError, match="no report"):
        (tmp_path / "report.json").write_text("{}")
        side_from(tmp_path / "report.json")
    out = tmp_path / "out"
    assert main([*given("llama"), "--compare", str(tmp_path / "gone.json"), "--out", str(out)]) == 2
    assert "gone.json" in capsys.readouterr().err
    assert not out.exists()
    (tmp_path / "damaged.json").write_text('{"results": []}')
    other = str(tmp_path / "damaged.json")
    assert main([*given("llama"), "--compare", other, "--out", str(out)]) == 2
    assert "no report.json of --out" in capsys.readouterr().err
    assert main([*given("llama"), "--compare", "h10_sxm", "--out", str(out)]) == 2
    assert "--compare 'h10_sxm': no chip (did you mean h100_sxm" in capsys.readouterr().err
    assert main([*given("llama"), *SIZES, "--compare", "h100_sxm"]) == 2
    assert "--compare goes with --out" in capsys.readouterr().err
