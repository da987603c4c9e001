# ruff: noqa: E402 - the number of threads must be set before numpy starts them
"""How many points a second a sweep evaluates, beside pricing a trace again and substituting.

    python scripts/bench_sweep.py                 everything but the processes
    python scripts/bench_sweep.py --points 1e7    with a grid of that size on all cores

A point is one full evaluation of a DeepSeek-V3 decode step: the sum over all kernels of its time
model, each at sizes and chip figures of its own. Seconds are of this process's CPU time
(`process_time`), which other work on the machine changes less than the clock on the wall; both are
printed. "grid" is a rectangular one, in which what does not depend on an axis is computed once
along it; "scattered" has every coordinate drawn at random, so that nothing can be.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np

from tracer.hardware import load_chip
from tracer.machine import Timing
from tracer.machine.symbolic import StepModel
from tracer.study.closed import bound
from tracer.study.engine import Job
from tracer.study.grid import BLOCK, parse_axis
from tracer.study.structure import Cache, Structure, closed_form
from tracer.study.sweeps import check_axes, executor_for, run

MODEL = "deepseek-ai/DeepSeek-V3"
SECONDS = 2.0  # that each line is measured for


def main() -> None:
    """Print one line a way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--points", type=float, default=0, help="of a grid on all cores")
    options = parser.parse_args()
    closed = closed_form(Structure(MODEL, "decode"), Cache.of_user())
    chip = load_chip("h200_sxm")
    launches = sum(row.times for row in closed.rows)
    print(f"{MODEL} decode: {len(closed.rows)} different kernels, {launches:,} launches")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    for timing in (Timing(model="roofline"), Timing()):
        model = StepModel(closed.rows, chip, timing, closed.scope)
        _blocks(model)
        figures = ("bandwidth=2e12:9e12:4e11", "peak=5e14:2e15:3e14")
        _grid(closed, model, "serial", "B=2:1025:1", "L=2048:131072:x1.3", *figures)
        if options.points:
            lengths = f"L=2048:{2048 + 16 * (options.points / 1023 / 19 / 4 - 1):.0f}:16"
            _grid(closed, model, "local", "B=2:1024:1", "bandwidth=2e12:9.2e12:4e11",
                  "peak=5e14:2e15:5e14", lengths)  # fmt: skip
    _one_by_one(closed, StepModel(closed.rows, chip, Timing(model="roofline"), closed.scope))
    _again(chip)
    memory = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF,
                                                            resource.RUSAGE_CHILDREN)]  # fmt: skip
    print(f"largest process: {max(memory) / 1e3:,.0f} MB")


def _line(what: str, points: float, cpu: float, wall: float) -> None:
    rates = f"{points / cpu:14,.0f} {points / wall:14,.0f}"
    print(f"{what:48} {rates} points/s of CPU, of wall time")


def _blocks(model: StepModel) -> None:
    rng = np.random.default_rng(0)
    points = {
        "B": rng.integers(2, 1024, BLOCK).astype(float),
        "L": rng.integers(128, 131072, BLOCK).astype(float),
        "bandwidth": rng.uniform(2e12, 9e12, BLOCK),
        "peak.bf16": rng.uniform(5e14, 2e15, BLOCK),
    }
    blocks = model.over({name: (v.min(), v.max()) for name, v in points.items()})
    blocks.seconds([points], {})
    cpu, wall, count = time.process_time(), time.perf_counter(), 0
    while time.process_time() - cpu < SECONDS:
        blocks.seconds([points], {})
        count += BLOCK
    _line(f"{model.timing.model}, scattered, one core", count, time.process_time() - cpu,
          time.perf_counter() - wall)  # fmt: skip


def _grid(closed, model, how: str, *texts: str) -> None:
    grid = check_axes(closed, model, [parse_axis(text) for text in texts])
    job = Job(closed, model, grid, top=10)
    wall = time.perf_counter()
    before = [os.times().user + os.times().system, os.times().children_user]
    with executor_for(how, grid.size) as executor:
        found, _ = run(job, executor=executor)
    after = os.times()
    cpu = after.user + after.system - before[0] + after.children_user - before[1]
    wall = time.perf_counter() - wall
    assert found.points == grid.size
    text = f"{model.timing.model}, grid of {grid.size:,} with top 10, {how}"
    _line(text, grid.size, cpu, wall)
    print(f"{'':48} {wall:14.1f} s of wall time, {cpu:.1f} s of CPU")


def _one_by_one(closed, model: StepModel) -> None:
    """The same expressions with numbers put in, a point at a time."""
    rng = np.random.default_rng(0)
    cpu, wall, count = time.process_time(), time.perf_counter(), 0
    while time.process_time() - cpu < SECONDS:
        point = {"B": int(rng.integers(2, 1024)), "L": int(rng.integers(128, 131072))}
        values, total = model.values({}), 0.0
        for row in closed.rows:
            flops = sum(float(bound(x, point)) for _, x in row.flops)
            moved = sum(float(bound(x, point)) for _, x in row.moved)
            sides = (flops * values.atom("1/matrix.bf16"), moved * values.atom("1/memory"),
                     float(bound(row.vector, point)) * values.atom("1/vector"))  # fmt: skip
            total += row.times * (2.6e-6 + max(sides))
        count += 1
        assert abs(total / model.seconds(point)[0] - 1) < 1e-9 if count == 1 else True
    _line("roofline, substitution point by point", count, time.process_time() - cpu,
          time.perf_counter() - wall)  # fmt: skip


def _again(chip) -> None:
    """A trace of its own for every point."""
    from tracer.capture.program import load_program
    from tracer.capture.workload import Workload, record
    from tracer.cost import price
    from tracer.predict import predict

    program = load_program(MODEL)
    record(program, Workload("decode", 8, 4096, 4096))
    cpu, wall = time.process_time(), time.perf_counter()
    count = 3
    for batch in range(9, 9 + count):
        work = Workload("decode", batch, 4096, 4096)
        predict(work, price(record(program, work)), chip, Timing(model="roofline"))
    _line("roofline, a trace for every point", count, time.process_time() - cpu,
          time.perf_counter() - wall)  # fmt: skip


if __name__ == "__main__":
    main()
