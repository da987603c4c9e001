"""What a capture leaves behind: plain, frozen records that need no torch to be read.

A `Trace` is a list of `Op`s in the order in which they were dispatched, with the storages, modules
and parameters they name. It holds no tensor and no op object. Everything later (FLOPs, bytes,
fusion, chips, plans) is a replay over this list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..algebra import Scope, least

FORWARD, BACKWARD, RECOMPUTE, OPTIMIZER = "forward", "backward", "recompute", "optimizer"
PHASES = (FORWARD, BACKWARD, RECOMPUTE, OPTIMIZER)

DTYPE_BITS: Mapping[str, int] = {
    "bool": 8, "uint8": 8, "int8": 8, "uint16": 16, "int16": 16, "uint32": 32, "int32": 32,
    "uint64": 64, "int64": 64, "float16": 16, "bfloat16": 16, "float32": 32, "float64": 64,
    "complex32": 32, "complex64": 64, "complex128": 128,
    "float8_e4m3fn": 8, "float8_e5m2": 8, "float8_e4m3fnuz": 8, "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8, "float4_e2m1fn_x2": 8,
    "quint8": 8, "qint8": 8, "qint32": 32, "quint4x2": 8, "quint2x4": 8,
    "bits16": 16, **dict.fromkeys(("bits8", "bits4x2", "bits2x4", "bits1x8"), 8),
    # Sub-byte integers take a byte each.
    **{f"{sign}int{bits}": 8 for sign in ("", "u") for bits in range(1, 8)},
}  # fmt: skip


class TensorRef(NamedTuple):
    """A tensor as one op saw it: `shape`, `stride` and `offset` in elements, `storage` an id.

    Sizes, and what follows from them, are ints, or `algebra.Expr` in a symbolic trace.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    storage: int
    offset: int

    @property
    def itemsize(self) -> int:
        """Bytes an element takes."""
        return DTYPE_BITS[self.dtype] // 8

    @property
    def numel(self) -> int:
        """Elements of the shape, broadcast ones included."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def distinct(self) -> int:
        """Elements that exist in memory: a dimension of stride 0 and an overlap count once."""
        for size in (*self.shape, *self.stride):
            if type(size) is not int:
                known = size.scope.known  # type: ignore[attr-defined]
                key = (self.shape, self.stride)
                if key not in known:
                    known[key] = _distinct(*key)
                return known[key]  # type: ignore[no-any-return]
        return _distinct(self.shape, self.stride)

    @property
    def nbytes(self) -> int:
        """Bytes that a kernel moves to read or write this tensor once."""
        return self.distinct * self.itemsize


def _distinct(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    n, last = 1, 0
    for size, step in zip(shape, stride, strict=True):
        if step != 0 or size == 0:
            n *= size
            last += (size - 1) * step
    if type(n) is int and type(last) is int:
        return min(n, last + 1) if n else 0
    return least((n, last + 1)) if n else 0


class Op(NamedTuple):
    """One dispatched op.

    `args` and `kwargs` are the op's own, with `TensorRef` in place of tensors and names in place of
    dtypes, devices and layouts. `mutates` holds the ids of the storages that the op writes in
    place. `call` indexes `Trace.calls`. `times` is how many such ops the whole model runs, more
    than 1 when repeated layers were folded.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[TensorRef, ...]
    mutates: tuple[int, ...]
    call: int
    phase: str
    times: int = 1

    @property
    def overload_packet(self) -> str:
        """The name without its overload: `aten.mm` for `aten.mm.default`."""
        return self.name.rpartition(".")[0]

    def inputs(self) -> Iterator[TensorRef]:
        """Every tensor among the arguments, lists flattened, in order."""
        found: list[TensorRef] = []
        _collect(self.args, found)
        if self.kwargs:
            _collect(self.kwargs.values(), found)
        return iter(found)


def _collect(tree: Iterable[Any], found: list[TensorRef]) -> None:
    for item in tree:
        kind = type(item)
        if kind is TensorRef:
            found.append(item)
        elif kind is tuple or kind is list:
            _collect(item, found)


class Call(NamedTuple):
    """One call of a module: its path, its class, and which call of that module it was (from 0)."""

    module: str
    kind: str
    nth: int


class Parameter(NamedTuple):
    """A parameter or buffer of the traced model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: int
    trainable: bool
    buffer: bool
    offset: int = 0  # of its first element in the storage

    @property
    def numel(self) -> int:
        """Elements."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.numel * DTYPE_BITS[self.dtype] // 8


@dataclass(slots=True)
class Storage:
    """A piece of memory: its size, the op that made it (-1: existed before) and where it died.

    `died` is the number of ops recorded when the last reference went away, None if it outlived the
    trace. `role` is set where the capture knows it for certain: "weights" for parameters and
    buffers, "kv", "gradients" and "optimizer" for storages that the caller named.
    """

    nbytes: int
    born: int
    died: int | None = None
    role: str | None = None


class Fold(NamedTuple):
    """`module` was traced once and stands for `layers` layers with the same program, itself one."""

    module: str
    layers: int
    members: tuple[str, ...]


@dataclass
class Trace:
    """A model's program: ops in dispatch order and the tables that they index."""

    ops: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    folds: tuple[Fold, ...] = ()
    pointwise: frozenset[str] = frozenset()  # names of the ops that torch tags as pointwise
    header: dict[str, Any] = field(default_factory=dict)
    scope: Scope | None = None  # of a symbolic trace: its symbols, and the guards of its formulas

    def __len__(self) -> int:
        return len(self.ops)

    def __repr__(self) -> str:
        total = sum(op.times for op in self.ops)
        folded = f" ({len(self.ops):,} traced)" if total != len(self.ops) else ""
        return f"<Trace {self.header.get('model', '?')}: {total:,} ops{folded}>"

    def module_of(self, op: Op) -> str:
        """Dotted path of the module that ran `op` (backward ops: whose forward created them)."""
        return self.calls[op.call].module
