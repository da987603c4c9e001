"""Sweeps through any executor: the same answer, nothing lost, nothing half-written."""

import csv
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from study_models import KERNELS, by_hand, closed, model_of

from tracer.errors import UserError
from tracer.study import sweeps
from tracer.study.engine import Job, pareto
from tracer.study.grid import Axis, parse_axis
from tracer.study.sweeps import check_axes, evaluate, executor_for, run, with_ones


def job_of(*texts, step=None, model=None, **options):
    step = step or closed()
    model = model or model_of(step)
    return Job(
        step, model, check_axes(step, model, [parse_axis(text) for text in texts]), **options
    )


GRID = ("B=2:200:1", "L=64:4096:x4", "bandwidth=1e12:9e12:1e12")


def everything(job):
    """Seconds and tokens a second of every point, by the other way through the model."""
    rows = evaluate(job, job.grid.points(np.arange(job.grid.size)))
    return rows[:, 0], rows[:, 1]


@pytest.mark.parametrize("by", ["seconds", "tokens_per_s"])
def test_top_is_that_of_all_points(by, monkeypatch):
    monkeypatch.setattr(sweeps, "TASK", 1)
    job = job_of(*GRID, top=7, by=by)
    found, (table,) = run(job)
    seconds, tokens = everything(job)
    assert found.points == job.grid.size == 199 * 4 * 9
    assert found.fastest == pytest.approx(seconds.min(), rel=1e-12)
    assert found.slowest == pytest.approx(seconds.max(), rel=1e-12)
    expected = np.sort(seconds)[:7] if by == "seconds" else -np.sort(-tokens)[:7]
    assert table.column(by) == pytest.approx(expected, rel=1e-12)
    assert len(table.rows) == 7


def test_the_front_is_that_of_all_points(monkeypatch):
    monkeypatch.setattr(sweeps, "TASK", 1)
    job = job_of(*GRID, pareto=True)
    _, (table,) = run(job)
    seconds, tokens = everything(job)
    kept = [i for i in range(len(seconds))
            if not ((seconds <= seconds[i]) & (tokens > tokens[i])).any()
            and not ((seconds < seconds[i]) & (tokens >= tokens[i])).any()]  # fmt: skip
    expected = sorted({(round(seconds[i], 15), round(tokens[i], 6)) for i in kept})
    found = list(zip(table.column("seconds"), table.column("tokens_per_s"), strict=True))
    assert np.array(found) == pytest.approx(np.array(expected), rel=1e-9)


def test_pareto_by_hand():
    numbers, seconds, tokens = (np.array(x) for x in ([0, 1, 2, 3, 4], [3.0, 1.0, 2.0, 2.0, 4.0],
                                                      [5.0, 1.0, 3.0, 4.0, 5.0]))  # fmt: skip
    assert pareto(numbers, seconds, tokens)[0].tolist() == [1, 3, 0]


def test_only_what_fits():
    step, model = by_hand()  # 10^9 + 10^6 B bytes in 2 * 10^9: B <= 1000
    job = job_of("B=900:1100:1", step=step, model=model, top=3, by="tokens_per_s", fits=True)
    found, (table,) = run(job)
    assert found.feasible == 101
    assert max(table.column("B")) == 1000
    assert all(table.column("fits"))


def test_every_executor_gives_the_same(monkeypatch):
    monkeypatch.setattr(sweeps, "TASK", 8192)
    job = job_of(*GRID, "clock=0.5:1:0.1", top=5, pareto=True, model=model_of(closed(), KERNELS))
    found, tables = run(job)
    with ThreadPoolExecutor(2) as pool:
        other, theirs = run(job, executor=pool)
    assert theirs == tables
    assert other.points == found.points
    assert other.slowest == found.slowest


def read(path):
    return list(csv.reader(path.read_text().splitlines()))


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_broken_pool_loses_nothing(monkeypatch):
    monkeypatch.setattr(sweeps, "TASK", 1)
    job = job_of("B=2:9000:1", "bandwidth=1e12:9e12:2e12", top=5)
    expected = run(job)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        pool.submit(die)
        assert run(job, executor=pool)[1] == expected[1]


def test_rows_are_flushed_and_the_name_says_partial(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "TASK", 1)
    path = tmp_path / "sweep.csv"
    job = job_of("B=2:9000:1", "bandwidth=1e12:9e12:2e12")
    seen = []
    original = sweeps.run_blocks

    def stops(*args):
        part = tmp_path / "sweep.csv.partial"
        seen.append(len(read(part)))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(sweeps, "run_blocks", stops)
    with pytest.raises(KeyboardInterrupt):
        run(job, path=path)
    assert not path.exists()
    rows = read(tmp_path / "sweep.csv.partial")
    assert seen[0] == 1  # the header
    assert len(rows) == seen[3] > seen[2] > seen[1] > 1
    assert {len(row) for row in rows} == {len(rows[0])}
    monkeypatch.setattr(sweeps, "run_blocks", original)
    run(job, path=path)
    assert not (tmp_path / "sweep.csv.partial").exists()
    whole = read(path)
    assert len(whole) == 1 + job.grid.size
    assert whole[: len(rows)] == rows


def test_a_batch_of_one_has_a_trace_of_its_own():
    from tracer.study.structure import Cache, Structure, closed_form

    step, model = closed(), model_of(closed())
    alone = closed_form(
        Structure("deepseek-ai/DeepSeek-V3", "decode", layers=4).alone(), Cache(None)
    )
    single = model_of(alone)
    axes = [parse_axis("L=64,128"), parse_axis("B=1:4:x2")]
    table = with_ones(step, model, alone, single, axes, "")
    assert [row[:2] for row in table.rows] == [(n, b) for n in (64, 128) for b in (1, 2, 4)]
    assert table.rows[0][2] == pytest.approx(single.seconds({"L": 64})[0])
    only = with_ones(step, model, alone, single, [parse_axis("B=1,2")], "")
    assert [row[0] for row in only.rows] == [1, 2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("S=64,128", "decode has B (sequences), L (keys"),
        ("bandwith=1e12", "did you mean bandwidth"),
        ("B=1,2", "B=1, L=4096: outside of the formulas' range; they need B >= 2"),
        ("L=200000", "163,840 positions"), ("B=2.5", "whole number"), ("clock=1.5", "at most 1"),
        ("bandwidth=-1", "above 0"), ("peak.fp8=1e15", "changes nothing"),
    ],
)  # fmt: skip
def test_points_that_are_refused(text, says):
    with pytest.raises(UserError) as caught:
        job_of(text)
    assert says in str(caught.value)


def test_a_guard_is_checked_at_every_point():
    spread = closed().over_experts()
    with pytest.raises(UserError, match=r"EP=3.*EP divides 256"):
        check_axes(spread, model_of(spread), [Axis("EP", (1, 2, 3, 4)), Axis("B", (2, 4))])


def test_strange_executors():
    with pytest.raises(UserError, match="choose local, serial or dask"), executor_for("slurm", 10):
        pass


def test_a_dask_cluster_that_loses_a_worker():
    """In a process of its own: workers are its children, and one of them is killed midway."""
    pytest.importorskip("distributed")
    script = Path(__file__).with_name("dask_cluster.py")
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.strip().endswith("same"), result.stderr[-2000:]
