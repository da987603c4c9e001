"""Expressions against Python's ints: the same operations, at points where the guards hold."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_values import fresh, points, polynomials, positive, trees

from tracer.algebra import Evaluator, Expr, ceil_div, distinct, divides, least, most
from tracer.algebra.expression import value_at


@settings(max_examples=400, deadline=None)
@given(trees, st.lists(points, min_size=1, max_size=4))
def test_a_tree_of_operations_gives_what_ints_give(tree, at):
    """//, %, divmod, least, most, round, ceil_div, abs, branches: wherever the guards hold."""
    scope, symbols = fresh()
    value = tree(symbols)
    for point in (*at, scope.samples):
        if not scope.violated(point):
            assert value_at(value, point) == tree(point)
    assert not scope.violated(scope.samples)  # branches went as at the traced sizes


@settings(max_examples=200, deadline=None)
@given(polynomials(), polynomials(), points)
def test_sums_products_and_powers(f, g, point):
    _, symbols = fresh()
    a, b = f(symbols), g(symbols)
    x, y = f(point), g(point)
    assert value_at(a + b, point) == x + y
    assert value_at(a - b, point) == x - y
    assert value_at(a * b, point) == x * y
    assert value_at(3 - a, point) == 3 - x
    assert value_at(a**3, point) == x**3
    assert value_at(+a, point) == -value_at(-a, point)
    assert (a - b) + b == a
    assert (a + b) * (a - b) == a * a - b * b


@settings(max_examples=200, deadline=None)
@given(polynomials(), polynomials(), points)
def test_true_division_is_exact(f, g, point):
    _, symbols = fresh()
    y = g(point)
    if not isinstance(g(symbols), Expr) or not y:
        return
    assert value_at(f(symbols) / g(symbols), point) == f(point) / y
    assert value_at(f(symbols) * g(symbols) / g(symbols), point) == f(point)  # cancels


def test_one_form_for_equal_polynomials():
    _, v = fresh()
    B, S = v["B"], v["S"]
    assert B * S + S * B == 2 * S * B
    assert hash(B * S + S * B) == hash(2 * S * B)
    assert (B + S) ** 2 == B * B + 2 * B * S + S * S
    assert B - B == 0
    assert type(B - B) is int  # no expression without symbols
    assert B / B == 1
    assert S // S == 1
    assert B * S // B == S
    assert B != S
    assert S != 128  # although it is, at the traced size: equal is equal for all values
    assert len({B + S, S + B, 1 * B + S}) == 1


def test_nothing_freezes_a_symbol():
    _, v = fresh()
    for freeze in (int, float, complex, range, list, math.trunc, lambda x: [1, 2][x], "ab".__mul__):
        with pytest.raises(TypeError):
            freeze(v["S"])
    with pytest.raises(TypeError, match=r"S has no single value: use \.at"):
        int(v["S"])
    with pytest.raises(TypeError):
        round(v["S"] / 3, 2)


def test_exact_beyond_doubles():
    """(10^9 + 7)^3 has 90 bits; a double holds 53."""
    _, v = fresh()
    n = 10**9 + 7
    assert (v["S"] ** 3 + 1).at({"S": n}) == n**3 + 1 != int(float(n**3 + 1))
    assert (v["S"] ** 3 / v["S"]).at({"S": n}) == n * n
    assert (v["S"] * v["L"] / v["B"]).at({"B": 7, "S": 7 * n, "L": n}) == n * n
    assert (v["S"] ** 2 * 7168 * 7168).at({"S": np.int64(2**30)}) == 2**60 * 7168 * 7168
    assert type(v["S"].at({"S": np.int64(4)} | {}) * 1) is int


def test_fractions_that_are_whole():
    _, v = fresh()
    S = v["S"]
    pairs = S * (S + 1) // 2
    assert str(pairs) == "1/2·S² + 1/2·S"
    assert pairs.is_whole
    assert [pairs.at({"S": s}) for s in (2, 3, 4)] == [3, 6, 10]
    assert all(type(pairs.at({"S": s})) is int for s in (2, 3, 4))
    assert round(pairs) == pairs
    assert (S**3 - S).exact_quotient(6) == (S**3 - S) / 6  # three numbers in a row
    assert not (S / 2).is_whole
    assert (S / 2).at({"S": 5}) == 2.5
    assert S // 2 != S / 2


def test_quotients_that_look_whole_and_are_not():
    """Coefficients that divide say nothing where a factor may be a fraction itself."""
    _, v = fresh()
    B, S = v["B"], v["S"]
    at = {"B": 8, "S": 9}
    assert (4 * S / B // 2).at(at) == (4 * 9 / 8) // 2 == 2  # 4.5 // 2, not 2.25
    assert (S // -3).at({"S": 7}) == -3
    assert ((S * S / 2 + S / 2) // S).at({"S": 2}) == 1  # 3 // 2, not 1.5
    assert (S * (S / (S + B)) // S).at(at) == 0  # 9/17, rounded down
    assert not most((S / B, 1)).is_whole


def test_long_division():
    _, v = fresh()
    B, S = v["B"], v["S"]
    assert (S**5 - 1) // (S - 1) == S**4 + S**3 + S**2 + S + 1
    assert (B * S**2 + B**2 * S + B * S) // (S + B + 1) == B * S
    assert (B**2 - S**2).exact_quotient(B - S) == B + S
    assert (B**2 + S**2).exact_quotient(B + S) is None


def test_division_by_zero():
    _, v = fresh()
    for divide in (lambda x: x // 0, lambda x: x % 0, lambda x: x / 0, lambda x: 0 // (x - x)):
        with pytest.raises(ZeroDivisionError):
            divide(v["S"])
    assert 0 // v["S"] == 0


@settings(max_examples=100, deadline=None)
@given(polynomials(), positive, points)
def test_rounding_of_fractions(f, by, point):
    _, symbols = fresh()
    exact = Fraction(f(point), by)
    assert value_at(round(f(symbols) / by), point) == round(exact)
    assert value_at(math.floor(f(symbols) / by), point) == math.floor(exact)
    assert value_at(math.ceil(f(symbols) / by), point) == math.ceil(exact)
    assert value_at(ceil_div(f(symbols), by), point) == math.ceil(exact)


def test_bit_length_and_powers_and_experts():
    _, v = fresh()
    S = v["S"]
    for s in (2, 3, 4, 255, 256, 2**53 - 1):
        assert S.bit_length().at({"S": s}) == s.bit_length()
        assert Evaluator([S.bit_length()])({"S": float(s)})[0, 0] == s.bit_length()
    assert (2**S).at({"S": 5}) == 32
    hit = distinct(256, 8, v["B"] * S)
    assert hit.at({"B": 2, "S": 3}) == 256 * (1 - (1 - 8 / 256) ** 6)


def test_divides_answers_for_all_sizes_or_notes():
    scope, v = fresh()
    B, S = v["B"], v["S"]
    assert divides(B, B * S)
    assert divides(2, S * (S + 1))
    assert not divides(2 * S, 3 * S)
    assert not scope.guards
    assert divides(64, S)  # at 128
    assert not divides(3, S)
    assert [str(g) for g in scope.guards] == ["64 divides S", "3 does not divide S"]
    assert (8 * B * S) // 64 == B * S / 8  # and what is known to divide is used
    assert (B * S / 8).is_whole
    assert not (B * S / 128).is_whole


@settings(max_examples=150, deadline=None)
@given(st.lists(trees, min_size=1, max_size=4), st.lists(points, min_size=1, max_size=5))
def test_the_evaluator_is_at_for_many_points(build, at):
    """In doubles: equal to the exact value to rounding of its largest term."""
    _, symbols = fresh()
    values = [tree(symbols) for tree in build]
    columns = {name: np.array([p[name] for p in at]) for name in ("B", "S", "L")}
    exact = np.array([[float(value_at(v, p)) for p in at] for v in values])
    if np.abs(exact).max() > 2**40 or any("floor_div" in str(v) for v in values):
        return  # a rounded argument may cross a step
    found = Evaluator(values)(columns)
    assert found.shape == (len(values), len(at))
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-3)


def test_the_evaluator_by_hand():
    _, v = fresh()
    B, S = v["B"], v["S"]
    values = [2 * B * S + 1, 7, least((S, 100)), S // 3, S % 3, S / (S + B), distinct(4, 1, B)]
    found = Evaluator(values)({"B": np.array([2, 3]), "S": np.array([10, 200])})
    want = [
        [41, 1201], [7, 7], [10, 100], [3, 66], [1, 2], [10 / 12, 200 / 203],
        [4 * (1 - 0.75**2), 4 * (1 - 0.75**3)],
    ]  # fmt: skip
    assert found.tolist() == want
    assert Evaluator([3])({"B": np.array([1, 2])}).tolist() == [[3, 3]]
    with pytest.raises(KeyError):
        Evaluator([S])({"B": 2})
