"""Conditions under which formulas hold, in one form each, so that few are left to read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .division import is_whole
from .expression import ONE, Expr, Number, make, value_at


class Guard(NamedTuple):
    """A condition under which the formulas hold: `kind` of `expr` and, for divisors, `by`.

    Kinds: ">", "<=", "=" and "!=" compare `expr` with 0; "divides" and "does not divide" say what
    `by` does to `expr`.
    """

    expr: Any
    kind: str
    by: Any = 0

    def holds(self, point: Mapping[str, Number]) -> bool:
        """Whether it is met at `point`."""
        return self._of(value_at(self.expr, point), value_at(self.by, point))

    def _of(self, value: Number, by: Number = 0) -> bool:
        if self.kind in ("=", "!="):
            return (value == 0) == (self.kind == "=")
        if self.kind in (">", "<="):
            return (value > 0) == (self.kind == ">")
        return (value % by == 0) == (self.kind == "divides")

    def __str__(self) -> str:
        from .text import inequality

        if self.kind in (">", "<=", "=", "!="):
            return inequality(self.expr, self.kind)
        return f"{self.by} {self.kind} {self.expr}"

    def tidy(self) -> Guard:
        """The same condition on whole numbers without common factors: 8·B·S >= 128 as B·S > 15."""
        if self.kind not in (">", "<=", "=", "!=") or not isinstance(self.expr, Expr):
            return self
        value = self.expr * self.expr.denominator
        sizes, constant = _parts(value)
        if not is_whole(value) or not all(type(c) is int for c in value.terms.values()):
            return self
        factor = math.gcd(*(int(c) for c in sizes.values()))
        turned = min(sizes.items(), key=lambda item: str(item[0]))[1] < 0
        sign = -1 if turned else 1
        body = make(value.scope, {m: sign * int(c) // factor for m, c in sizes.items()})
        if self.kind in ("=", "!="):
            return self if constant % factor else Guard(body + sign * constant // factor, self.kind)
        # sign · factor · body + constant > 0, or <= 0: body is above a bound, or at most at it.
        above = (self.kind == ">") != turned
        bound = -(-constant // factor) - 1 if turned else -constant // factor
        return Guard(body - bound, ">" if above else "<=")

    def implies(self, other: Guard) -> bool:
        """Whether `other` holds wherever this does, as seen from their constants."""
        if self == other:
            return True
        if not isinstance(self.expr, Expr) or not isinstance(other.expr, Expr):
            return False
        (mine, here), (theirs, there) = _parts(self.expr), _parts(other.expr)
        if mine != theirs:
            return False
        if self.kind == "=":  # the value of `other` is there - here
            return other.kind in (">", "<=", "!=") and other._of(there - here)
        if self.kind == ">":  # mine > -here
            return other.kind in (">", "!=") and there >= here
        if self.kind == "<=":  # mine <= -here
            return (other.kind == "<=" and there <= here) or (other.kind == "!=" and there < here)
        return False


def _parts(value: Expr) -> tuple[dict[Any, Number], Any]:
    """What depends on sizes, and the constant."""
    terms = dict(value.terms)
    constant = terms.pop(ONE, 0)
    return terms, constant
