"""Which ops share a kernel: chains of elementwise ops and row reductions, by dataflow.

A compiler or a hand-written kernel keeps the value between two elementwise ops in registers. Here
an op joins the kernel of the op that produced its input if both loop over the same elements (or
over the rows of them), and nothing outside of the kernel has read from the kernel yet: then all of
the kernel can still run at the place of its last op. An intermediate is not read from memory inside
of its kernel, and not written at all if nobody outside needs it: not the backward, not a view, not
the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..algebra import divides, most
from ..capture.records import Storage, TensorRef
from .regions import covers, disjoint
from .traffic import Moved, Traffic
from .work import COPY, POINTWISE, REDUCTION, ROW

FUSIBLE = (POINTWISE, ROW, COPY)
_KEPT_ROLES = ("weights", "kv", "gradients", "optimizer")  # results that must reach memory


class Node(NamedTuple):
    """One op as fusion sees it: `loop` is the shape it iterates over, the largest it touches.

    Of kinds that never fuse no loop is asked for.
    """

    kind: str
    phase: str
    loop: tuple[int, ...]
    traffic: Traffic

    @property
    def elements(self) -> int:
        """Iterations."""
        return math.prod(self.loop)


@dataclass(eq=False)
class _Group:
    elements: int
    phase: str
    members: list[int] = field(default_factory=list)
    open: bool = True
    rows: bool = False  # holds an op that needs a whole row before it can go on
    merged: _Group | None = None  # the kernel that took this one in

    def find(self) -> _Group:
        """The kernel that this one is part of by now."""
        group = self
        while group.merged is not None:
            group = group.merged
        return group


class _Write(NamedTuple):
    """What one op wrote to one storage, as long as something of it is left."""

    writer: int
    moved: Moved


def fuse(
    nodes: Sequence[Node | None], storages: Sequence[Storage], roles: Sequence[str]
) -> tuple[list[list[int]], list[Traffic]]:
    """Kernels as lists of op indices in dispatch order, and what each op still moves.

    `nodes[i]` is None for ops that run no kernel (views). The kernels are ordered by their last
    member, where they would be launched.
    """
    groups = _group(nodes)
    kernel_of = {member: id(group) for group in groups for member in group.members}
    moved = _without_intermediates(nodes, kernel_of, storages, roles)
    kernels = sorted((group.members for group in groups), key=lambda members: members[-1])
    return kernels, moved


def _group(nodes: Sequence[Node | None]) -> list[_Group]:
    groups: list[_Group] = []
    home: dict[int, _Group] = {}  # storage -> kernel that wrote its current value
    barred: set[int] = set()  # storages whose value is complete only when the kernel is
    reading: dict[int, list[_Group]] = {}  # storage -> kernels that read its current value
    for index, node in enumerate(nodes):
        if node is None:
            continue
        sources = {m.storage for m in node.traffic.reads}
        targets = {m.storage for m in node.traffic.writes}
        fusible = node.kind in FUSIBLE or node.kind == REDUCTION
        group = _join(node, sources | targets, home, barred) if fusible else None
        for storage in sources | targets:
            producer = home.get(storage)
            if producer is not None and producer.find() is not group:
                producer.find().open = False
        for storage in targets:  # who still wants the old value must run before it is gone
            for reader in reading.pop(storage, ()):
                if reader.find() is not group:
                    reader.find().open = False
        if group is None:
            group = _Group(node.elements, node.phase, open=fusible)
            groups.append(group)
        group.members.append(index)
        group.rows = group.rows or node.kind == ROW
        group.elements = max(group.elements, node.elements)
        for storage in sources:
            reading.setdefault(storage, []).append(group)
        for storage in targets:
            home[storage] = group
            if node.kind == REDUCTION:
                barred.add(storage)
            else:
                barred.discard(storage)
    kernels = [group for group in groups if group.merged is None]
    for group in kernels:
        group.members.sort()
    return kernels


def _join(
    node: Node, touched: set[int], home: dict[int, _Group], barred: set[int]
) -> _Group | None:
    """The open kernel that `node` can run in; several are merged into one."""
    found: list[_Group] = []
    for storage in sorted(touched):
        if storage not in home:
            continue
        group = home[storage].find()
        if (
            group.open
            and group.phase == node.phase
            and not (group.rows and _turns(node, storage))
            and _nested(group.elements, node.elements)
            and group not in found
        ):
            found.append(group)
    # A kernel that links to this op by a value which is complete only at its end has to end first.
    blocked = {id(home[s].find()) for s in touched if s in barred and s in home}
    found = [group for group in found if id(group) not in blocked]
    if not found:
        return None
    first, *others = found
    for other in others:
        if _nested(first.elements, other.elements):
            first.members += other.members
            first.rows = first.rows or other.rows
            first.elements = max(first.elements, other.elements)
            other.merged = first
    return first


def _nested(a: int, b: int) -> bool:
    """Same loop, or one over the rows of the other."""
    if a == b:
        return bool(a)
    return a > 0 and b > 0 and (divides(a, b) if a < b else divides(b, a))


def _turns(node: Node, storage: int) -> bool:
    """Whether `node` reads `storage` along another axis than its own loop runs.

    A kernel that finishes one row after another can hand on what it has of a row: values in the
    loop's order, or one value a row. A transposed view, or a value a column, needs all rows first.
    """
    for moved in node.traffic.reads:
        if moved.storage != storage:
            continue
        ref = moved.region
        if ref is None:
            return True
        missing = len(node.loop) - len(ref.shape)
        shape = (1,) * missing + ref.shape
        stride = (0,) * missing + ref.stride
        before = None
        ended = False  # from some dimension on the view is one value a row
        for size, step, loop in zip(shape, stride, node.loop, strict=False):
            if loop == 1:
                continue
            if size == 1 or step == 0:
                ended = True
            elif ended or (before is not None and step > before):
                return True
            else:
                before = step
    return False


def _without_intermediates(
    nodes: Sequence[Node | None],
    kernel_of: dict[int, int],
    storages: Sequence[Storage],
    roles: Sequence[str],
) -> list[Traffic]:
    alive: dict[int, list[_Write]] = {}  # storage -> writes of which something is left, in order
    readers: dict[tuple[int, int], list[int]] = {}  # (storage, writer) -> ops
    replaced: set[tuple[int, int]] = set()  # writes that a later one covers
    loaded: dict[int, dict[int, list[TensorRef]]] = {}  # storage -> kernel -> in its registers
    reads: list[tuple[Moved, ...]] = []
    for index, node in enumerate(nodes):
        kept: list[Moved] = []
        if node is not None:
            kernel = kernel_of[index]
            for moved in node.traffic.reads:
                registers = loaded.setdefault(moved.storage, {}).setdefault(kernel, [])
                left = _left_to_read(moved, index, kernel, registers, alive, readers, kernel_of)
                if left:
                    kept.append(moved._replace(nbytes=left))
                if node.kind in FUSIBLE and moved.region is not None:
                    registers.append(moved.region)
            for moved in node.traffic.writes:
                earlier = alive.setdefault(moved.storage, [])
                gone = [write for write in earlier if _covered(write.moved, moved)]
                replaced.update((moved.storage, write.writer) for write in gone)
                alive[moved.storage] = [w for w in earlier if w not in gone]
                alive[moved.storage].append(_Write(index, moved))
                loaded.pop(moved.storage, None)  # what registers hold is the old value
        reads.append(tuple(kept))
    result: list[Traffic] = []
    for index, node in enumerate(nodes):
        writes: list[Moved] = []
        for moved in node.traffic.writes if node is not None else ():
            key = (moved.storage, index)
            used = readers.get(key, [])
            survives = storages[moved.storage].died is None or roles[moved.storage] in _KEPT_ROLES
            local = bool(used) and all(kernel_of.get(r) == kernel_of[index] for r in used)
            if not (local and (not survives or key in replaced)):
                writes.append(moved)
        result.append(Traffic(reads[index], tuple(writes)))
    return result


def _covered(old: Moved, new: Moved) -> bool:
    return old.region is not None and new.region is not None and covers(new.region, old.region)


def _left_to_read(
    moved: Moved,
    index: int,
    kernel: int,
    registers: list[TensorRef],
    alive: dict[int, list[_Write]],
    readers: dict[tuple[int, int], list[int]],
    kernel_of: dict[int, int],
) -> int:
    """Bytes of a read that its own kernel has not just written or read; notes who reads what."""
    region = moved.region
    inside: list[TensorRef] = []
    for write in reversed(alive.get(moved.storage, ())):
        wrote = write.moved.region
        if region is not None and wrote is not None and wrote != region and disjoint(wrote, region):
            continue
        readers.setdefault((moved.storage, write.writer), []).append(index)
        mine = write.writer != index and kernel_of.get(write.writer) == kernel
        if region is not None and wrote is not None:
            if covers(wrote, region):
                if mine:
                    return 0
                break
            if mine:
                inside.append(wrote)
        elif mine and region is None:
            return 0
    if region is None:
        return moved.nbytes
    if any(covers(other, region) for other in registers):
        return 0
    held = [*inside, *registers]
    left: int = most((moved.nbytes - _bytes_inside(region, held), 0)) if held else moved.nbytes
    return left


def _bytes_inside(whole: TensorRef, parts: Sequence[TensorRef]) -> int:
    """Bytes of those `parts` that surely lie in `whole` and apart from each other."""
    counted: list[TensorRef] = []
    for part in parts:
        if covers(whole, part) and all(disjoint(part, other) for other in counted):
            counted.append(part)
    return sum(part.nbytes for part in counted)
