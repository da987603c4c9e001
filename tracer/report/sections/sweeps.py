"""Sweeps of one knob, with the points where the regime changes."""

from __future__ import annotations

from .. import palette
from ..bars import draw_curves
from ..blocks import Column, Drawing, Figure, Section, Text, section_of, table_of
from ..facts import item_of
from ..records import Crossing, Sweep, SweepPoint
from ..summary import Study
from ..text import plural

_AXES = {
    "batch": ("batch", "batch (B)"),
    "seq": ("length", "tokens a sequence (S)"),
    "context": ("context", "keys that a token attends (L)"),
}


def sections(study: Study) -> list[Section | None]:
    """One section a sweep, in the order given."""
    return [_section(study, sweep) for sweep in study.sweeps or () if sweep.points]


def _section(study: Study, sweep: Sweep) -> Section | None:
    name, axis = _AXES.get(sweep.axis, (sweep.axis, sweep.axis))
    held = ", ".join(f"{key} {value:,}" for key, value in sweep.held.items())
    slug = f"{sweep.phase}_{sweep.axis}_{sweep.chip}"
    return section_of(
        f"{sweep.phase.capitalize()} over {name} on {sweep.chip}",
        Text(
            f"{sweep.phase.capitalize()} at {plural(len(_values(sweep)), 'value')} of {name}; "
            f"held: {held or 'everything else'}. At the ridge the FLOPs, each at its precision's "
            "peak, take as long as the bytes: FLOP/B says on which side of it the sums are. "
            "**waits for** says what most of the estimated time waits for, kernel by kernel, and "
            "may change at another value."
        ),
        table_of(f"crossings_{slug}", "Where something changes.", (
            Column("exec", "exec"), Column("what", "what"), Column("value", f"at {name}", "size"),
            Column("searched", "searched"), Column("note", "note"),
        ), [_crossing(c) for c in sweep.crossings]),
        table_of(f"sweep_{slug}", f"Each row is one step at that {name}.", (
            Column("exec", "exec"), Column(sweep.axis, name, "size"),
            Column("intensity", "FLOP/B", "FLOP/B"), Column("compute", "compute", "s"),
            Column("memory", "memory", "s"), Column("network", "network", "s"),
            Column("step", "step", "s"), Column("rate", "FLOP/s", "FLOP/s"),
            Column("tokens_per_s", f"{item_of(study)}s/s", "tokens/s"),
            Column("regime", "waits for"), Column("held", "holds", "B"), Column("fits", "fits"),
        ), [_row(point) for point in sweep.points]),
        _figure(sweep, slug, name, axis),
    )  # fmt: skip


def _values(sweep: Sweep) -> list[int]:
    return sorted({point.value for point in sweep.points})


def _crossing(c: Crossing) -> tuple[object, ...]:
    searched = "all sizes" if c.searched_to is None else f"up to {c.searched_to:,}"
    return c.execution, c.what, c.value, searched, c.note or ("no" if c.value is None else None)


def _row(p: SweepPoint) -> tuple[object, ...]:
    return (
        p.execution, p.value, p.flops / p.bytes if p.bytes else None, p.compute, p.memory,
        p.network or None, p.step, p.flops / p.step if p.step else None,
        p.tokens / p.step if p.step else None, p.regime, p.held, "yes" if p.fits else "no",
    )  # fmt: skip


def _figure(sweep: Sweep, slug: str, name: str, axis: str) -> Figure:
    colour = palette.PHASES.get(sweep.phase, palette.OTHER)
    curves = []
    for execution in dict.fromkeys(p.execution for p in sweep.points):
        mine = sorted((p for p in sweep.points if p.execution == execution), key=lambda p: p.value)
        style = "-" if execution == "efficient" else "--"
        xs = [p.value for p in mine]
        curves.append((f"step, {execution}", xs, [p.step for p in mine], colour, style))
        if execution == "efficient":
            curves.append(("compute at peak", xs, [p.compute for p in mine],
                           palette.WAITS["compute"], ":"))  # fmt: skip
            curves.append(("memory at full bandwidth", xs, [p.memory for p in mine],
                           palette.WAITS["memory"], ":"))  # fmt: skip
    values = _values(sweep)
    marks = [
        (f"{c.what}: {c.value:,.0f}", c.value) for c in sweep.crossings
        if c.value is not None and c.execution == "efficient" and values[0] <= c.value <= values[-1]
    ]  # fmt: skip
    return Figure(
        f"sweep_{slug}",
        f"The step and its two bounds over {name}. Where the dotted lines cross, the sums change "
        "sides; the step lies above both, since kernels do not overlap.",
        Drawing(draw_curves, (curves, (axis, "seconds"),
                              f"{sweep.phase.capitalize()} over {name} on {sweep.chip}", marks)),
    )  # fmt: skip
