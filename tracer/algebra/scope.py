"""The symbols of one trace, what is known of them, and the guards that its formulas rest on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .expression import ONE, Call, Expr, Monomial, Number, times, value_at
from .guards import Guard

LOWEST = 2  # sizes 0 and 1 take other paths (broadcast, empty), so symbols start above them

# What is proven of an expression, for all sizes in range.
POSITIVE, NOT_NEGATIVE, ZERO, NOT_POSITIVE, NEGATIVE = 2, 1, 0, -1, -2

# Arguments in which a call need not grow: a divisor; experts and top-k.
_GROWS_IN = {"floor_div": slice(1, 2), "ratio": slice(1, 2), "distinct": slice(0, 2)}


class Symbol(NamedTuple):
    """A size with a name: `sample` is its value in the traced run, `low` the least allowed."""

    name: str
    sample: int
    low: int = LOWEST


class Scope:
    """Symbols by name, and the guards that comparisons left."""

    def __init__(self) -> None:
        self.symbols: dict[str, Symbol] = {}
        self.guards: dict[Guard, None] = {}
        self.known: dict[Any, Any] = {}  # what others worked out of expressions of this scope
        self._proven: dict[Expr, int | None] = {}

    def symbol(self, name: str, sample: int, low: int = LOWEST) -> Expr:
        """A new symbol, or the one of this name."""
        self.symbols.setdefault(name, Symbol(name, sample, low))
        return Expr(self, {((name, 1),): 1})

    @property
    def samples(self) -> dict[str, int]:
        """The value of every symbol in the traced run."""
        return {name: symbol.sample for name, symbol in self.symbols.items()}

    def violated(self, point: Mapping[str, Number]) -> list[str]:
        """What `point` breaks, a text each: the range of a symbol, or a guard."""
        found = [f"{s.name} >= {s.low}" for s in self.symbols.values() if point[s.name] < s.low]
        return found + [str(guard) for guard in self.guards if not guard.holds(point)]

    def conditions(self) -> list[str]:
        """The range in which the formulas hold, a text a condition."""
        ranges = [f"{s.name} >= {s.low}" for s in self.symbols.values()]
        return ranges + [str(guard) for guard in self.guards]

    def note(self, guard: Guard) -> None:
        """Keep a condition, unless another implies it; what it implies goes."""
        guard = guard.tidy()
        if any(known.implies(guard) for known in self.guards):
            return
        for known in [known for known in self.guards if guard.implies(known)]:
            del self.guards[known]
        self.guards[guard] = None

    def positive(self, value: Any) -> bool:
        """Whether `value` > 0: proven, else as in the traced run, which is noted as a guard."""
        proven = self.proven(value)
        if proven is not None and proven != NOT_NEGATIVE:
            return proven == POSITIVE
        answer = bool(value.sample > 0)
        self.note(Guard(value, ">" if answer else "<="))
        return answer

    def divides(self, part: Any, whole: Any) -> bool:
        """Whether `part` divides `whole` in the traced run, which is noted as a guard."""
        answer = value_at(whole, self.samples) % value_at(part, self.samples) == 0
        self.note(Guard(whole, "divides" if answer else "does not divide", part))
        return bool(answer)

    def positive_always(self, value: Any) -> bool:
        """Whether `value` > 0 is proven."""
        return self.proven(value) == POSITIVE

    def proven(self, value: Any) -> int | None:
        """What holds of the sign of `value` for all sizes in range; None if nothing is known."""
        if not isinstance(value, Expr):
            return POSITIVE if value > 0 else NEGATIVE if value < 0 else ZERO
        if value not in self._proven:
            self._proven[value] = self._prove(value)
        return self._proven[value]

    def _prove(self, value: Expr) -> int | None:
        constant = value.terms.get(ONE, 0)
        if isinstance(constant, float) and math.isinf(constant):  # more than any size
            return POSITIVE if constant > 0 else NEGATIVE
        if not all(self._not_negative(atom) for m in value.terms for atom, _ in m):
            return None
        shifted = self._shifted(value)
        if all(c >= 0 for c in shifted.values()):
            return POSITIVE if shifted.get(ONE, 0) > 0 else NOT_NEGATIVE
        if all(c <= 0 for c in shifted.values()):
            return NEGATIVE if shifted.get(ONE, 0) < 0 else NOT_POSITIVE
        return None

    def _not_negative(self, atom: Any) -> bool:
        if isinstance(atom, str):
            return True
        if atom.name == "mod":  # has the sign of the divisor
            return self.proven(atom.args[1]) == POSITIVE
        signs = [self.proven(arg) for arg in atom.args]
        if atom.name == "max":
            return any(sign is not None and sign >= 0 for sign in signs)
        return all(sign is not None and sign >= 0 for sign in signs)

    def _shifted(self, value: Expr) -> Mapping[Any, Number]:
        """Coefficients in x' = x - low, all x' >= 0: their signs alone decide a sign.

        What is divided by keeps its place as a factor, which is not negative.
        """
        found: dict[Any, Number] = {}
        for monomial, coefficient in value.terms.items():
            choices: list[list[tuple[Monomial, int]]] = []
            for atom, power in monomial:
                low = self.symbols[atom].low if isinstance(atom, str) else self._least(atom)
                if power < 0 or not low:
                    choices.append([(((atom, power),), 1)])
                else:  # (low + x')^n = sum over i of C(n, i) low^(n-i) x'^i
                    choices.append(
                        [
                            (((atom, i),) if i else ONE, math.comb(power, i) * low ** (power - i))
                            for i in range(power + 1)
                        ]
                    )
            for chosen in itertools.product(*choices):
                key, factor = ONE, coefficient
                for part, weight in chosen:
                    key, factor = times(key, part), factor * weight
                found[key] = found.get(key, 0) + factor
        return found

    def _least(self, atom: Call) -> int:
        """A whole number that the atom, which is not negative, is never below."""
        if not self._call_grows(atom):
            return 0
        lows = {name: symbol.low for name, symbol in self.symbols.items()}
        return math.floor(value_at(Expr(self, {((atom, 1),): 1}), lows))

    def _grows(self, value: Any) -> bool:
        """Whether an argument is smallest where its sizes are."""
        if not isinstance(value, Expr):
            return True
        return all(
            c > 0 and all(n > 0 and (isinstance(a, str) or self._call_grows(a)) for a, n in m)
            for m, c in value.terms.items()
            if m != ONE
        )

    def _call_grows(self, atom: Call) -> bool:
        """Whether the value of an atom is smallest where its sizes are, and not negative there."""
        if not self._not_negative(atom) or not all(map(self._grows, atom.args)):
            return False
        if atom.name in ("floor_div", "ratio", "distinct"):
            return not any(isinstance(arg, Expr) for arg in atom.args[_GROWS_IN[atom.name]])
        if atom.name == "power":
            return (self.proven(atom.args[0] - 1) or NEGATIVE) >= NOT_NEGATIVE
        return atom.name != "mod"
