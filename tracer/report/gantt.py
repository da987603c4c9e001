"""A pipeline step as a Gantt chart: ranks downwards, time to the right, gaps are bubbles."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..parallel.schedules import Schedule, Timeline
from ..parallel.schedules.schedule import WORDS
from .figures import empty, plain_style
from .palette import EMPTY

_COLOURS = {"F": "#2f6f9f", "B": "#c8963e", "I": "#3f9488", "W": "#7d9a4b", "send": "#777777"}
_LABELS = {**WORDS, "send": "sending, nothing computed"}
_BAR = 0.84  # of a rank's height
_MANY = 1500  # bars, from which an SVG of them is too large for a page
_ROOM = 0.11  # inches that a number of two digits takes


class _Row(NamedTuple):
    """Bars of one colour, at one height."""

    pale: bool
    kind: str
    top: float
    height: float


def gantt(timeline: Timeline, path: Path) -> None:
    """Draw `timeline` to `path`, whose suffix (.svg, .png, .pdf) is the format.

    An overlapped F&B has its forward in the upper and its backward in the lower half. Paler bars
    are those of a rank's second and later stages. Numbers are micro-batches, left out where bars
    are too narrow for them.

    Raises:
        UserError: a format that cannot be drawn.
    """
    with plain_style():
        figure = empty(size_of(timeline.schedule))
        known = figure.canvas.get_supported_filetypes()
        if path.suffix.removeprefix(".").lower() not in known:
            raise UserError(f"cannot draw {path.name!r}; suffixes: {', '.join(sorted(known))}")
        draw(figure, timeline)
        figure.savefig(path, dpi=150)


def size_of(schedule: Schedule) -> tuple[float, float]:
    """Inches that a chart of it wants."""
    width = min(24.0, max(9.0, 2 + 0.22 * max(map(len, schedule.actions))))
    return width, 1.9 + 0.36 * schedule.ranks


def draw(figure: Any, timeline: Timeline) -> None:
    """The chart into an empty figure. Bars of a long schedule become one picture in an SVG."""
    schedule, step = timeline.schedule, timeline.step
    width = figure.get_figwidth()
    scale, unit = _unit(step.seconds)
    axes = figure.add_subplot()
    rows: dict[_Row, list[tuple[float, float]]] = defaultdict(list)
    for rank in range(schedule.ranks):
        _collect(timeline, rank, rows, axes, scale, step.seconds * _ROOM / width)
    many = sum(map(len, rows.values())) > _MANY
    for number in axes.texts:
        number.set_rasterized(many)
    legend: dict[str, Any] = {}
    for row, spans in sorted(rows.items(), key=lambda item: _rank_of_colour(item[0])):
        bars = axes.broken_barh(
            spans, (row.top, row.height), facecolors=_colour(row),
            edgecolor="white", linewidth=0.1 if many else 0.4,
            rasterized=many,
        )  # fmt: skip
        text = _LABELS[row.kind] + (", rank's further stages" if row.pale else "")
        legend.setdefault(text, bars)
    axes.set_xlim(0, step.seconds * scale)
    axes.set_ylim(schedule.ranks - 0.5, -0.5)
    axes.set_yticks(range(schedule.ranks))
    axes.set_ylabel("pipeline rank")
    axes.set_xlabel(f"time since the start of the step, {unit}")
    axes.set_facecolor(EMPTY)
    axes.set_title(
        f"{schedule}: {step.seconds * scale:.4g} {unit} a step, {step.bubble_share:.1%} bubble",
        fontsize=10,
    )
    figure.legend(
        list(legend.values()), list(legend), loc="outside lower center", fontsize=8,
        ncols=min(len(legend), 4), frameon=False,
    )  # fmt: skip


def _collect(timeline: Timeline, rank: int, rows: dict[_Row, list[tuple[float, float]]],
             axes: Any, scale: float, room: float) -> None:  # fmt: skip
    """Add the bars of a rank to `rows`, and write their numbers where they have `room` seconds."""
    first = timeline.schedule.stages_of_rank[rank][0]
    for slot in timeline.of_rank(rank):
        seconds = slot.end - slot.start
        height = _BAR / len(slot.action.parts)
        for i, part in enumerate(slot.action.parts):
            row = _Row(part.stage != first, part.kind, rank - _BAR / 2 + i * height, height)
            rows[row].append((slot.start * scale, seconds * scale))
            if seconds >= room:
                axes.text(
                    (slot.start + slot.end) / 2 * scale, row.top + height / 2, part.microbatch,
                    ha="center", va="center", fontsize=6 if height == _BAR else 5,
                    color="#333333" if row.pale else "white",
                )  # fmt: skip
        if slot.free > slot.end:
            row = _Row(False, "send", rank - _BAR / 2, _BAR)
            rows[row].append((slot.end * scale, (slot.free - slot.end) * scale))


def _colour(row: _Row) -> str:
    """Its kind's, mixed with white if it is pale: on a dark page it stays what it is."""
    full = _COLOURS[row.kind]
    if not row.pale:
        return full
    return "#" + "".join(f"{(int(full[i : i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))


def _rank_of_colour(row: _Row) -> tuple[bool, int, float]:
    """Rows in the order of the legend: full colours first, kinds as they follow each other."""
    return row.pale, list(_COLOURS).index(row.kind), row.top


def _unit(seconds: float) -> tuple[float, str]:
    """What to multiply seconds with, and the unit that this gives."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return factor, unit
    return 1e6, "µs"
