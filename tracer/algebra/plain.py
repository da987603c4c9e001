"""Expressions as lists of plain values, for files, and as sympy's, for algebra."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from .expression import Call, Expr, Value, make
from .guards import Guard
from .scope import Scope, Symbol


def to_plain(value: Value) -> Any:
    """A number as it is, an expression as {"terms": [[coefficient, [[atom, power], ...]], ...]}."""
    if isinstance(value, Fraction):
        return {"ratio": [value.numerator, value.denominator]}
    if not isinstance(value, Expr):
        return value
    return {
        "terms": [
            [to_plain(coefficient), [[_atom(atom), power] for atom, power in monomial]]
            for monomial, coefficient in value.terms.items()
        ]
    }


def from_plain(data: Any, scope: Scope) -> Any:
    """What `to_plain` was given; symbols are those of `scope`.

    Raises:
        KeyError: a symbol that the scope does not have, or data that `to_plain` did not write.
    """
    if not isinstance(data, dict):
        return data
    if "ratio" in data:
        return Fraction(*data["ratio"])
    terms = {}
    for coefficient, powers in data["terms"]:
        monomial = tuple((_read_atom(atom, scope), power) for atom, power in powers)
        terms[monomial] = from_plain(coefficient, scope)
    return make(scope, terms)


def scope_to_plain(scope: Scope) -> dict[str, Any]:
    """Symbols and guards."""
    return {
        "symbols": [list(symbol) for symbol in scope.symbols.values()],
        "guards": [[to_plain(g.expr), g.kind, to_plain(g.by)] for g in scope.guards],
    }


def scope_from_plain(data: dict[str, Any]) -> Scope:
    """What `scope_to_plain` was given."""
    scope = Scope()
    scope.symbols = {name: Symbol(name, sample, low) for name, sample, low in data["symbols"]}
    for expr, kind, by in data["guards"]:
        scope.guards[Guard(from_plain(expr, scope), kind, from_plain(by, scope))] = None
    return scope


def to_sympy(value: Value) -> Any:
    """The same in sympy: symbols are positive integers of their names, calls undefined functions.

    Floor division, minimum, maximum and powers become sympy's own.
    """
    import sympy

    if isinstance(value, Fraction):
        return sympy.Rational(value.numerator, value.denominator)
    if not isinstance(value, Expr):
        return sympy.sympify(value)
    total = sympy.Integer(0)
    for monomial, coefficient in value.terms.items():
        product = to_sympy(coefficient)
        for atom, power in monomial:
            product = product * _sympy_atom(atom) ** power
        total = total + product
    return total


def _sympy_atom(atom: Any) -> Any:
    import sympy

    if isinstance(atom, str):
        return sympy.Symbol(atom, positive=True, integer=True)
    args = [to_sympy(arg) for arg in atom.args]
    known = {
        "min": sympy.Min,
        "max": sympy.Max,
        "power": lambda a, b: a**b,
        "floor_div": lambda a, b: sympy.floor(a / b),
        "mod": sympy.Mod,
        "ratio": lambda a, b: a / b,
    }
    return known.get(atom.name, sympy.Function(atom.name))(*args)


def _atom(atom: Any) -> Any:
    if isinstance(atom, str):
        return atom
    return {"call": atom.name, "args": [to_plain(arg) for arg in atom.args]}


def _read_atom(data: Any, scope: Scope) -> Any:
    if isinstance(data, str):
        return scope.symbols[data].name
    return Call(data["call"], tuple(from_plain(arg, scope) for arg in data["args"]))
