"""Expressions as text, as plain values for files, and as sympy's."""

import json
from fractions import Fraction

import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from random_values import fresh, points, polynomials, trees

from tracer.algebra import Expr, distinct, least
from tracer.algebra.expression import value_at
from tracer.algebra.plain import from_plain, scope_from_plain, scope_to_plain, to_plain, to_sympy
from tracer.algebra.text import factored, inequality, plain


def test_plain_text_by_hand():
    _, v = fresh()
    B, S = v["B"], v["S"]
    assert plain(2 * B * S * 7168 + S - 3) == "14336·B·S + S - 3"
    assert plain(-S * S + B) == "-S² + B"
    assert plain(S / 2 + 1) == "1/2·S + 1"
    assert plain(S / B) == "B⁻¹·S"
    assert plain(S / (S + B)) == "(S)/(B + S)"
    assert plain(least((S, 100)) * B) == "B·min(100, S)"
    assert plain(Fraction(1, 3)) == "1/3"
    assert plain(1234567) == "1234567"
    assert plain(S * 0.5) == "0.5·S"
    assert f"{S + 1:>6s}" == " S + 1"
    assert f"{S:,.1f}" == "S"
    assert repr(S * 2) == "2·S"


def test_coefficients_are_written_as_products_of_sizes():
    """A projection from 7168 to 1536: 2·7168·1536 = 22,020,096 FLOPs a token."""
    _, v = fresh()
    B, S = v["B"], v["S"]
    assert factored(22020096 * B * S, (7168, 1536)) == "2·B·S·7168·1536"
    assert factored(22020096 * B * S, (5, 9)) == "22020096·B·S"
    assert factored(6 * B * S * S + 6 * B * S, ()) == "6·B·S·(S + 1)"
    assert factored(22020096, (7168, 1536)) == "2·7168·1536"
    assert factored(B + S, ()) == "B + S"
    assert factored(Fraction(1, 2), (2,)) == "1/2"


def test_inequalities_have_positive_terms_and_sizes_in_front():
    _, v = fresh()
    B, S = v["B"], v["S"]
    assert inequality(S - 128, ">") == "S > 128"
    assert inequality(128 - S, ">") == "S < 128"
    assert inequality(128 - S, "<=") == "S >= 128"
    assert inequality(B * S - 2 * S, "<=") == "B·S <= 2·S"
    assert inequality(S - B, "=") == "S = B"
    assert inequality(S + 1, ">") == "S + 1 > 0"


@settings(max_examples=200, deadline=None)
@given(trees, st.lists(points, min_size=1, max_size=3))
def test_files_give_back_what_they_were_given(tree, at):
    """Through JSON: the same expression, symbols and guards."""
    scope, symbols = fresh()
    value = tree(symbols)
    text = json.dumps([scope_to_plain(scope), to_plain(value)])
    other = scope_from_plain(json.loads(text)[0])
    again = from_plain(json.loads(text)[1], other)
    assert again == value
    assert hash(again) == hash(value)
    assert other.symbols == scope.symbols
    assert other.guards == scope.guards
    assert all(value_at(again, p) == value_at(value, p) for p in at)


@settings(max_examples=100, deadline=None)
@given(polynomials(), polynomials())
def test_sympy_expands_to_the_same(f, g):
    """Sympy's product, expanded, is ours: two routes to one polynomial."""
    _, symbols = fresh()
    theirs = {n: sympy.Symbol(n, positive=True, integer=True) for n in symbols}
    ours = f(symbols) * (g(symbols) + 1)
    assert sympy.expand(to_sympy(ours) - f(theirs) * (g(theirs) + 1)) == 0


def test_sympy_of_calls_and_fractions():
    _, v = fresh()
    S, B = (sympy.Symbol(n, positive=True, integer=True) for n in ("S", "B"))
    assert to_sympy(v["S"] * (v["S"] + 1) / 2) == S**2 / 2 + S / 2
    assert to_sympy(v["S"] // 3) == sympy.floor(S / 3)
    assert to_sympy(v["S"] % 3) == sympy.Mod(S, 3)
    assert to_sympy(least((v["S"], 9))) == sympy.Min(S, 9)
    assert to_sympy(v["S"] / (v["S"] + v["B"])) == S / (S + B)
    assert to_sympy(Fraction(1, 3)) == sympy.Rational(1, 3)
    hit = to_sympy(distinct(8, 2, v["B"]))
    assert str(hit.func) == "distinct"
    assert isinstance(v["S"], Expr)
