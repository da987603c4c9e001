"""Bytes that one op moves, from its arguments and outputs.

By default a kernel reads every input once and writes every output once. A view costs nothing, a
mutated argument is read and written, a dimension of stride 0 counts once, and of two inputs that
overlap in memory the smaller one is free. A formula states the exceptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..capture.records import Op, TensorRef
from .registry import Formula, results_of
from .work import FREE, Work


class Moved(NamedTuple):
    """Bytes to or from one storage."""

    storage: int
    nbytes: int


class Traffic(NamedTuple):
    """What one execution of an op reads and writes."""

    reads: tuple[Moved, ...]
    writes: tuple[Moved, ...]


NOTHING = Traffic((), ())


def is_view(op: Op) -> bool:
    """Every output shares memory with an input and nothing is written: no kernel runs."""
    if op.mutates or not op.outputs:
        return False
    inputs = {ref.storage for ref in op.inputs()}
    return all(out.storage in inputs for out in op.outputs)


def traffic(op: Op, work: Work, formula: Formula | None) -> Traffic:
    """Reads and writes of `op`, with the exceptions that `work` states."""
    if work.kind == FREE:
        return NOTHING
    names = formula.parameters if formula is not None else ("self",)
    reads = _reads(op, work, names)
    writes = _writes(op, work, names)
    return Traffic(tuple(reads), tuple(writes))


def _arguments(op: Op, names: tuple[str, ...]) -> Iterator[tuple[str, TensorRef]]:
    for position, value in enumerate(op.args):
        name = names[position] if position < len(names) else ""
        for ref in _flat(value):
            yield name, ref
    for name, value in op.kwargs.items():
        for ref in _flat(value):
            yield name, ref


def _flat(value: Any) -> Iterator[TensorRef]:
    if type(value) is TensorRef:
        yield value
    elif type(value) is tuple:
        for item in value:
            yield from _flat(item)


def _reads(op: Op, work: Work, names: tuple[str, ...]) -> Iterator[Moved]:
    exceptions = work.read or {}
    if exceptions.get("*") == 0:
        return
    results = results_of(op)
    read: dict[int, list[TensorRef]] = {}
    for name, ref in _arguments(op, names):
        if name in exceptions:
            if exceptions[name]:
                yield Moved(ref.storage, exceptions[name])
        elif name not in results:
            before = read.setdefault(ref.storage, [])
            if not any(_covers(other, ref) for other in before):
                before.append(ref)
                yield Moved(ref.storage, ref.nbytes)


def _writes(op: Op, work: Work, names: tuple[str, ...]) -> Iterator[Moved]:
    exceptions = work.write or {}
    inputs = {ref.storage for ref in op.inputs()}
    for position, out in enumerate(op.outputs):
        if out.storage in op.mutates or out.storage not in inputs:
            nbytes = exceptions.get(position, out.nbytes)
            if nbytes:
                yield Moved(out.storage, nbytes)
    returned = {out.storage for out in op.outputs}
    seen: set[TensorRef] = set()
    for name, ref in _arguments(op, names):
        if ref.storage in op.mutates and ref.storage not in returned and ref not in seen:
            seen.add(ref)
            nbytes = exceptions.get(name, ref.nbytes)
            if nbytes:
                yield Moved(ref.storage, nbytes)


def _covers(big: TensorRef, small: TensorRef) -> bool:
    """Whether reading `big` brings all of `small`, of the same storage, along: boxes nested."""
    if big == small:
        return True
    if big.dtype != small.dtype or big.distinct < small.distinct:
        return False
    corner = small.offset - big.offset
    if corner < 0:
        return False
    sizes_big = _extents(big)
    sizes_small = _extents(small)
    if not set(sizes_small) <= set(sizes_big):
        return False
    # Peel the distance between the corners into steps along each dimension, widest first.
    for stride in sorted(sizes_big, reverse=True):
        steps, corner = divmod(corner, stride)
        if steps + sizes_small.get(stride, 1) > sizes_big[stride]:
            return False
    return corner == 0


def _extents(ref: TensorRef) -> dict[int, int]:
    """Size by stride, for the dimensions that move in memory."""
    return {
        stride: size
        for size, stride in zip(ref.shape, ref.stride, strict=True)
        if size > 1 and stride > 0
    }
