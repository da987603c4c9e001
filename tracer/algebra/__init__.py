"""Closed forms: integers that may hold named symbols, and what is done with them.

A size of a traced tensor is an `int`, or an `Expr` where the caller named a symbol for it. Formulas
of later stages do not tell the two apart: an `Expr` adds, multiplies, divides and compares. A
comparison that holds for all sizes in range is simply answered; one that does not is answered for
the sizes that were traced, and noted as a guard of the formulas (`Scope.guards`).
"""

from .expression import Call, Expr, Number, Value
from .functions import ceil_div, distinct, divides, least, most, sample
from .guards import Guard
from .numeric import Evaluator
from .scope import Scope, Symbol

__all__ = [
    "Call",
    "Evaluator",
    "Expr",
    "Guard",
    "Number",
    "Scope",
    "Symbol",
    "Value",
    "ceil_div",
    "distinct",
    "divides",
    "least",
    "most",
    "sample",
]
