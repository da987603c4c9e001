"""The command: answers, and bad input that is one line before anything is traced."""

import csv
import json

import pytest
from study_models import MODEL

from tracer import sweep
from tracer.study import structure as structures

FOUR = ("--hf-config", MODEL, "--layers", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(folder, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))

    def run(*arguments):
        code = sweep.main([*FOUR, *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_sweep_as_json_and_as_csv(command, tmp_path):
    path = tmp_path / "points.csv"
    arguments = ("--sweep", "B=2:16:x2", "--sweep", "bandwidth=4.8e12,8e12", "--at", "L=1000")
    code, out, _ = command(*arguments, "--json", "--csv", str(path))
    assert code == 0
    (document,) = json.loads(out)
    (table,) = document["answers"]
    assert table["axes"] == ["B", "bandwidth"]
    assert [row[:2] for row in table["rows"]][:3] == [[2, 4.8e12], [2, 8e12], [4, 4.8e12]]
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == table["total"] == 8
    place = table["columns"].index("seconds")
    assert [float(row["seconds"]) for row in rows] == [row[place] for row in table["rows"]]
    slow, fast = (float(row["seconds"]) for row in rows[:2])
    assert fast < slow


def test_studies_in_one_run(command):
    code, out, err = command(
        "--study", "decode-batch", "--study", "crossovers", "--study", "elasticities",
        "--study", "prefill-length", "--study", "exploration", "--at", "L=4096", "--at", "B=64",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "\n    1 " in out  # a batch of 1, from a trace of its own
    assert "from which L does a step move more KV than weights?" in out
    assert "d ln T / d ln" in out
    assert "where decode turns compute-bound" in out
    assert "131,072" in out


def test_top_and_pareto(command):
    code, out, err = command(
        "--sweep", "B=2:300:1", "--top", "3", "--pareto", "--executor", "serial"
    )
    assert code == 0
    assert "the 3 best by tokens_per_s" in out
    assert err.startswith("299 points; ")


def test_experts_over_gpus(command):
    code, out, _ = command("--sweep", "EP=1:256:x4", "--at", "B=64")
    assert code == 0
    assert "network" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to do"),
        (("--sweep", "B=4:2:x2"), "empty, since 4 is above 2"),
        (("--sweep", "B=1:1e10:1"), "10,000,000,000 points would take about 5,000 s"),
        (("--study", "crossover"), "did you mean crossovers"),
        (("--study", "crossovers", "--csv", "x.csv"), "--csv goes with --sweep"),
        (("--sweep", "B=2,4", "--csv", "/nowhere/x.csv"), "no such folder"),
        (("--sweep", "B=2,4", "--at", "B=3"), "B is swept already"),
        (("--sweep", "B=2,4", "--phase", "decoding"), "did you mean decode"),
        (("--sweep", "B=2,4", "--by", "second"), "did you mean seconds"),
        (("--sweep", "B=2,4", "--top", "-1"), "at least 1"),
        (("--sweep", "B=2,4", "--assume", "modle=roofline"), "write NAME=VALUE with one of"),
        (("--sweep", "B=2,4", "--chip", "h2000"), "h2000"),
    ],
)
def test_bad_input_is_refused_before_any_trace(command, monkeypatch, arguments, says):
    monkeypatch.setattr(structures, "_trace", lambda *_: pytest.fail("traced"))
    monkeypatch.setattr(sweep, "closed_form", lambda *_: pytest.fail("traced"))
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tracer.sweep: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--sweep", "S=64,128"), "decode has B (sequences)"),
        (("--sweep", "bandwith=1e12"), "did you mean bandwidth"),
        (("--sweep", "L=1000,200000"), "the model has 163,840 positions"),
        (("--sweep", "L=1,64"), "need L >= 2"),
        (("--sweep", "EP=3"), "EP divides 256"),
        (("--sweep", "peak=1e15", "--at", "EP=5"), "EP divides 256"),
        (("--sweep", "B=2,4", "--executor", "slurm"), "choose local, serial or dask"),
        (("--sweep", "B=1:20000:1", "--top", "1"), "they need B >= 2"),
    ],
)
def test_points_out_of_range(command, tmp_path, arguments, says):
    path = tmp_path / "none.csv"
    code, out, err = command(*arguments, "--csv", str(path))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
    assert not list(tmp_path.iterdir())
