"""Sizes with names: a run on fake tensors whose batch, sequence or context are symbols.

Torch's `ShapeEnv` carries the symbols through every op; what the records keep are `algebra.Expr`
under the caller's names. A branch of the model that depends on a size is taken as it goes at the
sizes of the workload, and becomes a guard: the range in which the formulas hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..algebra import Expr, Guard, Scope, ceil_div
from ..algebra.functions import least, most
from ..algebra.scope import LOWEST, POSITIVE
from ..errors import UserError
from . import compat
from .grounds import fake_weights


class NotSymbolic(UserError):
    """The model has no closed form: a size was frozen, or an op takes no symbols."""


class Sizes:
    """The symbols of one run, in torch's algebra and in ours."""

    def __init__(self, samples: Mapping[str, int]) -> None:
        for name, value in samples.items():
            if not isinstance(value, int) or value < LOWEST:
                raise UserError(
                    f"symbol {name}={value!r}: give a whole number of at least {LOWEST}"
                )
        self.scope = Scope()
        self._mode, self._env = compat.symbolic_mode()
        self.values: dict[str, Any] = {}  # by name, what to build inputs with
        self._ours: dict[Any, Any] = {}  # torch's expression -> ours
        for name, value in samples.items():
            self.values[name] = compat.symbolic_size(self._env, name, value)
            self._ours[self.values[name].node.expr] = self.scope.symbol(name, value)

    @contextlib.contextmanager
    def run(self, model: nn.Module | None) -> Iterator[None]:
        """A block on fake tensors, the weights of `model` among them.

        Raises:
            NotSymbolic: at the end, if a size was frozen at one value.
        """
        with self._mode, fake_weights(model) if model is not None else contextlib.nullcontext():
            yield
        self._note_guards()

    def resolve(self, size: Any) -> Any:
        """A size as ours: an int stays, a symbolic one becomes an `Expr` or the int that it is.

        Raises:
            NotSymbolic: it is made of something that is no function of the symbols.
        """
        return self._convert(size.node.expr) if type(size) is torch.SymInt else size

    def _note_guards(self) -> None:
        """Take over the guards that the model's own branches left.

        Raises:
            NotSymbolic: the model only runs for one value of a symbol.
        """
        for name, size in self.values.items():
            value = self._convert(size.node.expr)
            if not isinstance(value, Expr):
                raise NotSymbolic(f"the model fixes {name} = {value}{self._frozen_by()}")
        for guard in self._env.guards:
            self._note(guard.expr)

    def _frozen_by(self) -> str:
        for guard in self._env.guards:
            if type(guard.expr).__name__ == "Equality":
                frame = guard.sloc.maybe_user_loc or guard.sloc.framework_loc
                return f" ({frame})" if frame else ""
        return ""

    def _note(self, relation: Any) -> None:
        import sympy

        if not isinstance(relation, sympy.core.relational.Relational):
            return
        left, right = relation.args
        kind = type(relation).__name__
        if kind == "Unequality" and {left, right} & {sympy.Integer(0), sympy.Integer(1)}:
            mod = next((a for a in (left, right) if type(a).__name__ in ("Mod", "PythonMod")), None)
            if mod is not None:
                whole, part = (self._convert(a) for a in mod.args)
                if self.scope.proven(whole % part) != POSITIVE:
                    self.scope.guards[Guard(whole, "does not divide", part)] = None
            return  # sizes of 0 and 1 are out of range anyway
        difference = self._convert(left - right)
        if kind == "Equality":
            mod = next((a for a in (left, right) if type(a).__name__ in ("Mod", "PythonMod")), None)
            if mod is None:
                self.scope.guards[Guard(difference, "=")] = None
                return
            whole, part = (self._convert(a) for a in mod.args)
            self.scope.guards[Guard(whole, "divides", part)] = None
            return
        if kind == "Unequality":
            return  # two sizes that are not the same expression are taken as different
        strict = {"StrictGreaterThan": (1, 0), "GreaterThan": (1, 1),
                  "StrictLessThan": (-1, 0), "LessThan": (-1, 1)}[kind]  # fmt: skip
        value = strict[0] * difference + strict[1]
        proven = self.scope.proven(value)
        if proven != POSITIVE:
            self.scope.guards[Guard(value, ">")] = None

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


def without_whole_slices(func: Any, args: Any) -> tuple[Any, Any]:
    """The derivative of `x[:, 0:]`, which is no slice for a number and one for a symbol.

    Torch leaves a slice over all of a dimension out where it knows the size; with a symbol it takes
    the slice, and its backward fills a tensor that nothing is missing in. It becomes an alias.
    """
    if func is torch.ops.aten.slice_backward.default:
        gradient, sizes = args[0], args[1]
        if len(gradient.shape) == len(sizes) and all(
            a is b or _one(a) == _one(b) for a, b in zip(gradient.shape, sizes, strict=True)
        ):
            return torch.ops.aten.alias.default, (gradient,)
    return func, args


def _one(size: Any) -> Any:
    return size.node.expr if type(size) is torch.SymInt else size
