"""d ln T / d ln knob at one point, for every knob, and the values at which the answer changes.

Slopes come from the closed form: a ten-thousandth to either side of a real number, one to either
side of a whole one (of EP, the next power of two). Kernels work in whole tiles, so a slope across a
tile's edge is steep and one between edges is flat, which is why the time at half and at twice the
value stands beside. Knobs of the model's structure are traced again at two other values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import UserError
from ..machine.symbolic import StepModel
from ..machine.tables import Array
from .closed import EP, Closed
from .records import Elasticity
from .structure import Cache, Structure, closed_form, config_value

STEP = 1e-4
REACH = 64.0  # factor to either side within which changes are looked for
_LINE = 400  # values on each side, geometric
_DEPTH = 4  # halvings that are looked up at once
SAME = {"matmul_efficiency", "memory_efficiency"}  # as the peak and the bandwidth
SHARES = {"matmul_efficiency", "memory_efficiency", "clock"}  # at most 1
RESOURCES = ("compute", "memory", "latency", "network")


def elasticities(
    closed: Closed, model: StepModel, point: Mapping[str, float]
) -> tuple[Elasticity, ...]:
    """All knobs that the seconds at `point` depend on, steepest first.

    Raises:
        UserError: `point` is out of range.
    """
    closed.check(point)
    values = {**model.defaults, **point}
    found = [
        _one(closed, model, point, name, values[name])
        for name in sorted(model.names - SAME)
        if values.get(name, 0) > 0  # no logarithm of a launch that takes nothing
    ]
    return tuple(sorted(found, key=lambda e: -abs(e.above or e.below or 0.0)))


def _one(
    closed: Closed, model: StepModel, point: Mapping[str, float], name: str, at: float
) -> Elasticity:
    least, most = _limits(closed, name)
    low, high = at * math.exp(-STEP), at * math.exp(STEP)
    if name in closed.scope.symbols:  # whole numbers: the neighbours
        low, high = (at / 2, at * 2) if name == EP else (at - 1, at + 1)
    line = np.array([low, at, high, at / 2, at * 2])
    down, here, up, half, double = model.seconds({**point, name: line}).tolist()
    changes = _changes(closed, model, point, name, at)
    return Elasticity(
        name, at,
        math.log(here / down) / math.log(at / low) if low >= least else None,
        math.log(up / here) / math.log(high / at) if high <= most else None,
        half / here if least <= at / 2 else None,
        double / here if at * 2 <= most else None,
        changes[0], changes[1], changes[2], changes[3], REACH,
    )  # fmt: skip


def _limits(closed: Closed, name: str) -> tuple[float, float]:
    if name in closed.scope.symbols:
        longest = closed.longest if name in ("L", "S") else None
        if name == EP and closed.experts is not None:
            longest = closed.experts.count
        return closed.scope.symbols[name].low, longest or math.inf
    return 0.0, (1.0 if name in SHARES else math.inf)


def _changes(
    closed: Closed, model: StepModel, point: Mapping[str, float], name: str, at: float
) -> tuple[Any, ...]:
    """Nearest values below and above at which a kernel, and the step, wait for something else."""
    least, most = _limits(closed, name)
    whole = name in closed.scope.symbols
    below = _line(at, max(at / REACH, least), whole)
    above = _line(at, min(at * REACH, most), whole)
    found: list[Any] = []
    for line in (below, above):
        found.append(_first_change(model, point, name, line, whole, kernels=True))
    for line in (below, above):
        found.append(_first_change(model, point, name, line, whole, kernels=False))
    return tuple(found)


def _line(start: float, end: float, whole: bool) -> Array:
    if start == end or (end > start) != (end >= start):
        return np.array([start])
    line = np.geomspace(start, end, _LINE)
    if whole:
        line = np.array(list(dict.fromkeys([start, *np.round(line).tolist()])))
    return line


def _first_change(
    model: StepModel, point: Mapping[str, float], name: str, line: Array, whole: bool, kernels: bool
) -> Any:
    """The first value along `line` with another answer than its first one, refined by halving."""

    def answers(values: Array) -> Any:
        given = {**point, name: values}
        if kernels:
            compute, memory = model.sides(given)
            return (compute >= memory).T
        answer = model.answer(given)
        waits = np.stack([getattr(answer, resource) for resource in RESOURCES])
        return waits.argmax(axis=0)[:, None]

    if len(line) < 2:
        return None
    states = answers(line)
    other = np.flatnonzero((states != states[0]).any(axis=1))
    if not len(other):
        return None
    place = int(other[0])
    near, far = float(line[place - 1]), float(line[place])
    while middles := _middles(near, far, whole):
        others = (answers(np.array(middles)) != states[0]).any(axis=1)
        known = dict(zip(middles, others.tolist(), strict=True))
        while (middle := _middle(near, far, whole)) in known:
            near, far = (near, middle) if known[middle] else (middle, far)
    if kernels:
        return far
    return far, RESOURCES[int(answers(np.array([far]))[0, 0])]


def _middle(near: float, far: float, whole: bool) -> float | None:
    """Between two values; None if they are as close as it gets."""
    if abs(far - near) <= (1 if whole else 1e-9 * abs(near)):
        return None
    middle = float(round((near + far) / 2)) if whole else math.sqrt(near * far)
    return None if middle in (near, far) else middle


def _middles(near: float, far: float, whole: bool, depth: int = _DEPTH) -> list[float]:
    """All that the next `depth` halvings could ask for: many values cost hardly more than one."""
    middle = _middle(near, far, whole) if depth else None
    if middle is None:
        return []
    sides = ((near, middle), (middle, far))
    return [middle, *(m for side in sides for m in _middles(*side, whole, depth - 1))]


def structural(
    structure: Structure, model: StepModel, point: Mapping[str, float], knobs: Sequence[str],
    cache: Cache, chosen: Mapping[str, tuple[int, int]] | None = None,
) -> tuple[Elasticity, ...]:  # fmt: skip
    """Slopes over knobs of the model's structure: half and twice its value, each traced again.

    `chosen`: other values below and above by knob, such as what divides evenly.
    """
    found = []
    for knob in knobs:
        key, at = config_value(structure.model, knob)
        low, high = (chosen or {}).get(knob, (at // 2, at * 2))
        times = {}
        for value in (low, at, high):
            try:
                times[value] = _seconds(structure, model, point, {key: value}, cache)
            except UserError:  # such a model cannot be built
                continue
        if at not in times:
            raise UserError(f"{knob}: {structure.model} as it is cannot be traced")
        here = times[at]
        slope = {
            value: math.log(seconds / here) / math.log(value / at)
            for value, seconds in times.items()
            if value != at
        }
        half, double = (times[v] / here if v in times else None for v in (low, high))
        found.append(
            Elasticity(
                knob, at, slope.get(low), slope.get(high),
                half if low * 2 == at else None, double if high == at * 2 else None,
                changes=f"traced at {', '.join(str(v) for v in times)}",
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda e: -abs(e.above or e.below or 0.0)))


def _seconds(
    structure: Structure, model: StepModel, point: Mapping[str, float], changes: Mapping[str, int],
    cache: Cache,
) -> float:  # fmt: skip
    changed = replace(
        structure, changes=tuple(sorted({**dict(structure.changes), **changes}.items()))
    )
    closed = closed_form(changed, cache)
    again = StepModel(closed.rows, model.chip, model.timing, closed.scope)
    return float(again.seconds(point)[0])
