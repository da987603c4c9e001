"""Arithmetic of torch's symbolic sizes, each sum, product and comparison worked out once.

For every tensor of symbolic sizes torch asks the same questions again: its elements, whether it is
contiguous, in which order. The answers follow from the two expressions and from what is known of
the symbols, so the node that was made for them first serves again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def known_sizes(env: Any) -> Iterator[None]:
    """A block in which operations on the sizes of the ShapeEnv `env` remember their results."""
    from torch.fx.experimental.sym_node import SymNode

    names = (*(f"_{name}" for name in _OPERATIONS), "wrap_int", "maybe_as_int")
    before = {name: vars(SymNode)[name] for name in names}
    for name in _OPERATIONS:
        setattr(SymNode, f"_{name}", _remembered(before[f"_{name}"], env))
    SymNode.wrap_int = _wrapped(SymNode.wrap_int, env)  # type: ignore[method-assign]
    SymNode.maybe_as_int = _constant(SymNode.maybe_as_int, env)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name, own in before.items():
            setattr(SymNode, name, own)


# Not `mod`, which also asks for the ranges of symbols.
_OPERATIONS = (
    "add", "sub", "mul", "int_floordiv", "eq", "ne", "ge", "gt", "le", "lt", "sym_max", "sym_min",
    "and_", "or_",
)  # fmt: skip


def _remembered(own: Callable[..., Any], env: Any) -> Callable[..., Any]:
    known: dict[Any, tuple[Any, ...]] = {}

    def again(node: Any, other: Any) -> Any:
        if node.shape_env is not env:
            return own(node, other)
        a, b = node._expr, other._expr
        # A symbol may be replaced by another, which has a version. `known` keeps the expressions,
        # so that no other gets the address of one.
        key = (id(a), id(b), node.pytype, other.pytype, env._replacements_version_counter)
        found = known.get(key)
        if found is None:
            found = known[key] = (own(node, other), a, b)
        return found[0]

    return again


def _wrapped(own: Callable[..., Any], env: Any) -> Callable[..., Any]:
    known: dict[int, Any] = {}

    def again(node: Any, number: int) -> Any:
        if node.shape_env is not env:
            return own(node, number)
        if number not in known:
            known[number] = own(node, number)
        return known[number]

    return again


def _constant(own: Callable[..., Any], env: Any) -> Callable[..., Any]:
    known: dict[Any, tuple[Any, Any]] = {}

    def again(node: Any) -> Any:
        if node.shape_env is not env:
            return own(node)
        key = (id(node._expr), env._replacements_version_counter)
        found = known.get(key)
        if found is None:
            found = known[key] = (own(node), node._expr)
        return found[0]

    return again
