"""Random trees of operations, to run once on expressions and once on plain ints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tracer.algebra import Scope, ceil_div, least, most

NAMES = ("B", "S", "L")
SAMPLES = {"B": 8, "S": 128, "L": 77}

points = st.fixed_dictionaries(
    {
        "B": st.integers(2, 40),
        "S": st.one_of(st.integers(2, 12), st.integers(2, 5000)),
        "L": st.integers(2, 300),
    }
)
small = st.integers(-6, 6)
positive = st.integers(1, 130)


def fresh() -> tuple[Scope, dict[str, Any]]:
    """A scope with B, S and L."""
    scope = Scope()
    return scope, {name: scope.symbol(name, SAMPLES[name]) for name in NAMES}


@st.composite
def polynomials(draw: Any) -> Callable[[Any], Any]:
    """Up to four terms of degree three at most, coefficients on both sides of 0."""
    terms = draw(st.lists(st.tuples(small, *[st.integers(0, 2)] * 3), min_size=1, max_size=4))

    def build(v: Any) -> Any:
        return sum(c * v["B"] ** b * v["S"] ** s * v["L"] ** n for c, b, s, n in terms)

    return build


def _positive(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A divisor that is never 0: the square, plus one."""
    return lambda v: f(v) * f(v) + 1


def _grow(children: Any) -> Any:
    pair = st.tuples(children, children)
    return st.one_of(
        pair.map(lambda p: lambda v: p[0](v) + p[1](v)),
        pair.map(lambda p: lambda v: p[0](v) - p[1](v)),
        pair.map(lambda p: lambda v: p[0](v) * p[1](v)),
        pair.map(lambda p: lambda v: least((p[0](v), p[1](v)))),
        pair.map(lambda p: lambda v: most((p[0](v), p[1](v), 3))),
        pair.map(lambda p: lambda v: p[0](v) // _positive(p[1])(v)),
        pair.map(lambda p: lambda v: p[0](v) % _positive(p[1])(v)),
        pair.map(lambda p: lambda v: p[0](v) if p[0](v) > p[1](v) else p[1](v) - 1),
        pair.map(lambda p: lambda v: p[0](v) + 5 if p[0](v) <= p[1](v) else p[1](v)),
        st.tuples(children, positive).map(lambda p: lambda v: p[0](v) // p[1]),
        st.tuples(children, positive).map(lambda p: lambda v: p[0](v) // -p[1]),
        st.tuples(children, positive).map(lambda p: lambda v: p[0](v) % p[1]),
        st.tuples(children, positive).map(lambda p: lambda v: sum(divmod(p[0](v), p[1]))),
        st.tuples(children, positive).map(lambda p: lambda v: ceil_div(p[0](v), p[1])),
        children.map(lambda f: lambda v: f(v) * (f(v) + 1) // 2),
        children.map(lambda f: lambda v: abs(f(v))),
        children.map(lambda f: lambda v: round(f(v))),
        children.map(lambda f: lambda v: math.ceil(f(v))),
        st.tuples(positive, children).map(lambda p: lambda v: (p[0] * 1000) // _positive(p[1])(v)),
        children.map(lambda f: lambda v: f(v) if f(v) else 7),
    )


leaves = st.one_of(
    st.sampled_from(NAMES).map(lambda name: lambda v: v[name]),
    small.map(lambda n: lambda v: n),
    polynomials(),
)
trees = st.recursive(leaves, _grow, max_leaves=5)
