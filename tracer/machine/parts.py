"""Rows of one dependence, evaluated together on a block of points.

`Maxima`: seconds that are a constant plus the largest of three sums of products (all of the
roofline; elementwise kernels of the calibrated model). `Family`: what has a formula of its own in
`kernels`, through the same code that prices one trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..algebra import Expr, Value
from .calibration import Calibration
from .knobs import chip_at
from .model import Conditions, Group, group_seconds
from .tables import Array, Derived, Table, Terms, Values


class Bound(NamedTuple):
    """Seconds of one launch: `launch + max(matrix, vector, memory)`, each a sum of terms."""

    count: int
    launch: Terms
    matrix: Terms
    vector: Terms
    memory: Terms


class Waits(NamedTuple):
    """Seconds of each row [rows, points] and what they wait for, all launches together."""

    seconds: Array
    compute: Array
    memory: Array
    latency: Array


class Maxima:
    """Rows of `Bound`s."""

    def __init__(self, rows: Sequence[Bound], derived: Mapping[str, Derived]) -> None:
        self._counts = np.array([row.count for row in rows], dtype=np.float64)
        self._table = Table(
            [terms for name in ("launch", "matrix", "vector", "memory")
             for row in rows for terms in [getattr(row, name)]],
            derived,
        )  # fmt: skip

    def seconds(self, values: Values, varying: frozenset[str], size: int) -> Array:
        """[points] seconds of all rows.

        A row that is provably on one side of its maximum, all over the block, joins one sum of
        products; only the others are evaluated row by row.
        """
        coefficients, groups = self._table.at(values, varying, size)
        launch, a, v, m = coefficients.reshape(4, len(self._counts), -1)
        low, high = groups.min(axis=1), groups.max(axis=1)

        def below(x: Array, y: Array) -> Any:  # x <= y all over the block
            excess = x - y
            return np.maximum(excess, 0) @ high + np.minimum(excess, 0) @ low <= 0

        am, vm, va = below(a, m), below(v, m), below(v, a)
        memory = am & vm
        matrix = ~memory & va & below(m, a)
        vector = ~memory & ~matrix & below(a, v) & below(m, v)
        linear = self._counts @ launch
        for rows, side in ((memory, m), (matrix, a), (vector, v)):
            linear += self._counts[rows] @ side[rows]
        seconds: Array = linear @ groups
        rest = ~(memory | matrix | vector)
        if rest.any():
            found = np.where(am[:, None], v, a)[rest] @ groups
            np.maximum(found, m[rest] @ groups, out=found)
            third = (~am & ~vm & ~va)[rest]
            if third.any():
                found[third] = np.maximum(found[third], v[rest][third] @ groups)
            seconds += self._counts[rest] @ found
        return seconds

    def waits(self, values: Values, varying: frozenset[str], size: int) -> Waits:
        """Row by row, nothing left out."""
        launch, a, v, m = self.sides(values, varying, size)
        compute = np.maximum(a, v)
        counts = self._counts[:, None]
        seconds = launch + np.maximum(compute, m)
        return Waits(*(counts * x for x in (seconds, compute, m, launch)))

    def sides(self, values: Values, varying: frozenset[str], size: int) -> Array:
        """[launch, matrix, vector, memory; rows; points] of one launch."""
        coefficients, groups = self._table.at(values, varying, size)
        found: Array = (coefficients @ groups).reshape(4, len(self._counts), size)
        return found


class Shaped(NamedTuple):
    """A row with the shape that its family's formula takes; `floor` is its roofline."""

    count: int
    shape: tuple[tuple[str, Value], ...]
    floor: Bound


class Family:
    """Rows of one family and precision."""

    def __init__(
        self, family: str, precision: str, rows: Sequence[Shaped],
        derived: Mapping[str, Derived], calibration: Calibration, conditions: Conditions,
    ) -> None:  # fmt: skip
        self._group = Group(family, precision, (), {})
        self._calibration, self._conditions = calibration, conditions
        self._counts = np.array([row.count for row in rows], dtype=np.float64)
        self._floor = Maxima([row.floor for row in rows], derived)
        self._columns: dict[str, Any] = {}
        for name, _ in rows[0].shape:
            column = [dict(row.shape)[name] for row in rows]
            if not any(isinstance(value, Expr) for value in column):
                self._columns[name] = np.array([[float(value)] for value in column])  # type: ignore[arg-type]
            else:  # [1, points] where all rows agree
                self._columns[name] = column[:1] if len(set(column)) == 1 else column

    def seconds(self, values: Values, varying: frozenset[str], size: int) -> Array:
        """[points] seconds of all rows."""
        found: Array = self._counts @ self._of_each(values, varying, size)[0]
        return found

    def waits(self, values: Values, varying: frozenset[str], size: int) -> Waits:
        """Row by row."""
        shape = (len(self._counts), size)
        counts = self._counts[:, None]
        parts = [np.broadcast_to(x, shape) * counts for x in self._of_each(values, varying, size)]
        return Waits(*parts)

    def _of_each(self, values: Values, varying: frozenset[str], size: int) -> tuple[Any, ...]:
        columns = {
            name: column if isinstance(column, np.ndarray)
            else np.array([np.broadcast_to(values.of(value), (size,)) for value in column])
            for name, column in self._columns.items()
        }  # fmt: skip
        given = values.given
        cal = self._calibration
        cal = replace(cal, chip=chip_at(cal.chip, given))
        conditions = replace(
            self._conditions, clock=given["clock"], reserved_sms=given["reserved_sms"],
            matrix=given["matmul_efficiency"], memory=given["memory_efficiency"],
        )  # fmt: skip
        found = group_seconds(replace(self._group, columns=columns), cal, conditions)
        _, a, v, m = self._floor.sides(values, varying, size)
        least = np.maximum(np.maximum(a, v), m)
        return np.maximum(found.seconds, least), found.compute, found.memory, found.latency
