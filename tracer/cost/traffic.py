"""Bytes that one op moves, from its arguments and outputs.

By default a kernel reads every input once and writes every output once. A view costs nothing, a
mutated argument is read and written, a dimension of stride 0 counts once, and of two inputs that
overlap in memory the smaller one is free. A formula states the exceptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..capture.records import Op, TensorRef
from .regions import covers
from .registry import Formula, results_of
from .work import COLLECTIVE, FREE, Work


class Moved(NamedTuple):
    """Bytes to or from one storage; `region` where they are all of one view."""

    storage: int
    nbytes: int
    region: TensorRef | None = None


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
    if work.kind == COLLECTIVE:
        # Its tensors lie in memory, so it reads and writes; the bytes are the network's to price.
        return Traffic(
            tuple(Moved(ref.storage, 0, ref) for ref in op.inputs()),
            tuple(Moved(ref.storage, 0, ref) for ref in op.outputs),
        )
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
            read.setdefault(ref.storage, []).append(ref)
    for storage, refs in read.items():
        kept: list[TensorRef] = []
        for ref in sorted(refs, key=lambda r: -r.distinct) if len(refs) > 1 else refs:
            if not any(covers(other, ref) for other in kept):
                kept.append(ref)
                yield Moved(storage, ref.nbytes, ref)


def _writes(op: Op, work: Work, names: tuple[str, ...]) -> Iterator[Moved]:
    exceptions = work.write or {}
    inputs = {ref.storage for ref in op.inputs()}
    for position, out in enumerate(op.outputs):
        if out.storage in op.mutates or out.storage not in inputs:
            yield from _write(out, exceptions.get(position))
    returned = {out.storage for out in op.outputs}
    seen: set[TensorRef] = set()
    for name, ref in _arguments(op, names):
        if ref.storage in op.mutates and ref.storage not in returned and ref not in seen:
            seen.add(ref)
            yield from _write(ref, exceptions.get(name))


def _write(ref: TensorRef, exception: int | None) -> Iterator[Moved]:
    if exception is None:
        if ref.nbytes:
            yield Moved(ref.storage, ref.nbytes, ref)
    elif exception:
        yield Moved(ref.storage, exception)
