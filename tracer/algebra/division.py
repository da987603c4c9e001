"""Division of expressions: when a quotient is whole, and what it is."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

from .expression import ONE, Atom, Expr, Monomial, Number, call, make, ratio, times

_RESIDUES = 4096  # evaluations that a proof of divisibility may take
_TERMS = 64  # terms that a quotient may have


def divided(whole: Any, part: Any) -> tuple[Any, Any]:
    """Quotient and remainder, as `divmod`; opaque where nothing can be proven.

    Terms that divide make the quotient, if what they leave is proven to be a remainder.

    Raises:
        ZeroDivisionError: `part` is 0.
    """
    if isinstance(whole, Expr):
        if not isinstance(part, Expr) and not part:
            raise ZeroDivisionError(f"{whole} divided by 0")
        exact = exact_quotient(whole, part)
        if exact is not None:
            return exact, 0
        scale = whole.denominator
        if scale > 1:  # floor(S/32) as S // 32
            found = divided(whole * scale, part * scale)[0]
            return found, whole - found * part
        scope = whole.scope
        terms: Mapping[Monomial, Number] = whole.terms
    elif not whole:
        return 0, 0
    else:
        scope, terms = part.scope, {ONE: whole}
    found = 0
    for monomial, coefficient in terms.items():
        term = make(scope, {monomial: coefficient})
        if isinstance(term, Expr):
            share = exact_quotient(term, part)
        else:
            share = None if isinstance(part, Expr) else term // part
        found = found + (share if share is not None else 0)
    rest = whole - found * part
    for candidate, left in ((found, rest), (found - 1, rest + part)):
        sign = scope.proven(left)
        if sign is not None and sign >= 0 and scope.positive_always(part - left):
            return candidate, left
    return call("floor_div", whole, part), call("mod", whole, part)


def quotient(whole: Any, part: Expr) -> Any:
    """A polynomial where it is one; by one term, its power is negative; else a ratio of the two."""
    if not whole:
        return 0
    exact = polynomial_quotient(whole, part) if isinstance(whole, Expr) else None
    if exact is not None:
        return exact
    if len(part.terms) > 1:
        return call("ratio", whole, part)
    ((monomial, coefficient),) = part.terms.items()
    inverse = {tuple((a, -n) for a, n in monomial): ratio(1, coefficient)}
    return whole * Expr(part.scope, inverse)


def exact_quotient(whole: Expr, part: Any) -> Any:
    """`whole` / `part` where that is an integer for all sizes in range, else None.

    Of whole factors it is where each coefficient divides, or each value does, as S(S+1) by 2, or
    where a guard says so.
    """
    if type(part) is int and part:
        found = whole / part
    elif type(part) is Expr:
        found = polynomial_quotient(whole, part)
        if found is None and is_multiple(whole, part):
            found = quotient(whole, part)
            return found if len(part.terms) == 1 else None
    else:
        return None
    return found if is_whole(found) else None


def polynomial_quotient(whole: Expr, part: Expr) -> Any:
    """The polynomial that times `part` gives `whole`, None if there is none (or a long one)."""
    if whole.terms == part.terms:
        return 1
    atoms = sorted({a for e in (whole, part) for m in e.terms for a, _ in m}, key=str)
    order = functools.partial(_graded, atoms)
    lead = max(part.terms, key=order)
    inverse = tuple((a, -n) for a, n in lead)
    rest: Any = whole
    found: Any = 0
    for _ in range(_TERMS):
        if type(rest) is not Expr:
            return None if rest else found
        top = max(rest.terms, key=order)
        step = times(top, inverse)
        if any(n < 0 for _, n in step):
            return None
        term = make(whole.scope, {step: ratio(rest.terms[top], part.terms[lead])})
        found = found + term
        rest = rest - term * part
    return None


def is_whole(value: Any) -> bool:
    """Whether a value is surely an integer: an int, or whole factors that give whole sums.

    S(S+1)/2 is, and B·S/128 where a guard says that 128 divides B·S.
    """
    if not isinstance(value, Expr):
        return type(value) is int
    if not all(_whole_factor(a, n) for m in value.terms for a, n in m):
        return False
    if any(isinstance(c, float) for c in value.terms.values()):
        return False
    scale = value.denominator
    if scale == 1:
        return True
    scaled = value * scale
    return always_divisible(scaled, scale) or is_multiple(scaled, scale)


def always_divisible(value: Expr, by: int) -> bool:
    """Whether a polynomial is a multiple of `by` at all whole points: it is if at all residues."""
    names = value.symbols()
    if by > 16 or by ** len(names) > _RESIDUES:
        return False
    if not all(isinstance(a, str) for m in value.terms for a, _ in m):
        return False
    points = itertools.product(range(by), repeat=len(names))
    return all(value.at(dict(zip(names, point, strict=True))) % by == 0 for point in points)


def is_multiple(whole: Expr, part: Any) -> bool:
    """Whether a guard says that `part` divides `whole`: what divides B·S divides 8·B·S too."""
    for guard in whole.scope.guards:
        if guard.kind == "divides" and isinstance(guard.expr, Expr):
            share = polynomial_quotient(whole, guard.expr)
            if share is not None and _plainly_whole(share):
                left = _over(share * guard.by, part)
                if left is not None and _plainly_whole(left):
                    return True
    return False


def _over(whole: Any, part: Any) -> Any:
    if isinstance(part, Expr):
        return polynomial_quotient(whole, part) if isinstance(whole, Expr) else None
    return whole / part if isinstance(whole, Expr) else ratio(whole, part)


def _plainly_whole(value: Any) -> bool:
    """Whole factors, whole coefficients."""
    if not isinstance(value, Expr):
        return type(value) is int
    return all(type(c) is int for c in value.terms.values()) and all(
        _whole_factor(a, n) for m in value.terms for a, n in m
    )


def _whole_factor(atom: Atom, power: int) -> bool:
    """Whether a factor of a monomial is an integer, given that all symbols are."""
    if power < 0 or isinstance(atom, str):
        return power > 0
    if atom.name in ("mod", "min", "max"):
        return all(map(is_whole, atom.args))
    return atom.name in ("floor_div", "round", "bit_length")


def _graded(atoms: list[Atom], monomial: Monomial) -> tuple[int, ...]:
    """The order of a monomial, which products keep: by degree, then by powers in turn."""
    powers = dict(monomial)
    return (sum(powers.values()), *[powers.get(atom, 0) for atom in atoms])
