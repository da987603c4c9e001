"""What a scope proves, and the guards that it notes: never against a sampled point."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_values import fresh, points, polynomials, trees

from tracer.algebra import Expr, Guard, Scope, least, most
from tracer.algebra.expression import value_at
from tracer.algebra.scope import NEGATIVE, NOT_NEGATIVE, NOT_POSITIVE, POSITIVE, ZERO

SIGNS = {
    POSITIVE: lambda x: x > 0,
    NOT_NEGATIVE: lambda x: x >= 0,
    ZERO: lambda x: x == 0,
    NOT_POSITIVE: lambda x: x <= 0,
    NEGATIVE: lambda x: x < 0,
    None: lambda x: True,
}


@settings(max_examples=400, deadline=None)
@given(trees, st.lists(points, min_size=2, max_size=8))
def test_a_proof_holds_at_every_point(tree, at):
    scope, symbols = fresh()
    value = tree(symbols)
    proven = scope.proven(value)
    for point in at:
        if not scope.violated(point):
            assert SIGNS[proven](value_at(value, point))


@settings(max_examples=300, deadline=None)
@given(polynomials(), polynomials(), st.lists(points, min_size=2, max_size=6))
def test_a_comparison_without_a_guard_holds_everywhere(f, g, at):
    scope, symbols = fresh()
    a, b = f(symbols), g(symbols)
    if not isinstance(a, Expr) and not isinstance(b, Expr):
        return
    answers = (a < b, a <= b, a > b, a >= b)
    for point in at:
        x, y = f(point), g(point)
        if not scope.guards or not scope.violated(point):
            assert (x < y, x <= y, x > y, x >= y) == answers


def test_proofs_by_hand():
    scope, v = fresh()
    B, S = v["B"], v["S"]
    assert scope.proven(S - 1) == POSITIVE  # S >= 2
    assert scope.proven(S - 2) == NOT_NEGATIVE
    assert scope.proven(S - 3) is None
    assert scope.proven(B * S - 4) == NOT_NEGATIVE
    assert scope.proven(B * S - B) == POSITIVE
    assert scope.proven(1 - B * S) == NEGATIVE
    assert scope.proven(2 - S) == NOT_POSITIVE
    assert scope.proven(S // 2) == POSITIVE
    assert scope.proven(S // 4) == NOT_NEGATIVE
    assert scope.proven((S - 5) % 3) == NOT_NEGATIVE  # a remainder has the sign of its divisor
    assert scope.proven(most((S - 5, 3)) - 2) == POSITIVE
    assert scope.proven(7) == POSITIVE
    assert scope.proven(0) == ZERO
    assert scope.proven(float("inf") - S) == POSITIVE


def test_what_shrinks_is_not_taken_at_its_smallest_sizes():
    """3·B mod 4 is 2 at B = 2 and 1 at B = 3; 0.5 to the S falls."""
    scope, v = fresh()
    B, S = v["B"], v["S"]
    assert scope.proven((3 * B % 4) * S // 2 - 2) is None
    assert scope.proven((12 // B) * S // 2 - 6) is None
    assert scope.proven(0.5 ** (S - 2) * 1 - 1) is None


def test_guards_say_what_was_assumed():
    scope, v = fresh()
    B, S = v["B"], v["S"]
    assert S > 64
    assert not S > 200
    assert not B * S <= 12
    assert S >= 2  # known
    assert [str(g) for g in scope.guards] == ["S > 64", "S <= 200", "B·S > 12"]
    assert scope.conditions()[:3] == ["B >= 2", "S >= 2", "L >= 2"]
    assert scope.violated({"B": 1, "S": 64, "L": 5}) == ["B >= 2", "S > 64"]
    assert scope.violated({"B": 2, "S": 65, "L": 5}) == []


def test_guards_that_others_imply_go():
    scope, v = fresh()
    B, S = v["B"], v["S"]
    assert 8 * B * S > 64  # B·S > 8
    assert 3 * B * S > 40  # B·S > 13
    assert B * S >= 10
    assert [str(g) for g in scope.guards] == ["B·S > 13"]
    assert B * S / 4 > 100
    assert [str(g) for g in scope.guards] == ["B·S > 400"]
    assert 3 * B * S < 10_000  # B·S <= 3333
    assert -B * S > -5000
    assert [str(g) for g in scope.guards] == ["B·S > 400", "B·S <= 3333"]


def test_equalities_are_tidied_too():
    scope, v = fresh()
    BS = v["B"] * v["S"]
    scope.note(Guard(BS / 16 - 1, "!="))
    scope.note(Guard(3 * BS - 4, "!="))  # always, as 3 does not divide 4
    assert [str(g) for g in scope.guards] == ["B·S != 16", "3·B·S != 4"]
    scope.note(Guard(BS - 100, ">"))
    assert [str(g) for g in scope.guards] == ["3·B·S != 4", "B·S > 100"]


@settings(max_examples=300, deadline=None)
@given(polynomials(), st.sampled_from([">", "<=", "=", "!="]), st.lists(points, min_size=4))
def test_a_tidy_guard_is_the_same_guard(f, kind, at):
    _, symbols = fresh()
    value = f(symbols)
    guard = Guard(value, kind)
    for divisor in (1, 4):
        tidy = Guard(value / divisor, kind).tidy() if isinstance(value, Expr) else guard
        assert all(tidy.holds(point) == guard.holds(point) for point in at)


@settings(max_examples=300, deadline=None)
@given(
    polynomials(),
    st.tuples(*[st.integers(-40, 40)] * 2),
    st.tuples(*[st.sampled_from([">", "<=", "=", "!="])] * 2),
    st.lists(points, min_size=4),
)
def test_an_implication_holds_at_every_point(f, numbers, kinds, at):
    _, symbols = fresh()
    one, other = (Guard(f(symbols) + n, kind) for n, kind in zip(numbers, kinds, strict=True))
    if one.implies(other):
        assert all(other.holds(point) for point in at if one.holds(point))


def test_extremes_keep_what_cannot_be_decided():
    scope, v = fresh()
    B, S = v["B"], v["S"]
    assert most((B, B + 1, 2 * B, 1)) == 2 * B
    assert least((B, B * S, S + B)) == B
    assert str(most((S, 100))) == "max(100, S)"
    assert most((S, 100)) == most((100, S))
    assert most((3, 4)) == 4
    assert not scope.guards
    with pytest.raises(ValueError, match="of nothing"):
        most(())


def test_a_symbol_may_start_anywhere():
    scope = Scope()
    n = scope.symbol("N", 500, low=128)
    assert scope.proven(n - 128) == NOT_NEGATIVE
    assert n > 100
    assert not scope.guards
    assert scope.violated({"N": 100}) == ["N >= 128"]
