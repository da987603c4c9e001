"""`Expr`: a polynomial in named symbols, in canonical form, that stands in for an int.

    >>> scope = Scope(); B, S = scope.symbol("B", 8), scope.symbol("S", 4096)
    >>> str((2 * B * S * 7168 + S * B) // B)
    '14337·S'

Equal means equal for all values of the symbols (`==` compares canonical forms and never guesses).
What is no polynomial (a rounded product, a power with a symbol in the exponent) is a `Call`, an
opaque atom that is evaluated with the same function that runs on plain numbers. An `Expr` without
symbols does not exist: arithmetic returns a plain number then. `int()` and `float()` raise rather
than freeze a symbol at one value.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, Union

if TYPE_CHECKING:
    from .scope import Scope

Number: TypeAlias = int | float | Fraction
Value: TypeAlias = Union[int, float, Fraction, "Expr"]
NUMBERS = (int, float, Fraction)


class Call:
    """A function of expressions that is no polynomial; `name` is a key of `functions.RULES`."""

    __slots__ = ("_hash", "args", "key", "name")

    def __init__(self, name: str, args: tuple[Value, ...]) -> None:
        self.name = name
        self.args = args
        self.key = f"{name}({', '.join(map(str, args))})"
        self._hash = hash((name, args))

    def __eq__(self, other: object) -> bool:
        return type(other) is Call and self.name == other.name and self.args == other.args

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.key

    __repr__ = __str__


Atom: TypeAlias = str | Call
Monomial: TypeAlias = tuple[tuple[Atom, int], ...]  # powers of atoms, in order of their text
ONE: Monomial = ()


@functools.lru_cache(maxsize=100_000)
def times(a: Monomial, b: Monomial) -> Monomial:
    """The product of two monomials; negative powers may cancel."""
    powers = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(((x, n) for x, n in powers.items() if n), key=lambda item: str(item[0])))


class Expr:
    """Sum of coefficient times monomial; immutable, hashable, adds and scales like a number."""

    __slots__ = ("_hash", "_sample", "scope", "terms")
    __array_ufunc__ = None  # numpy leaves arithmetic with an Expr to it
    scope: Scope
    terms: Mapping[Monomial, Number]

    def __init__(self, scope: Scope, terms: Mapping[Monomial, Number]) -> None:
        self.scope = scope
        self.terms = terms
        self._hash: int | None = None
        self._sample: Number | None = None

    # -- arithmetic --------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Any:
        if isinstance(other, NUMBERS):
            if not other:
                return self
            added: Mapping[Monomial, Number] = {ONE: other}
        elif type(other) is Expr:
            added = other.terms
        else:
            return NotImplemented
        terms = dict(self.terms)
        for monomial, coefficient in added.items():
            total = terms.get(monomial, 0) + coefficient
            if total:
                terms[monomial] = _plain(total)
            else:
                terms.pop(monomial, None)
        return make(self.scope, terms)

    __radd__ = __add__

    def __neg__(self) -> Expr:
        return Expr(self.scope, {m: -c for m, c in self.terms.items()})

    def __pos__(self) -> Expr:
        return self

    def __sub__(self, other: Any) -> Any:
        return self + (-other) if isinstance(other, (Expr, *NUMBERS)) else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, NUMBERS):
            if not other:
                return 0
            if other == 1:
                return self
            return Expr(self.scope, {m: _plain(c * other) for m, c in self.terms.items()})
        if type(other) is not Expr:
            return NotImplemented
        terms: dict[Monomial, Number] = {}
        for a, x in self.terms.items():
            for b, y in other.terms.items():
                monomial = times(a, b)
                terms[monomial] = terms.get(monomial, 0) + x * y
        return make(self.scope, {m: _plain(c) for m, c in terms.items() if c})

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        from .division import quotient

        if isinstance(other, NUMBERS):
            return Expr(self.scope, {m: ratio(c, other) for m, c in self.terms.items()})
        if type(other) is not Expr:
            return NotImplemented
        return quotient(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        from .division import quotient

        return quotient(other, self) if isinstance(other, NUMBERS) else NotImplemented

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        from .division import divided

        return divided(self, other)

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:
        from .division import divided

        return divided(other, self)

    def __floordiv__(self, other: Any) -> Any:
        return divmod(self, other)[0]

    def __rfloordiv__(self, other: Any) -> Any:
        return divmod(other, self)[0]

    def __mod__(self, other: Any) -> Any:
        return divmod(self, other)[1]

    def __rmod__(self, other: Any) -> Any:
        return divmod(other, self)[1]

    def __pow__(self, power: Any) -> Any:
        if type(power) is int and power >= 0:
            return math.prod([self] * power)
        return call("power", self, power)

    def __rpow__(self, base: Any) -> Any:
        return call("power", base, self)

    def __round__(self) -> Any:
        return self if self.is_whole else call("round", self)

    def bit_length(self) -> Any:
        """As of an int: digits of its binary form."""
        return call("bit_length", self)

    def __floor__(self) -> Any:
        return self // 1

    def __ceil__(self) -> Any:
        return -((-self) // 1)

    def __abs__(self) -> Any:
        return -self if self.scope.positive(-self) else self

    def exact_quotient(self, other: Any) -> Any:
        """The quotient by `other` where that is whole for all values in range, else None."""
        from .division import exact_quotient

        return exact_quotient(self, other)

    # -- comparison --------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        return type(other) is Expr and self.terms == other.terms

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self.terms.items()))
        return self._hash

    def __lt__(self, other: Any) -> bool:
        return self.scope.positive(other - self)

    def __gt__(self, other: Any) -> bool:
        return self.scope.positive(self - other)

    def __le__(self, other: Any) -> bool:
        return not self.scope.positive(self - other)

    def __ge__(self, other: Any) -> bool:
        return not self.scope.positive(other - self)

    def __bool__(self) -> bool:
        return self.scope.positive(self) or self.scope.positive(-self)

    # -- values ------------------------------------------------------------------------------------

    def at(self, point: Mapping[str, Number]) -> Number:
        """The value with numbers in place of the symbols: an exact int, or a float if not whole.

        Raises:
            KeyError: a symbol has no value.
        """
        return shown(self._exact(point))

    def _exact(self, point: Mapping[str, Number]) -> Number:
        from .functions import apply

        total: Number = 0
        for monomial, coefficient in self.terms.items():
            value: Number = coefficient
            for atom, power in monomial:
                if isinstance(atom, str):
                    base = point[atom]
                    if not isinstance(base, NUMBERS):  # NumPy's ints would overflow
                        base = operator.index(base)
                else:
                    args = [a._exact(point) if isinstance(a, Expr) else a for a in atom.args]
                    base = apply(atom.name, args)
                value = value * base**power if power > 0 else ratio(value, base**-power)
            total = total + value
        return _plain(total)

    @property
    def sample(self) -> Number:
        """The value at the sizes that were traced."""
        if self._sample is None:
            self._sample = self.at(self.scope.samples)
        return self._sample

    def symbols(self) -> list[str]:
        """Names that occur, also inside of calls, sorted."""
        found: set[str] = set()
        for monomial in self.terms:
            for atom, _ in monomial:
                if isinstance(atom, str):
                    found.add(atom)
                else:
                    for arg in atom.args:
                        found.update(arg.symbols() if isinstance(arg, Expr) else ())
        return sorted(found)

    @property
    def denominator(self) -> int:
        """What makes all coefficients whole, as of a Fraction."""
        return math.lcm(*(c.denominator for c in self.terms.values() if isinstance(c, Fraction)))

    @property
    def is_whole(self) -> bool:
        """Whether it is surely an integer, as S(S+1)/2 is."""
        from .division import is_whole

        return is_whole(self)

    def __iter__(self) -> Iterator[NoReturn]:
        raise TypeError(f"{self} is a number, not a sequence")

    def _frozen(self) -> NoReturn:
        raise TypeError(f"{self} has no single value: use .at(...) or .sample")

    __int__ = __float__ = __index__ = __trunc__ = __complex__ = _frozen

    def __str__(self) -> str:
        from .text import plain

        return plain(self)

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec if spec[-1:] in ("", "s") else "")

    def __reduce__(self) -> Any:
        return Expr, (self.scope, dict(self.terms))


def make(scope: Scope, terms: Mapping[Monomial, Number]) -> Any:
    """The expression of `terms`, or the plain number that they are."""
    if not terms:
        return 0
    if len(terms) == 1 and ONE in terms:
        return terms[ONE]
    return Expr(scope, terms)


def call(name: str, *args: Any) -> Any:
    """The opaque value of `functions.RULES[name]` at `args`, of which one is an expression."""
    scope = next(arg.scope for arg in args if isinstance(arg, Expr))
    return Expr(scope, {((Call(name, args), 1),): 1})


def value_at(value: Value, point: Mapping[str, Number]) -> Number:
    """`value` with numbers in place of its symbols, if it has any."""
    return value.at(point) if isinstance(value, Expr) else shown(value)


def shown(value: Number) -> Number:
    """A fraction as the float that it is next to, so that it can be formatted."""
    return float(value) if type(value) is Fraction else value


def ratio(a: Number, b: Number) -> Number:
    """The quotient, exact but for floats."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return _plain(Fraction(a) / Fraction(b))


def _plain(value: Number) -> Number:
    """Fractions that are whole as ints."""
    if type(value) is Fraction and value.denominator == 1:
        return value.numerator
    return value
