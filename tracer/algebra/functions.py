"""Functions that work on numbers and on expressions alike, and the atoms that they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from .expression import Expr, Number, call, ratio, shown


class Rule(NamedTuple):
    """How an atom is evaluated: on plain numbers, and on arrays with NumPy as `np`."""

    number: Callable[..., Any]
    array: Callable[..., Any]


def _distinct(experts: Any, top_k: Any, tokens: Any) -> Any:
    return experts * (1.0 - (1.0 - top_k / experts) ** tokens)


RULES: dict[str, Rule] = {
    "floor_div": Rule(lambda a, b: a // b, lambda np, a, b: np.floor_divide(a, b)),
    "mod": Rule(lambda a, b: a % b, lambda np, a, b: np.mod(a, b)),
    "power": Rule(lambda a, b: a**b, lambda np, a, b: np.power(a, b)),
    "round": Rule(round, lambda np, a: np.rint(a)),
    "min": Rule(min, lambda np, *a: np.minimum.reduce(np.broadcast_arrays(*a))),
    "max": Rule(max, lambda np, *a: np.maximum.reduce(np.broadcast_arrays(*a))),
    "ratio": Rule(ratio, lambda np, a, b: a / b),
    "bit_length": Rule(lambda a: a.bit_length(), lambda np, a: np.frexp(a)[1]),
    "distinct": Rule(_distinct, lambda np, e, k, t: _distinct(e, k, t)),
}


def apply(name: str, args: Sequence[Number]) -> Any:
    """The value of the atom `name` at plain numbers."""
    return RULES[name].number(*args)


def sample(value: Any) -> Any:
    """A plain number: `value` itself, or what it is at the sizes that were traced.

    For what only orders or shows things; a cost must keep the expression.
    """
    return value.sample if isinstance(value, Expr) else shown(value)


def most(values: Iterable[Any]) -> Any:
    """The largest, for all sizes: of what cannot be decided, a maximum stays.

    Raises:
        ValueError: there are none.
    """
    return _extreme("max", list(values), 1)


def least(values: Iterable[Any]) -> Any:
    """The smallest, for all sizes: of what cannot be decided, a minimum stays.

    Raises:
        ValueError: there are none.
    """
    return _extreme("min", list(values), -1)


def _extreme(name: str, values: list[Any], way: int) -> Any:
    if not values:
        raise ValueError(f"{name} of nothing")
    scope = next((value.scope for value in values if isinstance(value, Expr)), None)
    if scope is None:
        return max(values) if way > 0 else min(values)

    def beats(a: Any, b: Any) -> bool:
        sign = scope.proven(a - b)
        return sign is not None and sign * way >= 0

    kept: list[Any] = []
    for value in dict.fromkeys(values):
        if not any(beats(other, value) for other in kept):
            kept = [other for other in kept if not beats(value, other)] + [value]
    return kept[0] if len(kept) == 1 else call(name, *sorted(kept, key=str))


def ceil_div(value: Any, by: Any) -> Any:
    """The quotient, rounded up."""
    if type(by) is int and isinstance(value, Expr) and value.is_whole:
        return (value + (by - 1)) // by
    return -(-value // by)


def distinct(experts: Any, top_k: Any, tokens: Any) -> Any:
    """Experts that at least one of `tokens` chooses: E(1 - (1 - k/E)^T)."""
    if isinstance(tokens, Expr):
        return call("distinct", experts, top_k, tokens)
    return _distinct(experts, top_k, tokens)


def divides(part: Any, whole: Any) -> bool:
    """Whether `part` divides `whole`: for all sizes, else as it is at the sizes that were traced.

    The second answer is noted as a guard.
    """
    if not isinstance(part, Expr) and not isinstance(whole, Expr):
        return bool(whole % part == 0)
    if isinstance(whole, Expr):
        if whole.exact_quotient(part) is not None:
            return True
        if not isinstance(whole / part, Expr):  # of one shape, but no whole multiple
            return False
        return whole.scope.divides(part, whole)
    return bool(whole == 0) or part.scope.divides(part, whole)
