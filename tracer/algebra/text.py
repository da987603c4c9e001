"""Expressions as a person reads them: products with a dot, powers raised, large numbers factored.

A product of sizes says more than its value, so a coefficient is split into the `sizes` that the
caller names: 22020096·B·S of a projection from 7168 to 1536 is 2·7168·1536·B·S.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from .expression import ONE, Call, Expr, Monomial, Number

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TURNED = {">": "<", "<=": ">=", "=": "=", "!=": "!="}
_SMALL = 64  # what is left of a coefficient after its sizes, to be worth splitting


def plain(value: Any) -> str:
    """Sum of products, highest degree first, coefficients as they are."""
    return _sum(value, ()) if isinstance(value, Expr) else _number(value)


def factored(value: Any, sizes: Iterable[int] = ()) -> str:
    """Common factors in front, coefficients split into `sizes` where they are products of them."""
    known = tuple(sorted({s for s in sizes if isinstance(s, int) and s > 1}, reverse=True))
    if not isinstance(value, Expr):
        return "·".join(_split(value, known)) if isinstance(value, int) else _number(value)
    if len(value.terms) == 1:
        return _sum(value, known)
    front, rest = _common(value)
    if not isinstance(rest, Expr) or (front == (1, ONE)):
        return _sum(value, known)
    return f"{_product(front[0], front[1], known)}·({_sum(rest, known)})"


def inequality(value: Expr, kind: str) -> str:
    """`value` compared with 0, its negative terms on the right and sizes on the left: S > 128."""
    left = {m: c for m, c in value.terms.items() if c > 0}
    right = {m: -c for m, c in value.terms.items() if c < 0}
    sides = [plain(Expr(value.scope, side)) if side else "0" for side in (left, right)]
    if all(m == ONE for m in left) and right:  # 128 > S
        sides, kind = sides[::-1], _TURNED[kind]
    return f"{sides[0]} {kind} {sides[1]}"


def _sum(value: Expr, sizes: tuple[int, ...]) -> str:
    parts: list[str] = []
    terms: list[tuple[Monomial, Number]] = list(value.terms.items())
    ordered = sorted(terms, key=lambda item: (-_degree(item[0]), str(item[0])))
    for monomial, coefficient in ordered:
        sign = "-" if coefficient < 0 else "+"
        text = _product(-coefficient if coefficient < 0 else coefficient, monomial, sizes)
        parts.append(f" {sign} {text}" if parts else text if sign == "+" else f"-{text}")
    return "".join(parts)


def _product(coefficient: Number, monomial: Monomial, sizes: tuple[int, ...]) -> str:
    factors = [] if coefficient == 1 and monomial else _split(coefficient, sizes)
    for atom, power in monomial:
        name = str(atom)
        if isinstance(atom, Call) and atom.name == "ratio":
            name = f"({atom.args[0]})/({atom.args[1]})"
            name = f"({name})" if power != 1 else name
        factors.append(name + (str(power).translate(_RAISED) if power != 1 else ""))
    # The number of a multiply-add, symbols, then sizes: 2·B·S·7168·1536.
    front = [f for f in factors if f.isdigit() and int(f) not in sizes]
    known = [f for f in factors if f.isdigit() and int(f) in sizes]
    rest = [f for f in factors if not f.isdigit()]
    return "·".join([*front, *rest, *known])


def _split(coefficient: Number, sizes: tuple[int, ...]) -> list[str]:
    """A coefficient as factors out of `sizes`, where little but those is left."""
    if type(coefficient) is not int:
        return [_number(coefficient)]
    for count in (2, 3, 1, 4):  # a product of sizes, each multiply-add 2 FLOPs
        for chosen in itertools.combinations_with_replacement(sizes, count):
            if math.prod(chosen) * 2 == coefficient:
                return ["2", *map(str, chosen)]
    found: list[int] = []
    rest = coefficient
    for size in sizes:
        while rest > _SMALL and rest % size == 0:
            found.append(size)
            rest //= size
    if not found or rest > _SMALL:
        return [str(coefficient)]
    return [str(n) for n in ([rest] if rest != 1 else []) + found]


def _common(value: Expr) -> tuple[tuple[Number, Monomial], Any]:
    """The largest number and monomial that divide every term, and what they leave."""
    coefficients = list(value.terms.values())
    number = 1
    if all(type(c) is int for c in coefficients):
        number = math.gcd(*[int(c) for c in coefficients])
    shared = dict(next(iter(value.terms)))
    for monomial in value.terms:
        powers = dict(monomial)
        shared = {a: min(n, powers[a]) for a, n in shared.items() if a in powers}
    monomial = tuple(sorted(((a, n) for a, n in shared.items() if n > 0), key=lambda x: str(x[0])))
    front = Expr(value.scope, {monomial: number})
    rest = value / front if monomial else value / number
    return (number, monomial), rest


def _degree(monomial: Monomial) -> int:
    return sum(power for _, power in monomial)


def _number(value: Number) -> str:
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
