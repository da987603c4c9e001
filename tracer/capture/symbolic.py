"""Sizes with names: a run on fake tensors whose batch, sequence or context are symbols.

Torch's `ShapeEnv` carries the symbols through every op; what the records keep are `algebra.Expr`
under the caller's names. A branch of the model that depends on a size is taken as it goes at the
sizes of the workload, and becomes a guard: the range in which the formulas hold.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from ..algebra import Expr, Guard, Scope, ceil_div
from ..algebra.functions import least, most
from ..algebra.scope import LOWEST, NEGATIVE, POSITIVE, ZERO
from ..errors import UserError
from . import compat_fakes
from .grounds import fake_weights
from .known_sizes import known_sizes
from .remembered_fakes import Remembered


class NotSymbolic(UserError):
    """The model has no closed form: a size was frozen, or an op takes no symbols."""


class Sizes:
    """The symbols of one run, in torch's algebra and in ours.

    Raises:
        UserError: a sample below 2, or a name that is none.
    """

    def __init__(self, samples: Mapping[str, int]) -> None:
        for name, value in samples.items():
            if not isinstance(value, int) or value < LOWEST:
                raise UserError(
                    f"symbol {name}={value!r}: give a whole number of at least {LOWEST}"
                )
            if not name.isidentifier():
                raise UserError(f"symbol {name!r}: give a name as of a variable, like B")
        self.scope = Scope()
        self._mode, self._env = compat_fakes.symbolic_mode(self._frozen)
        self.remembered = Remembered(self._mode, self._resolved)
        self.values: dict[str, Any] = {}  # by name, what to build inputs with
        self._ours: dict[Any, Any] = {}  # torch's expression -> ours
        self._taken = 0  # guards of torch that are in the scope
        with compat_fakes.quiet_fake_tensors():
            for name, value in samples.items():
                self.values[name] = compat_fakes.symbolic_size(self._env, name, value)
                self._ours[self.values[name].node.expr] = self.scope.symbol(name, value)

    @contextlib.contextmanager
    def run(self, model: nn.Module | None) -> Iterator[None]:
        """A block on fake tensors, the weights of `model` among them.

        Raises:
            NotSymbolic: a size was fixed at one value, or an op takes no symbols; says which and
                where. What else the model raises is passed on.
        """
        weights = contextlib.nullcontext() if model is None else fake_weights(model, self._mode)
        try:
            with compat_fakes.quiet_fake_tensors(), known_sizes(self._env), weights, self._mode:
                yield
        except NotSymbolic:
            raise
        except Exception as error:
            if _about_symbols(error):
                frames = traceback.walk_tb(error.__traceback__)
                raise NotSymbolic(f"{_first_line(error)}{_where(frames)}") from error
            raise
        self._take_guards()

    def is_mode(self, mode: Any) -> bool:
        """Whether `mode` is the fake mode of this run."""
        return mode is self._mode

    def resolve(self, size: Any) -> Any:
        """A size as ours: an int stays, a symbolic one becomes an `Expr` or the int that it is.

        Raises:
            NotSymbolic: it is made of something that is no function of the symbols.
        """
        if len(self._env.guards) != self._taken:
            self._take_guards()
        return self._resolved(size)

    def _resolved(self, size: Any) -> Any:
        return self._convert(size.node.expr) if type(size) is torch.SymInt else size

    def _frozen(self, symbol: Any, value: int) -> None:
        """Torch is about to give a symbol one value.

        Raises:
            NotSymbolic: always.
        """
        name = str(self._ours.get(symbol, symbol))
        raise NotSymbolic(f"it runs for {name} = {value} only{here()}")

    def _take_guards(self) -> None:
        """Note the conditions that the model's own branches left, divisors first.

        What is known to divide makes quotients simple, and most other conditions true.
        """
        new = [part for g in self._env.guards[self._taken :] for part in _relations(g.expr)]
        self._taken = len(self._env.guards)
        self._forget()
        divisors = [relation for relation in new if _mod_is_zero(relation)]
        for relation in divisors:
            self._note(relation)
        if divisors:
            self._forget()
        for relation in new:
            self._note(relation)

    def _forget(self) -> None:
        """What was converted before knows nothing of new guards."""
        self._ours = {torchs: ours for torchs, ours in self._ours.items() if torchs.is_Symbol}

    def _note(self, relation: Any) -> None:
        """The guard that a relation of torch's is, unless it holds for all sizes in range."""
        left, right = relation.args
        mod = next((a for a in (left, right) if type(a).__name__ in _MODS), None)
        kind = type(relation).__name__
        if mod is not None and left - right in (mod, -mod):
            whole, part = (self._convert(a) for a in mod.args)
            if kind == "Equality" and not _divides_always(part, whole):
                self.scope.note(Guard(whole, "divides", part))
            elif kind == "Unequality" and self.scope.proven(whole % part) != POSITIVE:
                self.scope.note(Guard(whole, "does not divide", part))
            return
        difference = self._convert(left) - self._convert(right)
        proven = self.scope.proven(difference)
        if kind == "Equality":
            if proven != ZERO:
                self.scope.note(Guard(difference, "="))
        elif kind == "Unequality":
            if proven not in (POSITIVE, NEGATIVE):
                self.scope.note(Guard(difference, "!="))
        else:
            sign, more = _ORDERS[kind]
            value = sign * difference + more
            if self.scope.proven(value) != POSITIVE:
                self.scope.note(Guard(value, ">"))

    def _convert(self, expr: Any) -> Any:
        found = self._ours.get(expr)
        if found is None:
            found = self._ours[expr] = self._build(expr)
        return found

    def _build(self, expr: Any) -> Any:
        kind = type(expr).__name__
        if expr.is_Integer:
            return int(expr)
        if kind in ("Float", "Rational", "Half"):
            return float(expr)
        if expr.is_Symbol:
            raise NotSymbolic(f"a size that depends on data ({expr})")
        args = [self._convert(arg) for arg in expr.args]
        build = _BUILD.get(kind)
        if build is None:
            raise NotSymbolic(f"a size of the unknown form {expr}")
        return build(args)


def _product(args: list[Any]) -> Any:
    result = args[0]
    for arg in args[1:]:
        result = result * arg
    return result


_BUILD: dict[str, Any] = {
    "Add": sum,
    "Mul": _product,
    "Pow": lambda a: a[0] ** a[1],
    "PowByNatural": lambda a: a[0] ** a[1],
    "FloorDiv": lambda a: a[0] // a[1],
    "CleanDiv": lambda a: a[0] // a[1],
    "CeilDiv": lambda a: ceil_div(a[0], a[1]),
    "Mod": lambda a: a[0] % a[1],
    "PythonMod": lambda a: a[0] % a[1],
    "Max": most,
    "Min": least,
    "ToFloat": lambda a: a[0],
    "TruncToInt": lambda a: a[0] // 1,
    "FloorToInt": lambda a: a[0] // 1,
    "CeilToInt": lambda a: _ceiling(a[0]),
    "IntTrueDiv": lambda a: a[0] / a[1],
    "FloatTrueDiv": lambda a: a[0] / a[1],
}


def _ceiling(value: Any) -> Any:
    """S / 32 rounded up, as (S + 31) // 32."""
    scale = value.denominator if isinstance(value, Expr) else 1
    return ceil_div(value * scale, scale) if scale > 1 else ceil_div(value, 1)


_MODS = ("Mod", "PythonMod")
# The sign and the number that turn `left - right` of an order between integers into what is > 0.
_ORDERS = {
    "StrictGreaterThan": (1, 0),
    "GreaterThan": (1, 1),
    "StrictLessThan": (-1, 0),
    "LessThan": (-1, 1),
}


def _relations(condition: Any) -> Iterator[Any]:
    """The relations that make a condition of torch's true at the traced sizes."""
    kind = type(condition).__name__
    if kind == "And":
        for part in condition.args:
            yield from _relations(part)
    elif kind == "Not" and hasattr(condition.args[0], "negated"):
        yield condition.args[0].negated
    elif hasattr(condition, "negated"):
        yield condition
    elif kind not in ("BooleanTrue", "bool"):
        raise NotSymbolic(f"a branch on the unknown condition {condition}")


def _mod_is_zero(relation: Any) -> bool:
    mods = any(type(a).__name__ in _MODS for a in relation.args)
    return mods and type(relation).__name__ == "Equality" and 0 in relation.args


def _divides_always(part: Any, whole: Any) -> bool:
    if isinstance(whole, Expr):
        return whole.exact_quotient(part) is not None
    return not isinstance(part, Expr) and whole % part == 0


def _about_symbols(error: Exception) -> bool:
    """Whether an error is of torch, about symbolic sizes or data that nothing knows."""
    text = f"{type(error).__name__} {error}"
    return any(word in text for word in _WORDS)


_WORDS = ("SymInt", "SymNode", "symbolic", "DataDependent", "DynamicOutputShape", "data-dependent")


def here() -> str:
    """Which op is running, called from which line of the model's own code."""
    return _where(reversed(list(traceback.walk_stack(sys._getframe()))))


def _where(frames: Iterable[tuple[FrameType, int]]) -> str:
    """In which op, at which line of the model's own code; outermost frame first."""
    place, op = "", ""
    for frame, line in frames:
        name = frame.f_code.co_filename
        if name.endswith("capture/recorder.py") and "func" in frame.f_locals:
            op = f", in {frame.f_locals['func']}"
        elif not name.startswith(_NOT_MODELS):
            place, op = f" at {name}:{line}", ""
    return op + place


_NOT_MODELS = (
    str(Path(torch.__file__).parent), str(Path(__file__).parent.parent),
    str(Path(contextlib.__file__).parent), "<",
)  # fmt: skip


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
