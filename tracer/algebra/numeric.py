"""Many expressions at many points: monomials once, then one matrix product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .expression import ONE, Call, Expr, Monomial, Value

Array = NDArray[np.float64]


class Evaluator:
    """Values of `expressions` at arrays of points, in double precision.

    Counts above 2^53 are rounded to it; `Expr.at` is exact.
    """

    def __init__(self, expressions: Sequence[Value]) -> None:
        self.size = len(expressions)
        columns: dict[Monomial, int] = {}
        entries: list[tuple[int, int, float]] = []
        for row, value in enumerate(expressions):
            terms = value.terms if isinstance(value, Expr) else {ONE: value}
            for monomial, coefficient in terms.items():
                column = columns.setdefault(monomial, len(columns))
                entries.append((row, column, float(coefficient)))
        self.monomials = tuple(columns)
        self.symbols = sorted({s for e in expressions if isinstance(e, Expr) for s in e.symbols()})
        self._matrix = np.zeros((self.size, len(columns)))
        for row, column, coefficient in entries:
            self._matrix[row, column] = coefficient
        calls = {a: None for m in columns for a, _ in m if isinstance(a, Call)}
        self._calls = [
            (call, [Evaluator([arg]) if isinstance(arg, Expr) else arg for arg in call.args])
            for call in calls
        ]

    def __call__(self, points: Mapping[str, Any]) -> Array:
        """[expressions, points] values; every symbol that occurs has a number or an array [points].

        Raises:
            KeyError: a symbol has no value.
        """
        shape = np.broadcast_shapes(*map(np.shape, points.values()), (1,))
        values: dict[Any, Any] = {
            name: np.asarray(points[name], dtype=np.float64) for name in self.symbols
        }
        for call, args in self._calls:
            values[call] = _apply(call, [_value(arg, points) for arg in args])
        table = np.ones((len(self.monomials), *shape))
        for row, monomial in enumerate(self.monomials):
            for atom, power in monomial:
                table[row] *= values[atom] if power == 1 else values[atom] ** power
        return np.tensordot(self._matrix, table, axes=1)


def _value(arg: Any, points: Mapping[str, Any]) -> Any:
    return arg(points)[0] if isinstance(arg, Evaluator) else float(arg)


def _apply(call: Call, args: Sequence[Any]) -> Any:
    from .functions import RULES

    return RULES[call.name].array(np, *args)
