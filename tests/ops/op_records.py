"""Ops written down by hand, arguments in the order of the real schema, and what they cost."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from tracer.capture import Capture
from tracer.capture.records import Op, TensorRef
from tracer.cost import Conventions, Ledger, price, registry
from tracer.cost.registry import Env
from tracer.cost.traffic import Traffic, traffic
from tracer.cost.work import Work

_storages = itertools.count(1_000_000)


def ref(*shape: int, dtype: str = "float32") -> TensorRef:
    """A contiguous tensor of its own."""
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= size
    return TensorRef(shape, tuple(reversed(stride)), dtype, next(_storages), 0)


def record(overload: Any, *outputs: TensorRef, **given: Any) -> Op:
    """The op with arguments by name, placed as `overload` (a torch op) says; the rest defaults."""
    args, kwargs, mutates = [], {}, []
    left = dict(given)
    for argument in overload._schema.arguments:
        if argument.name in left:
            value = left.pop(argument.name)
        elif argument.has_default_value():
            value = argument.default_value
        elif "?" in str(argument.type) or "Optional" in str(argument.type):
            value = None
        else:
            value = _anything(str(argument.type))
        value = tuple(value) if isinstance(value, list) else value
        if argument.alias_info is not None and argument.alias_info.is_write:
            refs = value if isinstance(value, tuple) else (value,)
            mutates += [r.storage for r in refs if isinstance(r, TensorRef)]
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    assert not left, f"{overload} has no argument {sorted(left)}"
    return Op(str(overload), tuple(args), kwargs, outputs, tuple(mutates), 0, "forward")


def _anything(kind: str) -> Any:
    """A value for a required argument that the test does not care about."""
    if "List[bool]" in kind:
        return (True, True, True)
    if "List[" in kind:
        return (1,)
    if kind == "Tensor":
        return ref(1)
    return {"bool": False, "float": 0.0, "int": 1}.get(kind, 1)


def work(op: Op, conventions: Conventions | None = None, top_k: int | None = None) -> Work:
    """What the op's formula says."""
    formula = registry.find(op)
    assert formula is not None, op.name
    return formula(op, Env(conventions or Conventions(), top_k))


def moved(op: Op) -> Traffic:
    """What one execution of the op reads and writes."""
    return traffic(op, work(op), registry.find(op))


def read_bytes(op: Op) -> int:
    """Bytes that the op reads."""
    return sum(item.nbytes for item in moved(op).reads)


def written_bytes(op: Op) -> int:
    """Bytes that the op writes."""
    return sum(item.nbytes for item in moved(op).writes)


def ledger_of(function: Any, *args: Any, **kwargs: Any) -> Ledger:
    """The priced trace of a call, every op a kernel of its own, unknown ops an error."""
    with Capture() as capture:
        function(*args, **kwargs)
    return price(capture.trace, execution="naive", strict=True)


def meta(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    """A tensor without data."""
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=grad)


class Counted:
    """A number that counts the operations done with it, all instances together."""

    multiplies = 0
    adds = 0
    others = 0  # divisions, roots, comparisons

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    @classmethod
    def reset(cls) -> None:
        cls.multiplies = cls.adds = cls.others = 0

    @classmethod
    def total(cls) -> int:
        return cls.multiplies + cls.adds + cls.others

    def _done(self, kind: str, value: float) -> Counted:
        setattr(Counted, kind, getattr(Counted, kind) + 1)
        return Counted(value)

    def __mul__(self, other: Any) -> Counted:
        return self._done("multiplies", self.value * float(other))

    def __add__(self, other: Any) -> Counted:
        return self._done("adds", self.value + float(other))

    def __sub__(self, other: Any) -> Counted:
        return self._done("adds", self.value - float(other))

    def __truediv__(self, other: Any) -> Counted:
        return self._done("others", self.value / float(other))

    def sqrt(self) -> Counted:
        return self._done("others", abs(self.value) ** 0.5)

    def larger(self, other: Any) -> Counted:
        return self._done("others", max(self.value, float(other)))

    def __rmul__(self, other: Any) -> Counted:
        return self * other

    def __radd__(self, other: Any) -> Counted:
        return self + other

    def __neg__(self) -> Counted:
        return self._done("others", -self.value)

    def __float__(self) -> float:
        return float(self.value)
