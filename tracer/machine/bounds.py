"""Which of two sums of products is the larger one everywhere in a box of points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from ..algebra import Call, Expr
from ..algebra.expression import Monomial, times
from .tables import Derived, Terms, Values, added, atom_names

Range = tuple[float, float]

_ROUNDING = 1e-12  # of sums, relative; far above that of doubles

# Calls that are largest and smallest in the corners of a box, if their arguments are.
_MONOTONE = {"round", "min", "max", "distinct", "floor_div", "bit_length"}


class Box:
    """Symbols and knobs between two numbers each, none of them negative."""

    def __init__(
        self, ranges: Mapping[str, Range], fixed: Mapping[str, float],
        derived: Mapping[str, Derived],
    ) -> None:  # fmt: skip
        self._ranges, self._fixed, self._derived = ranges, fixed, derived
        self._known: dict[Any, Range] = {}

    def never_above(self, x: Terms, y: Terms, *, strict: bool = False) -> bool:
        """Whether x <= y is proven at every point, or x < y if `strict`.

        All terms of x - y are divided by one that y has more of, so that what they share cancels;
        then every quotient is taken at its worst.
        """
        excess = {m: c for m, c in added(x, {m: -c for m, c in y.items()}).items() if c}
        if all(c < 0 for c in excess.values()):
            lows = [self.product(m)[0] for m in excess]
            return all(low >= 0 for low in lows) and (not strict or any(low > 0 for low in lows))
        for lead in (m for m, c in excess.items() if c < 0):
            if self.product(lead)[0] <= 0:
                continue
            inverse = tuple((atom, -power) for atom, power in lead)
            worst = []
            for monomial, c in excess.items():
                low, high = self.product(times(monomial, inverse))
                worst.append(c * (high if c > 0 else low))
            # Rounding must not turn "as large as" into "below".
            margin = -_ROUNDING * sum(map(abs, worst)) if strict else 0.0
            if sum(worst) <= margin and (not strict or margin < 0):
                return True
        return False

    def product(self, monomial: Monomial) -> Range:
        """The least and the largest value of a product of atoms."""
        low = high = 1.0
        for atom, power in monomial:
            bounds = sorted(_power(end, power) for end in self._atom(atom))
            low, high = low * bounds[0], high * bounds[1]
        # 0 times infinity is anything between them.
        return (0.0 if math.isnan(low) else low), (math.inf if math.isnan(high) else high)

    def _atom(self, atom: Any) -> Range:
        found = self._known.get(atom)
        if found is None:
            found = self._known[atom] = self._corners(atom)
        return found

    def _corners(self, atom: Any) -> Range:
        if isinstance(atom, str) and atom not in self._derived:
            return self._ranges.get(atom, (self._fixed.get(atom, 0.0),) * 2)
        if isinstance(atom, Call) and not _grows(atom):
            return 0.0, math.inf
        names = sorted(atom_names(atom, self._derived) & self._ranges.keys())
        if any(math.isinf(self._ranges[n][1]) for n in names) and "bit_length" in str(atom):
            return 0.0, math.inf  # NumPy has no digits of infinity
        ends = []
        for corner in itertools.product(*(self._ranges[name] for name in names)):
            given = {**self._fixed, **dict(zip(names, corner, strict=True))}
            ends.append(float(Values(given, self._derived).atom(atom)))
        return min(ends), max(ends)


def _power(value: float, power: int) -> float:
    if power > 0:
        return value**power
    return math.inf if value == 0 else value**power


def _grows(atom: Call) -> bool:
    """Whether a call rises with every symbol: monotone, of sums with positive terms only."""
    return atom.name in _MONOTONE and all(
        c > 0 and all(n > 0 and (isinstance(a, str) or _grows(a)) for a, n in m)
        for arg in atom.args
        if isinstance(arg, Expr)
        for m, c in arg.terms.items()
    ) and not (atom.name == "floor_div" and isinstance(atom.args[1], Expr))  # fmt: skip
