"""The grammar of the page's expressions in Python, apart from how they are written."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Mapping

_BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.Pow: operator.pow,
}  # fmt: skip
_KNOWN = {"min": min, "max": max, "ceil": math.ceil, "floor": math.floor, "round": round,
          "sqrt": math.sqrt, "log2": math.log2}  # fmt: skip


def evaluate(text: str, names: Mapping[str, float]) -> float:
    """The value of one expression; anything outside of the grammar fails."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(int() | float() as number):
                return number
            case ast.Name(name):
                return names[name]
            case ast.UnaryOp(ast.USub(), inner):
                return -value(inner)
            case ast.BinOp(left, op, right):
                return _BINARY[type(op)](value(left), value(right))
            case ast.Call(ast.Name(name), args, []):
                return _KNOWN[name](*map(value, args))
        raise AssertionError(f"not in the grammar: {ast.dump(node)}")

    return value(ast.parse(text, mode="eval").body)
