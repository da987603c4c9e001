"""Which knob moves the step: elasticities at the workload, and rankings over grids."""

from __future__ import annotations

import statistics

from ...study.structure import STRUCTURE
from ..bars import draw_signed
from ..blocks import Block, Column, Drawing, Figure, Section, Text, section_of, table_of
from ..records import Elasticity, Grid, Sensitivity
from ..studies import cell
from ..summary import Study
from ..text import seconds

_SHOWN = 5  # points of a grid from either end
_CLEAR = 1.1  # of two knobs, the ratio of effects from which one is said to be stronger


def section(study: Study) -> Section | None:
    """Absent until the study computed something."""
    found = study.sensitivity
    if found is None or not (found.elasticities or found.grids):
        return None
    return section_of(
        "Sensitivity",
        Text(
            "An elasticity is the change of the step in % for 1 % more of a knob, all else held: "
            "-1 halves the step when the knob doubles, 0 does nothing. Sizes come whole and "
            "kernels work in tiles, so theirs is the slope from half to twice. **clock** is the "
            "share of the boost clock that a kernel keeps; **bytes.weights** is the width of a "
            "weight (1 is as traced), **sms** and **frequency** the number and clock of the chip's "
            "cores. What is below 0.001 is left out. An elasticity holds near the workload of this "
            "report; the grids show what happens further away." + _structure(study)
        ),
        *(_elasticities(list(found.elasticities))),
        *(part for grid in found.grids for part in _grid(grid)),
        _agreement(found),
    )


def _structure(study: Study) -> str:
    """Where the knobs of the config are varied, if it has one."""
    names = [k for k, keys in STRUCTURE.items() if any(key in (study.config or {}) for key in keys)]
    if not names:
        return ""
    return (
        f" What the config sets ({', '.join(names)}) takes a trace for each value, longer than "
        "the rest of this report: `python -m tracer.sweep --study structure` varies it."
    )


def _elasticities(rows: list[Elasticity]) -> list[Block | None]:
    phases = list(dict.fromkeys(e.phase for e in rows))  # in the order of the report
    ordered = sorted(
        rows, key=lambda e: (phases.index(e.phase), e.execution, e.chip, -abs(e.value))
    )
    parts: list[Block | None] = [
        table_of(
            "elasticities",
            "Elasticities of the step, largest first, and from which multiple of the knob on the "
            "step waits for something else.",
            (
                Column("phase", "phase"),
                Column("exec", "exec"),
                Column("chip", "chip", "code"),
                Column("knob", "knob", "code"),
                Column("kind", "kind"),
                Column("value", "% for 1 %", "number"),
                Column("halved", "step at half", "ratio"),
                Column("doubled", "step at twice", "ratio"),
                Column("changes", "then waits for"),
            ),
            [(*row[:-1], row.changes or None) for row in ordered],
        )
    ]
    for phase in dict.fromkeys(e.phase for e in ordered):
        chip = next(e.chip for e in rows if e.phase == phase)
        mine = [e for e in ordered if (e.phase, e.chip) == (phase, chip)][:12]
        bars = [(f"{e.knob} ({e.execution})", e.value) for e in mine]
        parts.append(_elasticity_figure(phase, chip, bars))
    return parts


def _elasticity_figure(phase: str, chip: str, bars: list[tuple[str, float]]) -> Figure:
    return Figure(
        f"elasticities_{phase}",
        f"What moves {phase} on {chip}: bars to the left make it faster, to the right slower.",
        Drawing(
            draw_signed,
            (bars, "% of the step for 1 % of the knob", f"Elasticities of {phase} on {chip}"),
        ),
        (8.0, 1.4 + 0.3 * len(bars)),
    )


def knob_effects(grid: Grid) -> list[tuple[str, float, str]]:
    """(knob, spread of the medians, the medians as text), largest spread first."""
    found = []
    for knob in grid.points[0].knobs if grid.points else ():
        values: dict[float | str, list[float]] = {}
        for point in grid.points:
            values.setdefault(point.knobs[knob], []).append(point.step)
        medians = {value: statistics.median(steps) for value, steps in values.items()}
        ordered = sorted(medians, key=lambda v: (isinstance(v, str), v))
        text = ", ".join(f"{cell(knob, value)}: {seconds(medians[value])}" for value in ordered)
        low = min(medians.values())
        found.append((knob, max(medians.values()) / low - 1 if low else 0.0, text))
    return sorted(found, key=lambda row: -row[1])


def _agreement(found: Sensitivity) -> Text | None:
    """Where the grid ranks two knobs the other way round than the elasticities do."""
    lines = []
    for grid in found.grids:
        effects = {knob: effect for knob, effect, _ in knob_effects(grid)}
        slopes = {
            e.knob: abs(e.value) for e in found.elasticities
            if (e.phase, e.execution, e.chip) == (grid.phase, grid.execution, grid.chip)
        }  # fmt: skip
        both = sorted((k for k in effects if k in slopes), key=lambda k: -slopes[k])
        turned = [
            (a, b) for i, a in enumerate(both) for b in both[i + 1 :]
            if effects[b] > effects[a] * _CLEAR and slopes[a] > slopes[b] * _CLEAR
        ]  # fmt: skip
        where = f"{grid.phase.capitalize()} on {grid.chip}"
        lines += [
            f"{where}: near the workload `{a}` moves the step more than `{b}` ({slopes[a]:.2f} "
            f"against {slopes[b]:.2f} % for 1 %), over the grid less ({effects[a]:.0%} against "
            f"{effects[b]:.0%} between the medians)."
            for a, b in turned
        ]
        if not turned and len(both) > 1:
            lines.append(f"{where}: elasticities and grid agree on the order of the knobs, but for "
                         f"differences below {_CLEAR - 1:.0%}.")  # fmt: skip
    return Text("\n".join(f"* {line}" for line in lines)) if lines else None


def _grid(grid: Grid) -> list[Block | None]:
    knobs = list(grid.points[0].knobs) if grid.points else []
    slug = f"{grid.phase}_{grid.execution}_{grid.chip}"
    ordered = sorted(grid.points, key=lambda p: p.step)
    shown = ordered
    if len(ordered) > 2 * _SHOWN:
        shown = [*ordered[:_SHOWN], *ordered[-_SHOWN:]]
    return [
        table_of(
            f"knobs_{slug}",
            f"Knobs of {grid.phase}, {grid.execution}, on {grid.chip}, ranked by how far the "
            f"median step moves over their values ({len(grid.points):,} points).",
            (
                Column("knob", "knob", "code"),
                Column("effect", "effect", "delta"),
                Column("medians", "median step by value"),
            ),
            knob_effects(grid),
        ),
        table_of(
            f"grid_{slug}",
            "The fastest and the slowest points.",
            (
                *(Column(name, name) for name in knobs),
                Column("step", "step", "s"),
                Column("regime", "waits for"),
                Column("fits", "fits"),
            ),
            [
                (*(cell(name, p.knobs[name]) for name in knobs), p.step, p.regime,
                 "yes" if p.fits else "no")
                for p in shown
            ],
        ),
    ]  # fmt: skip
