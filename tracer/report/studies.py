"""Answers of studies on a terminal: tables in the units that people read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from ..study.records import Crossover, Elasticity, GridRanking, Side, SweepTable
from . import text

_SECONDS = {"seconds", "ideal_seconds", "launch", "host", "exchange"}
_BYTES = {"memory_bytes", "capacity"}
_RATES = {"bandwidth": "B/s", "link": "B/s", "nic": "B/s", "frequency": "Hz", "vector": "FLOP/s"}
_SHARES = {"waits_compute", "waits_memory", "waits_latency", "waits_network", "mfu"}


def table(answer: SweepTable) -> str:
    """Title, rows and notes."""
    shown = [column for column in answer.columns if not _nothing(answer, column)]
    headers = [name.replace("_", " ").replace("waits ", "") for name in shown]
    columns = [[cell(name, value) for value in answer.column(name)] for name in shown]
    rows = list(zip(*columns, strict=True))
    title = answer.title + ("" if answer.kept == "all" else f": {answer.kept}")
    body = tabulate(rows, headers, colalign=["right"] * len(shown) if rows else None,
                    disable_numparse=True)  # fmt: skip
    return "\n".join([title, body, *(f"note: {note}" for note in answer.notes)])


def cell(name: str, value: Any) -> str:
    """One value of the column `name`."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or name == "fits":
        return "yes" if value else "no"
    if name in _SECONDS:
        return text.seconds(value)
    if name in _BYTES:
        return text.size(value)
    if name in _SHARES:
        return f"{value:.1%}"
    unit = _RATES.get(name, "FLOP/s" if name.startswith("peak.") else "")
    if unit:
        return text.si(value) + unit
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"


def _nothing(answer: SweepTable, column: str) -> bool:
    """A column that is 0 throughout says nothing, such as a network that is not there."""
    return column == "waits_network" and all(value == 0 for value in answer.column(column))


def crossovers(answers: Sequence[Crossover]) -> str:
    """A paragraph each: the question, the answer, both sides around it, the proof."""
    return "\n\n".join(_crossover(answer) for answer in answers)


def _crossover(answer: Crossover) -> str:
    lines = [answer.question]
    if answer.value is None:
        lines.append(f"  never: {answer.proof}")
    elif answer.value == answer.low:
        lines.append(f"  {answer.proof}")
    else:
        lines.append(f"  {answer.unknown} = {answer.value:,}; {answer.proof}")
    for side in dict.fromkeys((answer.below, answer.above)):  # one, where nothing lies below
        if side is not None and side.left == side.left and side.right == side.right:
            lines.append(f"  {answer.unknown} = {side.at:,.0f}: {_sides(answer, side)}")
    if answer.limit is not None:
        lines.append(f"  as {answer.unknown} grows, the first over the second: {answer.limit:.4g}")
    return "\n".join([*lines, *(f"  note: {note}" for note in answer.notes)])


def _sides(answer: Crossover, side: Side) -> str:
    parts = []
    for label, value in zip(answer.sides, (side.left, side.right), strict=True):
        name, _, unit = label.partition(", ")
        parts.append(f"{name} {value:.7g} {unit or 'B'}")  # digits enough to tell neighbours apart
    return " against ".join(parts)


def elasticities(answers: Sequence[Elasticity]) -> str:
    """One line a knob, steepest first."""
    headers = ("knob", "at", "d ln T / d ln", "upward", "T at half", "T at twice",
               "a kernel flips at", "the step at")  # fmt: skip
    rows = [
        (
            e.knob, cell(e.knob, e.at), _slope(e.below), _slope(e.above), _ratio(e.halved),
            _ratio(e.doubled),
            " / ".join(cell(e.knob, v) for v in (e.kernel_below, e.kernel_above)),
            " / ".join(
                "-" if v is None else f"{cell(e.knob, v[0])} ({v[1]})"
                for v in (e.step_below, e.step_above)
            ),
        )
        for e in answers
    ]  # fmt: skip
    return tabulate(rows, headers, colalign=["left", *["right"] * 7], disable_numparse=True)


def _slope(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value - 1:+.1%}"


def ranking(answers: Sequence[GridRanking]) -> str:
    """Effect of each knob over its grid."""
    rows = [
        (r.knob, f"{r.effect:.1%}",
         ", ".join(f"{cell(r.knob, v)}: {text.seconds(t)}" for v, t in r.medians))
        for r in answers
    ]  # fmt: skip
    headers = ("knob", "effect", "median time by value")
    return tabulate(rows, headers, colalign=("left", "right", "left"), disable_numparse=True)
