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
from .bounds import Box
from .calibration import Calibration
from .knobs import chip_at
from .model import Conditions, Group, group_seconds
from .shapes import OTHER
from .tables import Array, Derived, Table, Terms, Values, added, scaled, terms_of


class Bound(NamedTuple):
    """Seconds of one launch: `launch + max(matrix, vector, memory)`, each a sum of terms."""

    times: int
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
    """Rows of `Bound`s.

    A row that is on one side of its maximum all over `box` joins one sum of products; only the
    others are evaluated row by row.
    """

    def __init__(
        self, rows: Sequence[Bound], derived: Mapping[str, Derived], box: Box | None = None
    ) -> None:
        self._counts = np.array([row.times for row in rows], dtype=np.float64)
        self._table = Table(
            [terms for name in ("launch", "matrix", "vector", "memory")
             for row in rows for terms in [getattr(row, name)]],
            derived,
        )  # fmt: skip
        if box is None:
            return
        linear: list[Terms] = []
        gaps: list[Terms] = []
        others: list[Terms] = []  # three to a row
        for row in rows:
            linear.append(scaled(row.launch, row.times))
            sides = _kept([row.matrix, row.vector, row.memory], box)
            if len(sides) == 1:
                linear.append(scaled(sides[0], row.times))
            elif len(sides) == 2:
                # max(x, y) = (x + y) / 2 + |x - y| / 2: half the products of two sides.
                x, y = (scaled(side, 0.5 * row.times) for side in sides)
                linear += [x, y]
                gaps.append(added(x, scaled(y, -1.0)))
            else:
                others += [scaled(side, row.times) for side in sides]
        self._gaps, self._others = len(gaps), len(others) // 3
        self._sum = Table([added(*linear), *gaps, *others[::3], *others[1::3], *others[2::3]],
                          derived)  # fmt: skip

    def seconds(self, values: Values, varying: frozenset[str], size: int) -> Array:
        """[points] seconds of all rows, at points inside of the box."""
        coefficients, groups = self._sum.at(values, varying, size)
        seconds: Array = coefficients[0] @ groups
        if self._gaps:
            gaps = coefficients[1 : 1 + self._gaps] @ groups
            np.abs(gaps, out=gaps)
            seconds += gaps.sum(axis=0)
        if self._others:
            sides = (coefficients[1 + self._gaps :] @ groups).reshape(3, self._others, size)
            seconds += sides.max(axis=0).sum(axis=0)
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


def _kept(sides: Sequence[Terms], box: Box) -> list[Terms]:
    """The sides of a maximum without those that another one is never below."""
    kept: list[Terms] = []
    for side in sides:
        if any(box.never_above(side, other) for other in kept):
            continue
        kept = [other for other in kept if not box.never_above(other, side)] + [side]
    return kept


class Shaped(NamedTuple):
    """A row with the shape that its family's formula takes; `floor` is its roofline."""

    times: int
    shape: tuple[tuple[str, Value], ...]
    floor: Bound


# Formulas make some forty arrays: of so many numbers each, they stay in a core's own cache.
_ELEMENTS, _LEAST = 12288, 64

_WHOLE = {"gemm", "gemm_fp8", "gemm_fp8_block", "grouped", OTHER}


class Family:
    """Rows of one family and precision."""

    def __init__(
        self, family: str, precision: str, rows: Sequence[Shaped],
        derived: Mapping[str, Derived], calibration: Calibration, conditions: Conditions,
    ) -> None:  # fmt: skip
        self._group = Group(family, precision, (), {})
        self._calibration, self._conditions = calibration, conditions
        self._counts = np.array([row.times for row in rows], dtype=np.float64)
        # Products count whole tiles at a share of the rates, and never less than the roofline.
        own = calibration["gemm" if family == OTHER else family]
        reached = calibration["power"].reach / calibration.base_reach
        above = family in _WHOLE and own.memory <= 1 and own.matrix * reached <= 1
        above = above and not any(row.floor.vector for row in rows)
        self._floor = None if above else Maxima([row.floor for row in rows], derived)
        self._columns: dict[str, Array] = {}
        self._places: dict[str, slice] = {}  # of what depends on the points, in `_sums`
        sums: list[Terms] = []
        for name, _ in rows[0].shape:
            column = [dict(row.shape)[name] for row in rows]
            if any(isinstance(value, Expr) for value in column):
                column = column[:1] if len(set(column)) == 1 else column  # one where all agree
                self._places[name] = slice(len(sums), len(sums) + len(column))
                sums += [terms_of(value) for value in column]
            else:
                self._columns[name] = np.array([[value] for value in column], dtype=np.float64)
        self._sums = Table(sums, derived)

    def seconds(self, values: Values, varying: frozenset[str], size: int) -> Array:
        """[points] seconds of all rows."""
        found: Array = self._counts @ self._of_each(values, varying, size)[0]
        return found

    def waits(self, values: Values, varying: frozenset[str], size: int) -> Waits:
        """Row by row."""
        return Waits(*(self._counts[:, None] * x for x in self._of_each(values, varying, size)))

    def _of_each(self, values: Values, varying: frozenset[str], size: int) -> Array:
        """[seconds, compute, memory, latency; rows; points] of one launch."""
        coefficients, groups = self._sums.at(values, varying, size)
        sums = coefficients @ groups
        moving = {name: values.given[name] for name in varying}
        found = np.empty((4, len(self._counts), size))
        width = max(_LEAST, _ELEMENTS // len(self._counts))
        for start in range(0, size, width):
            piece = slice(start, start + width)
            given = {**values.given, **{name: x[piece] for name, x in moving.items()}}
            own = {name: sums[place, piece] for name, place in self._places.items()}
            for x, part in zip(found, self._estimate({**self._columns, **own}, given), strict=True):
                x[:, piece] = part
        if self._floor is not None:
            _, a, v, m = self._floor.sides(values, varying, size)
            np.maximum(found[0], np.maximum(np.maximum(a, v), m), out=found[0])
        return found

    def _estimate(self, columns: Mapping[str, Array], given: Mapping[str, Any]) -> Any:
        cal = replace(self._calibration, chip=chip_at(self._calibration.chip, given))
        conditions = replace(
            self._conditions, clock=given["clock"], reserved_sms=given["reserved_sms"],
            matrix=given["matmul_efficiency"], memory=given["memory_efficiency"],
        )  # fmt: skip
        return group_seconds(replace(self._group, columns=columns), cal, conditions)
