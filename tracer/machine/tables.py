"""Sums of products on arrays: monomials of atoms once, then one matrix product.

An atom is a symbol of the trace, a call (a rounded product, a logarithm) or the inverse of a chip's
rate. Terms are split into what is one number in a block of points and what varies over it, so that
a grid pays for the innermost axis only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..algebra import Call, Expr
from ..algebra.expression import ONE, Monomial
from ..algebra.functions import RULES

Array: TypeAlias = NDArray[np.float64]
Terms: TypeAlias = Mapping[Monomial, float]  # coefficient by product of atoms


class Derived(NamedTuple):
    """An atom that follows from knobs: `names` are those it reads, `value` makes it of them."""

    names: frozenset[str]
    value: Callable[[Mapping[str, Any]], Any]


def terms_of(value: Any, factor: float = 1.0, atom: str | None = None) -> dict[Monomial, float]:
    """`value` times `factor` times `atom` as terms."""
    terms = value.terms if isinstance(value, Expr) else {ONE: value} if value else {}
    last = ((atom, 1),) if atom is not None else ()
    return {(*m, *last): float(c) * factor for m, c in terms.items()}


def added(*parts: Terms) -> dict[Monomial, float]:
    """The sum of terms."""
    total: dict[Monomial, float] = {}
    for part in parts:
        for monomial, coefficient in part.items():
            total[monomial] = total.get(monomial, 0.0) + coefficient
    return total


def scaled(terms: Terms, factor: float) -> dict[Monomial, float]:
    """`terms` times a number."""
    return {monomial: factor * c for monomial, c in terms.items()}


def names_of(terms: Terms, derived: Mapping[str, Derived]) -> frozenset[str]:
    """Knobs and symbols that the value of `terms` depends on."""
    found: set[str] = set()
    for monomial in terms:
        for atom, _ in monomial:
            found |= atom_names(atom, derived)
    return frozenset(found)


def atom_names(atom: Any, derived: Mapping[str, Derived]) -> set[str]:
    """Knobs and symbols behind one atom."""
    if isinstance(atom, Call):
        return {name for arg in atom.args if isinstance(arg, Expr) for name in arg.symbols()}
    return set(derived[atom].names) if atom in derived else {atom}


class Values:
    """Numbers or arrays of atoms at some points; each atom is evaluated once."""

    def __init__(self, given: Mapping[str, Any], derived: Mapping[str, Derived]) -> None:
        self.given = given
        self._derived = derived
        self._known: dict[Any, Any] = {}

    def atom(self, atom: Any) -> Any:
        """A number, or an array where a symbol or knob behind the atom has one."""
        found = self._known.get(atom)
        if found is None:
            if isinstance(atom, Call):
                found = RULES[atom.name].array(np, *(self.of(arg) for arg in atom.args))
            elif atom in self._derived:
                found = self._derived[atom].value(self.given)
            else:
                found = self.given[atom]
            self._known[atom] = found
        return found

    def of(self, value: Any) -> Any:
        """The value of an expression, or the number that it is."""
        if not isinstance(value, Expr):
            return float(value)
        total: Any = 0.0
        for monomial, coefficient in value.terms.items():
            total = total + float(coefficient) * self.product(monomial)
        return total

    def product(self, monomial: Monomial) -> Any:
        """The value of a product of atoms."""
        found: Any = 1.0
        for atom, power in monomial:
            base = self.atom(atom)
            found = found * (base if power == 1 else base**power if power > 0 else 1 / base**-power)
        return found


class Table:
    """Many sums of terms over one set of products; `at` gives them on a block of points."""

    def __init__(self, sums: Sequence[Terms], derived: Mapping[str, Derived]) -> None:
        self._derived = derived
        columns: dict[Monomial, int] = {}
        for terms in sums:
            for monomial in terms:
                columns.setdefault(monomial, len(columns))
        self.matrix = np.zeros((len(sums), len(columns)))
        for row, terms in enumerate(sums):
            for monomial, coefficient in terms.items():
                self.matrix[row, columns[monomial]] = coefficient
        self._columns = tuple(columns)
        self._layouts: dict[frozenset[str], _Layout] = {}

    def at(self, values: Values, varying: frozenset[str], size: int) -> tuple[Array, Array]:
        """Coefficients [sums, groups] and what they multiply [groups, size].

        `varying`: the names whose values are arrays of `size` points.
        """
        layout = self._layouts.get(varying)
        if layout is None:
            layout = self._layouts[varying] = _Layout(self._columns, varying, self._derived)
        fixed = np.array([values.product(m) for m in layout.fixed], dtype=np.float64)
        coefficients = (self.matrix * fixed) @ layout.select
        groups = np.empty((len(layout.varying), size))
        for row, monomial in zip(groups, layout.varying, strict=True):
            row[:] = values.product(monomial)
        return coefficients, groups


class _Layout:
    """Which factor of every column is one number, and which varies over the points."""

    def __init__(
        self, columns: Sequence[Monomial], varying: frozenset[str], derived: Mapping[str, Derived]
    ) -> None:
        self.fixed: list[Monomial] = []
        groups: dict[Monomial, int] = {}
        place = []
        for monomial in columns:
            moving = tuple(f for f in monomial if atom_names(f[0], derived) & varying)
            self.fixed.append(tuple(f for f in monomial if f not in moving))
            place.append(groups.setdefault(moving, len(groups)))
        self.varying = tuple(groups)
        self.select = np.zeros((len(columns), max(len(groups), 0)))
        self.select[np.arange(len(columns)), place] = 1.0
