"""Sweeps of one size with what changes along them, from closed forms (`tracer.study`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tracer.hardware import Chip

from ..algebra.expression import value_at
from ..errors import UserError
from ..machine import Timing
from ..machine.symbolic import Answer, StepModel
from ..predict import Step
from ..study.closed import EP, Closed
from ..study.crossovers import FAR, compute_bound_batch, crossover, first_crossing, sums
from ..study.exploration import compute_bound_exploration
from ..study.records import Crossover
from .records import RIDGE, ContextLimit, Crossing, DecodeLimit, Sweep, SweepPoint
from .text import size

AXES = {"batch": "B", "seq": "S", "context": "L"}
MOST = {"batch": 4096, "seq": 131_072, "context": 131_072}
LEAST = {"batch": 2, "seq": 128, "context": 128}
_LINE = 200  # values looked at for a change of what the step waits for
_NEAR = 1.25  # a change that is taken back within this factor is none
_LIMIT = (EP, "L", "flop_per_byte_limit", "flop_per_sent_byte_limit", "min_B", "limiter",
          "memory_bytes", "fits")  # fmt: skip
_RESOURCES = ("compute", "memory", "latency", "network")


class Formulas(NamedTuple):
    """One step in closed form on one chip, at the sizes of the report."""

    execution: str
    closed: Closed
    model: StepModel
    point: dict[str, int]


def formulas(execution: str, closed: Closed, chip: Chip, timing: Timing) -> Formulas:
    """With the sizes that were traced as the point."""
    model = StepModel(closed.rows, chip, timing, closed.scope, closed.network)
    return Formulas(execution, closed, model, dict(closed.scope.samples))


def sweep(phase: str, axis: str, found: Sequence[Formulas], alone: Sequence[Step]) -> Sweep | None:
    """`axis` doubled from end to end with the report's own value among it.

    `alone` are steps of a batch of 1, which no formula covers. None where no size can be varied.
    """
    name = AXES[axis]
    if not found or name not in found[0].point:
        return None
    points = [_traced(step, axis) for step in alone]
    crossings: list[Crossing] = []
    for f in found:
        values = _values(f, axis)
        points += _points(f, name, values)
        crossings += _crossings(f, name, values)
    known = f.model.names - {name}  # an image has no length, whatever --seq says
    held = {field: f.point[n] for field, n in AXES.items() if n in f.point and n in known}
    order = [f.execution for f in found]
    ordered = sorted(points, key=lambda p: (order.index(p.execution), p.value))
    return Sweep(phase, axis, found[0].model.chip.id, held, tuple(ordered), tuple(crossings))


def _values(f: Formulas, axis: str) -> list[int]:
    """Powers of two in range, and the point's own value."""
    name, own = AXES[axis], f.point[AXES[axis]]
    longest = f.closed.longest if axis != "batch" and f.closed.longest else MOST[axis]
    most = max(min(longest, MOST[axis]), own)
    found = {LEAST[axis] << k for k in range(40) if LEAST[axis] << k <= most} | {own}
    return sorted(value for value in found if covered(f, {**f.point, name: value}))


def covered(f: Formulas, point: Mapping[str, int]) -> bool:
    try:
        f.closed.check(point)
    except UserError:
        return False
    return True


def unbounded(f: Formulas, name: str) -> bool:
    """Whether the formulas hold however large a size gets: learned positions end, and a state that
    was made for one batch serves no other.
    """
    return covered(f, {**f.point, name: FAR})


def _answer(f: Formulas, name: str, values: Sequence[int]) -> Answer:
    return f.model.answer({**f.point, name: np.array(values, dtype=np.float64)})


def _points(f: Formulas, name: str, values: Sequence[int]) -> list[SweepPoint]:
    a = _answer(f, name, values)
    rows = []
    for i, value in enumerate(values):
        at = {**f.point, name: value}
        held = float(value_at(f.closed.memory.total, at))
        rows.append(SweepPoint(
            value, f.execution, float(a.flops[i]), float(a.moved[i]), float(a.ideal_compute[i]),
            float(a.ideal_memory[i]), float(a.seconds[i]), regimes_of(a)[i],
            int(value_at(f.closed.tokens, at)), held, held <= f.model.defaults["capacity"],
            float(a.network[i]),
        ))  # fmt: skip
    return rows


def _traced(step: Step, axis: str) -> SweepPoint:
    held = float(step.memory.total)
    value = {"batch": step.workload.batch, "seq": step.workload.seq}.get(
        axis, step.workload.context)  # fmt: skip
    return SweepPoint(
        value, step.ledger.execution, step.cost.total_flops, step.cost.total_bytes,
        step.times.compute, step.times.memory, step.times.step, step.times.regime,
        step.workload.tokens, held, step.feasible,
    )  # fmt: skip


def regimes_of(a: Answer) -> list[str]:
    waits = np.stack([getattr(a, name) for name in _RESOURCES])
    return [_RESOURCES[int(i)] for i in np.argmax(waits, axis=0)]


def _crossings(f: Formulas, name: str, values: Sequence[int]) -> list[Crossing]:
    """Where the sums reach the ridge, where memory ends, where the step waits for another thing."""
    most, low = values[-1], _lowest(f, name, values[0])
    at = {k: v for k, v in f.point.items() if k != name}
    total = sums(f.closed, f.model, at)
    sides = ("FLOPs at the peak, s", "bytes, s")
    if not unbounded(f, name):
        ridge = crossover("", name, total["compute"], total["memory"], sides, low, most)
    elif name == "B":
        ridge = compute_bound_batch(f.closed, f.model, at)
    else:
        ridge = crossover("", name, total["compute"], total["memory"], sides, low)
    if ridge.value == low:
        found = [Crossing(f.execution, "FLOP/B is beyond the ridge", low, ridge.high,
                          "from the least size on")]  # fmt: skip
    else:
        found = [Crossing(f.execution, RIDGE, ridge.value, ridge.high, _why(ridge, name))]
    capacity = f.model.defaults["capacity"]
    full = first_crossing(total["held"], capacity + 1, name, values[0], most)
    if full is not None and full > values[0]:
        found.append(Crossing(f.execution, "no longer fits in one chip", full, most,
                              f"holds more than {size(capacity)}"))  # fmt: skip
    elif full is not None:
        held = size(float(value_at(total["held"], {name: values[0]})))
        found.append(
            Crossing(
                f.execution,
                "fits in one chip",
                None,
                None,
                f"at no {name}: {values[0]:,} holds {held} of {size(capacity)}",
            )
        )
    return found + _changes(f, name, values)


def _why(ridge: Crossover, name: str) -> str:
    """What bears on the answer, or why there is none, in the words of the report."""
    if ridge.value is not None:
        return "; ".join(ridge.notes)
    if ridge.high is not None or ridge.limit is None:
        return ridge.proof
    return (
        f"the time of the FLOPs stays below that of the bytes at every {name}, and tends to "
        f"{ridge.limit:.1%} of it as {name} grows"
    )


def _lowest(f: Formulas, name: str, known: int) -> int:
    """The least value for which the formulas hold; `known` is one."""
    low = f.closed.scope.symbols[name].low
    return next(v for v in range(low, known + 1) if covered(f, {**f.point, name: v}))


def _changes(f: Formulas, name: str, values: Sequence[int]) -> list[Crossing]:
    """Every change of what most of the estimate waits for, to the very value.

    Work comes in tiles, so that the answer may go to and fro; that is one change, with a note.
    """
    if len(values) < 2:
        return []
    line = sorted({round(v) for v in np.geomspace(values[0], values[-1], _LINE)} | set(values))
    regimes = regimes_of(_answer(f, name, line))
    found: list[tuple[int, str, str]] = []
    for i in range(1, len(line)):
        if regimes[i] == regimes[i - 1]:
            continue
        low, high = line[i - 1], line[i]
        while high - low > 1:
            middle = (low + high) // 2
            same = regimes_of(_answer(f, name, [middle]))[0] == regimes[i - 1]
            low, high = (middle, high) if same else (low, middle)
        found.append((high, regimes[i - 1], regimes[i]))
    merged: list[Crossing] = []
    while found:
        first, before, after = found.pop(0)
        note = f"for {before} below"
        while len(found) > 1 and found[1][2] == after and found[1][0] <= first * _NEAR:
            note = f"for {before} below, and now and then up to {found[1][0]:,}"
            del found[:2]
        merged.append(Crossing(f.execution, f"waits most for {after}", first, values[-1], note))
    return merged


def decode_limits(f: Formulas, timing: Timing) -> list[DecodeLimit]:
    """Expert parallelism by context: from which batch a chip on decode waits for compute."""
    closed, model = f.closed, f.model
    if "B" not in f.point or "L" not in f.point or not unbounded(f, "B"):
        return []
    sizes = [1]
    if closed.experts is not None:
        count = closed.experts.count
        closed = closed.over_experts()
        model = StepModel(closed.rows, model.chip, timing, closed.scope, closed.network)
        sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if count % n == 0]
    longest = closed.longest or 16_384
    lengths = sorted({n for n in (2048, 4096, 8192, 16_384) if n <= longest} | {f.point["L"]})
    table = compute_bound_exploration(closed, model, sizes, lengths, share=1.0)
    place = {name: table.columns.index(name) for name in table.columns}
    found = []
    for row in table.rows:
        cells: list[Any] = [row[place[name]] for name in _LIMIT]
        found.append(DecodeLimit(model.chip.id, *cells))
    return found


def context_limit(f: Formulas) -> list[ContextLimit]:
    """Where FLOP/B goes as the context grows without end; empty where its FLOPs do not grow."""
    if "L" not in f.point or not unbounded(f, "L"):
        return []
    total = sums(f.closed, f.model, {k: v for k, v in f.point.items() if k != "L"})
    far, farther = ({"L": 2**k} for k in (60, 61))
    flops, compute = value_at(total["flops"], far), value_at(total["compute"], far)
    if not compute or not flops * 1.9 < value_at(total["flops"], farther):
        return []  # windows, or a state of fixed size
    ridge = flops / compute / f.model.chip.memory_bandwidth
    intensity = flops / value_at(total["bytes"], far)
    return [ContextLimit(f.model.chip.id, float(intensity), float(ridge))]
