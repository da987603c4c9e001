"""Numbers and names as people read them. The only place where units change.

An expression is shown by its value at the traced sizes; whoever shows it says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..algebra import sample

_SI = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: Any, digits: int = 4) -> str:
    """Decimal prefix, `digits` significant figures, a space before the prefix.

    >>> si(767753388556288), si(70272), si(0)
    ('767.8 T', '70.27 k', '0 ')
    """
    value = sample(value)
    for scale, prefix in _SI:
        if float(f"{abs(value):.{digits - 1}e}") >= scale:  # 999.96e9 is 1.000 T
            return f"{_significant(value / scale, digits)} {prefix}"
    return f"{value:.0f} " if value == int(value) else f"{_significant(value, digits)} "


def seconds(value: float) -> str:
    """Seconds with a fitting prefix: 74.8 ms, 13.2 s, 2.60 us."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if float(f"{abs(value):.2e}") >= scale:  # 0.9996 s is 1.00 s
            return f"{_significant(value / scale, 3)} {unit}"
    return f"{value * 1e9:.3g} ns" if value else "0 s"


def size(value: Any) -> str:
    """Bytes with a decimal prefix, GB the largest: 1,342 GB, 0.58 GB, 4.61 kB."""
    value = sample(value)
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= 0.1 * scale:
            number = value / scale
            return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return f"{value:.0f} B"


def _significant(value: float, digits: int) -> str:
    whole = len(str(int(float(f"{abs(value):.{digits - 1}e}"))))
    return f"{value:,.{max(digits - whole, 0)}f}"


def pattern(path: str) -> str:
    """A module path with its layer numbers as `*`: `model.layers.*.mlp.experts`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path) or "(top)"


def listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def plural(count: int, noun: str, many: str = "") -> str:
    """1 chip, 2 chips; `many` where it is not an s more."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
