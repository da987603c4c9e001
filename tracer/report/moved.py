"""What moves a step: elasticities at the report's sizes, and a grid of half to twice each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from ..algebra.expression import value_at
from ..study import elasticities as slopes
from ..study.records import Elasticity as Slope
from .records import Elasticity, Grid, GridPoint
from .swept import Formulas, covered, regimes_of

_FACTORS = (0.5, 1.0, 2.0)
_CHIP = {"bandwidth", "sms", "frequency", "vector", "capacity", "link", "nic", "exchange"}
_SHOWN = 1e-3  # elasticities nearer to 0 than this move nothing


def elasticities(phase: str, f: Formulas) -> list[Elasticity]:
    """Every knob that moves the step at all. Of sizes, which only come whole, the slope is that
    from half to twice their value; a neighbour's would be that of a tile's edge.
    """
    found = []
    for slope in slopes.elasticities(f.closed, f.model, f.point):
        value = _value(slope, slope.knob in f.point)
        if value is not None and abs(value) >= _SHOWN:
            found.append(Elasticity(
                phase, f.execution, f.model.chip.id, slope.knob, kind(slope.knob), value,
                slope.halved, slope.doubled, _changes(slope),
            ))  # fmt: skip
    return found


def _value(slope: Slope, whole: bool) -> float | None:
    if whole:
        low, high = slope.halved or 1.0, slope.doubled or 1.0
        span = (slope.halved is not None) + (slope.doubled is not None)
        return math.log(high / low) / (span * math.log(2)) if span else slope.above
    return slope.above if slope.above is not None else slope.below


def _changes(slope: Slope) -> str:
    parts = []
    for change in (slope.step_below, slope.step_above):
        if change is not None:
            parts.append(f"{change[1]} at {change[0] / slope.at:,.3g} times")
    return ", ".join(parts)


def kind(knob: str) -> str:
    """What sort of knob it is."""
    if knob in ("B", "S", "L", "EP"):
        return "workload"
    if knob in _CHIP or knob.startswith("peak."):
        return "chip"
    return "precision" if knob.startswith("bytes.") else "assumption"


def grid(phase: str, f: Formulas, known: Sequence[Elasticity]) -> Grid | None:
    """All combinations of half, once and twice the strongest knobs of each kind."""
    chosen = [e.knob for e in known if e.kind == "workload"]
    for want, count in (("chip", 2), ("precision", 1)):
        strongest = sorted((e for e in known if e.kind == want), key=lambda e: -abs(e.value))
        chosen += [e.knob for e in strongest[:count]]
    values = {k: _around(f, k) for k in chosen}
    values = {k: v for k, v in values.items() if len(v) > 1}
    if len(values) < 2:
        return None
    points = list(itertools.product(*values.values()))
    columns = {k: np.array([p[i] for p in points]) for i, k in enumerate(values)}
    answer = f.model.answer({**f.point, **columns})
    regimes = regimes_of(answer)
    rows = []
    for number, point in enumerate(points):
        knobs = dict(zip(values, point, strict=True))
        sizes = {n: int(knobs.get(n, own)) for n, own in f.point.items()}
        held = float(value_at(f.closed.memory.total, sizes))
        shown = {k: int(v) if float(v).is_integer() else v for k, v in knobs.items()}
        rows.append(GridPoint(shown, float(answer.seconds[number]), regimes[number],
                              held <= f.model.defaults["capacity"]))  # fmt: skip
    return Grid(phase, f.execution, f.model.chip.id, tuple(rows))


def _around(f: Formulas, knob: str) -> list[float]:
    """Half, once and twice its value; sizes whole and where the formulas hold."""
    if knob not in f.point:
        return [factor * f.model.defaults[knob] for factor in _FACTORS]
    whole = sorted({round(factor * f.point[knob]) for factor in _FACTORS})
    return [float(v) for v in whole if covered(f, {**f.point, knob: v})]
