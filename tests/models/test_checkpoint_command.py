"""`python -m tracer.checkpoint`: what it prints and writes, and what it says of bad input."""

import csv
import json

import pytest
import torch
from released_checkpoints import SMALL, random_model, released_tensors, replace, shard_of, write

from tracer import checkpoint as command
from tracer.models import weight_stats as stats_module
from tracer.models.checkpoint import load_model
from tracer.models.weight_rows import COLUMNS


@pytest.fixture(scope="module")
def tensors():
    return released_tensors(random_model(SMALL, "fp8"))


@pytest.fixture
def folder(tmp_path, tensors):
    return write(tmp_path / "c", tensors, SMALL)


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = command.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_inventory(run, folder, tensors):
    code, out, err = run("inventory", folder)
    assert (code, err) == (0, "")
    assert f"{len(tensors)} tensors" in out
    assert "config: agrees" in out
    code, out, _ = run("inventory", folder, "--json")
    assert json.loads(out)["agrees"] is True
    replace(folder, "model.norm.weight", torch.ones(3).bfloat16())
    assert "config: 1 other than the config says: model.norm.weight" in run("inventory", folder)[1]


def test_statistics(run, folder, tmp_path):
    out_csv = tmp_path / "out.csv"
    code, out, err = run("stats", folder, "--csv", out_csv, "--sigma", "4")
    assert (code, err) == (0, "")
    for said in ("> 4 sigma", "MoE layer 1", "MTP layer 2", "lost/block"):
        assert said in out
    with out_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    document = json.loads(run("stats", folder, "--json", "--sigma", "4")[1])
    assert list(rows[0]) == list(COLUMNS)
    assert [row["name"] for row in rows] == [row["name"] for row in document["tensors"]]
    for row, want in zip(rows, document["tensors"], strict=True):
        assert float(row["std"]) == want["std"]  # full precision in both
        assert row["shape"] == "x".join(map(str, want["shape"]))
    assert not (tmp_path / "out.csv.partial").exists()
    assert {group["layers"] for group in document["groups"]} > {"outside", "MTP layer 2"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, "truncated"])
def test_rows_survive_an_interruption(run, folder, tmp_path, monkeypatch, stop):
    """Stopped behind 10 tensors: 10 whole rows in the partial file, and no final one."""
    rows = stats_module.weight_stats

    def stopping(checkpoint, **options):
        for count, row in enumerate(rows(checkpoint, **options)):
            if count == 10:
                if stop is KeyboardInterrupt:
                    raise KeyboardInterrupt
                raise stats_module.CheckpointError("x.safetensors: truncated: it ends inside w")
            yield row

    monkeypatch.setattr(stats_module, "weight_stats", stopping)
    code, out, err = run("stats", folder, "--csv", tmp_path / "out.csv")
    assert (code, out) == ((130, "") if stop is KeyboardInterrupt else (2, ""))
    assert err.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()
    with (tmp_path / "out.csv.partial").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert len(kept) == 10
    assert all(row["lost_per_block"] is not None for row in kept)
    if stop == "truncated":
        assert f"the 10 rows before it: {tmp_path / 'out.csv.partial'}" in err


def test_conversion(run, folder, tmp_path):
    code, out, err = run("convert", folder, tmp_path / "bf16", "--dtype", "bf16")
    assert code == 0
    assert err.splitlines()[-1].startswith("3/3 model-00003-of-00003.safetensors: ")
    assert out.startswith(f"{tmp_path / 'bf16'}: bf16, ")
    assert load_model(tmp_path / "bf16").lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "COMMAND"),
        (("inventory",), "DIR|HUB-ID"),
        (("inventory", "."), "not a checkpoint"),
        (("inventory", "nowhere"), "nowhere: no such folder"),
        (("stats", "nowhere"), "nowhere: no such folder"),
        (("stats", "{folder}", "--sigma", "0"), "--sigma 0.0: give a number above 0"),
        (("stats", "{folder}", "--sigma", "x"), "--sigma"),
        (("stats", "{folder}", "--top", "0"), "--top 0: give at least 1"),
        (("stats", "{folder}", "--csv", "/nowhere/x.csv"), "--csv /nowhere/x.csv: cannot be"),
        (("stats", "{folder}", "--csv", "{folder}"), "a folder; give a file"),
        (("convert", "{folder}", "x"), "--dtype"),
        (("convert", "{folder}", "x", "--dtype", "int4"), "int4"),
        (("convert", "{folder}", "{folder}", "--dtype", "bf16"), "the same folder"),
        (("convert", "{folder}", "x", "--dtype", "fp8"), "is FP8 already"),
    ],
)
def test_bad_input_is_one_line(run, folder, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*(argument.format(folder=folder) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("tracer.checkpoint: ")
    assert err.count("\n") == 1
    assert said in err
    assert {path.name for path in tmp_path.iterdir()} == {"c"}


def test_damage_is_one_line(run, folder, tmp_path):
    path = shard_of(folder, "model.norm.weight")
    path.write_bytes(path.read_bytes()[:-1])
    for arguments in (("inventory", folder), ("stats", folder, "--csv", tmp_path / "x.csv"),
                      ("convert", folder, tmp_path / "out", "--dtype", "bf16")):  # fmt: skip
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert f"{path}: truncated: " in err
    assert {p.name for p in tmp_path.iterdir()} == {"c"}
