"""Where a number comes from: the formula that priced an op, in words, and its place in the code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..capture.records import Op, Trace
from ..cost.formulas import pointwise
from ..cost.registry import registry

_PACKAGE = Path(__file__).parents[1]


class Origin(NamedTuple):
    """`name` of the formula, what it says of itself, and file and line."""

    name: str
    text: str
    place: str


def origin_of(op: Op, trace: Trace) -> Origin:
    """The formula behind the FLOPs and bytes of `op`."""
    formula = registry.find(op)
    if formula is not None:
        return _of_function(formula.function)
    if pointwise.knows(op, op.name in trace.pointwise):
        text = (
            "Elementwise: a fixed number of vector FLOPs for every element of the output; every "
            "input is read once and every output written once."
        )
        return Origin("elementwise", text, _place(pointwise.lookup))
    return Origin("none", "No formula: priced by its bytes alone.", "")


@functools.lru_cache
def _of_function(function: Callable[..., Any]) -> Origin:
    text = " ".join(inspect.cleandoc(function.__doc__ or "no description").split())
    return Origin(function.__name__, text, _place(function))


@functools.lru_cache
def _place(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    path = Path(code.co_filename)
    try:
        file = f"tracer/{path.relative_to(_PACKAGE).as_posix()}"
    except ValueError:  # a formula of the user's own
        file = path.name
    return f"{file}:{code.co_firstlineno}"
