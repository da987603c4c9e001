"""Expressions of a trace as the arithmetic that the page's evaluator reads (`docs/report.md`)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from ..algebra import Call, Expr, Guard


def written(value: Any) -> str:
    """`value` in numbers, names, + - * / ** ( ) and min max ceil floor round sqrt log2."""
    if not isinstance(value, Expr):
        return _number(value)
    terms = [_term(coefficient, monomial) for monomial, coefficient in value.terms.items()]
    return " + ".join(terms)


def condition(guard: Guard) -> str:
    """What is above 0 where `guard` holds, and not elsewhere; its sizes are whole numbers."""
    value, by = f"({written(guard.expr)})", f"({written(guard.by)})"
    if guard.kind == ">":
        return value
    if guard.kind == "<=":
        return f"1 - {value}" if _whole(guard.expr) else f"1e-9 - {value}"
    if guard.kind == "=":
        return f"1e-9 - max({value}, -{value})"
    rest = f"({value} - {by} * floor({value} / {by}))"
    return f"1e-9 - {rest}" if guard.kind == "divides" else rest


def _whole(value: Any) -> bool:
    return not isinstance(value, Expr) or bool(value.is_whole)


def _term(coefficient: Any, monomial: Any) -> str:
    factors = [] if coefficient == 1 and monomial else [_number(coefficient)]
    for atom, power in monomial:
        text = atom if isinstance(atom, str) else _call(atom)
        factors.append(text if power == 1 else f"{text}**{_number(power)}")
    return "*".join(factors)


def _call(call: Call) -> str:
    """In brackets, so that a power of it may follow."""
    args = [written(arg) for arg in call.args]
    a, b = (f"({text})" for text in (*args, *["0"] * 2)[:2])
    if call.name in ("min", "max", "round"):
        return f"{call.name}({', '.join(args)})"
    if call.name == "distinct":  # E (1 - (1 - k/E)**T)
        return f"({a} * (1 - (1 - {b} / {a})**({args[2]})))"
    return {
        "floor_div": f"floor({a} / {b})",
        "mod": f"({a} - {b} * floor({a} / {b}))",
        "power": f"({a}**{b})",
        "ratio": f"({a} / {b})",
        "bit_length": f"(floor(log2({a})) + 1)",
    }[call.name]


def _number(value: Any) -> str:
    if isinstance(value, Fraction):
        return f"({value.numerator}/{value.denominator})"
    text = repr(value)
    return f"({text})" if text.startswith("-") else text
