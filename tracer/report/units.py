"""Units of table columns: how a raw value reads, and whether values of a column may be added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .text import seconds, si


class Unit(NamedTuple):
    """`format` makes a raw value readable; raw values stay in CSV and JSON.

    Attributes:
        meaning: what the number is, for the schema.
        format: raw value to text.
        number: aligned right, sorted by size.
        adds: a sum over rows means something.
        code: set in a monospaced font (paths, ops, names from the model).
    """

    meaning: str
    format: Callable[[Any], str]
    number: bool = True
    adds: bool = False
    code: bool = False


def _rate(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"


def _delta(value: float) -> str:
    text = f"{value:+.1%}"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text


def _times(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _plain(value: float) -> str:
    """Four figures; a size is written out, so that 32,768 stays itself."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:,.4g}"


def _amount(value: float) -> str:
    if 0 < abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


UNITS: dict[str, Unit] = {
    "text": Unit("text", str, number=False),
    "code": Unit("a name from the model or the program", str, number=False, code=True),
    "module": Unit("module path, layer numbers as *", str, number=False, code=True),
    "op": Unit("op name", str, number=False, code=True),
    "count": Unit("whole number", lambda v: f"{v:,.0f}", adds=True),
    "times": Unit("times, a mean over ranks", _times, adds=True),
    "size": Unit("a size or a choice: a whole number that is not summed", lambda v: f"{v:,}"),
    "FLOP": Unit("FLOPs, 2 a multiply-add", lambda v: f"{si(v)}FLOP", adds=True),
    "B": Unit("bytes, decimal prefixes", lambda v: f"{si(v)}B", adds=True),
    "s": Unit("seconds", seconds, adds=True),
    "share": Unit("share of the whole, 1 is all of it", lambda v: f"{v:.1%}", adds=True),
    "ratio": Unit("share or ratio, 1 is equal; not summed", lambda v: f"{v:.1%}"),
    "delta": Unit("relative change, 0 is none", _delta),
    "number": Unit("plain number", _plain),
    "FLOP/B": Unit("FLOPs a byte of memory traffic", lambda v: f"{v:,.1f}"),
    "FLOP/s": Unit("FLOPs a second", lambda v: f"{si(v)}FLOP/s"),
    "B/s": Unit("bytes a second", lambda v: f"{si(v)}B/s"),
    "tokens/s": Unit("tokens (or images, clips) a second", _rate),
    "hours": Unit("GPU hours", _amount),
    "USD": Unit("US dollars", _amount),
    "%": Unit("per cent", lambda v: f"{v:.1f}"),
    "signed %": Unit("per cent, signed", lambda v: f"{v:+.1f}"),
}


def show(value: Any, unit: str) -> str:
    """A raw value as text; a dash for None, which means "does not apply here".

    >>> show(767753388556288, "FLOP"), show(0.5, "share"), show(None, "B")
    ('767.8 TFLOP', '50.0%', '-')
    """
    return "-" if value is None else UNITS[unit].format(value)
