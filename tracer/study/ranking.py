"""Full grids over structure and point, ranked knob by knob: a median for each value.

The effect is the largest median over the smallest, less 1. It answers another question than an
elasticity: how far a knob moves the typical point of *this* grid over *these* values. A knob that
spans a factor of 8 looks stronger than one that spans 2; one that is not in the grid has no rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from ..machine.symbolic import StepModel
from .crossovers import sums
from .records import Cell, GridRanking, SweepTable
from .structure import Cache, Structure, closed_form, config_value

Say = Callable[[str], None]


def structural_grid(
    structure: Structure, model: StepModel, scales: Mapping[str, Sequence[float]],
    points: Mapping[str, Sequence[float]], executions: Sequence[str], cache: Cache,
    say: Say = print,
) -> SweepTable:  # fmt: skip
    """Every combination of structure (values of config keys over what they are) and point.

    `scales`: factors by structural knob, such as hidden: (0.75, 1, 1.25); `points`: values of
    symbols and knobs. Each structure is traced once; the points follow from its formulas.
    """
    from ..algebra.expression import value_at

    bases = {knob: config_value(structure.model, knob) for knob in scales}
    if "hidden" in scales:  # a wider model has wider feed-forward layers
        bases |= {knob: config_value(structure.model, knob) for knob in ("ffn", "expert_ffn")}
    rows: list[tuple[Cell, ...]] = []
    variants = [(e, f) for e in executions for f in itertools.product(*scales.values())]
    for number, (execution, factors) in enumerate(variants, 1):
        by_knob = dict(zip(scales, factors, strict=True))
        if "hidden" in by_knob:
            by_knob |= dict.fromkeys(("ffn", "expert_ffn"), by_knob["hidden"])
        changes = {bases[k][0]: round(bases[k][1] * factor) for k, factor in by_knob.items()}
        same = all(bases[k][1] == changes[bases[k][0]] for k in by_knob)
        say(f"{number} of {len(variants)}: {execution}, {changes}")
        variant = replace(
            structure, execution=execution, changes=() if same else tuple(sorted(changes.items()))
        )
        closed = closed_form(variant, cache)
        at = StepModel(closed.rows, model.chip, model.timing, closed.scope)
        for values in itertools.product(*points.values()):
            point = dict(zip(points, values, strict=True))
            answer = at.answer(point)
            symbols = {**closed.scope.samples, **point}
            total = sums(closed, at, {k: int(v) for k, v in symbols.items()
                                      if k in closed.scope.symbols})  # fmt: skip
            flops = float(value_at(total["flops"], {}))
            seconds = float(answer.seconds[0])
            peak = max(rate for name, rate in at.defaults.items() if name.startswith("peak.")
                       and name in at.names)  # fmt: skip
            shares = {"compute": answer.compute[0], "memory": answer.memory[0],
                      "latency": answer.latency[0]}  # fmt: skip
            regime = max(shares, key=lambda name: float(shares[name]))
            rows.append((execution, *factors, *values, float(answer.intensity[0]), seconds,
                         flops / seconds / peak, regime))  # fmt: skip
    axes = ("execution", *scales, *points)
    columns = (*axes, "flop_per_byte", "seconds", "mfu", "waits_for")
    return SweepTable(
        f"{structure.name}: {len(rows)} points", axes, columns, tuple(rows), len(rows)
    )


def rank(table: SweepTable, where: Mapping[str, Cell] | None = None) -> tuple[GridRanking, ...]:
    """Effect of every numeric axis on the median seconds of the rows that match `where`."""
    chosen = where or {}
    places = {name: table.columns.index(name) for name in table.axes}
    seconds = [float(str(value)) for value in table.column("seconds")]
    rows = [
        (row, time)
        for row, time in zip(table.rows, seconds, strict=True)
        if all(row[places[name]] == value for name, value in chosen.items())
    ]
    found = []
    for axis in table.axes:
        times: dict[float, list[float]] = {}
        for row, time in rows:
            value = row[places[axis]]
            if isinstance(value, int | float):
                times.setdefault(float(value), []).append(time)
        if len(times) > 1 and axis not in chosen:
            found.append(GridRanking(axis, tuple((v, median(times[v])) for v in sorted(times))))
    return tuple(sorted(found, key=lambda ranking: -ranking.effect))
