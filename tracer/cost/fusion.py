"""Which ops share a kernel: chains of elementwise ops and row reductions, by dataflow.

A compiler or a hand-written kernel keeps the value between two elementwise ops in registers. Here
an op joins the kernel of the op that produced its input if both loop over the same elements (or
over the rows of them), and nothing outside of the kernel has read from the kernel yet: then all of
the kernel can still run at the place of its last op. An intermediate is not read from memory inside
of its kernel, and not written at all if nobody outside needs it: not the backward, not a view, not
the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..capture.records import Storage
from .traffic import Moved, Traffic
from .work import COPY, POINTWISE, REDUCTION, ROW

FUSIBLE = (POINTWISE, ROW, COPY)
_KEPT_ROLES = ("weights", "kv", "gradients", "optimizer")  # results that must reach memory


class Node(NamedTuple):
    """One op as fusion sees it."""

    kind: str
    phase: str
    elements: int  # the largest shape it loops over
    traffic: Traffic


@dataclass(eq=False)
class _Group:
    elements: int
    phase: str
    members: list[int] = field(default_factory=list)
    open: bool = True
    merged: _Group | None = None  # the kernel that took this one in

    def find(self) -> _Group:
        """The kernel that this one is part of by now."""
        group = self
        while group.merged is not None:
            group = group.merged
        return group


class _Value(NamedTuple):
    """What one op wrote to one storage, until the next write to it."""

    writer: int
    nbytes: int


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
            first.elements = max(first.elements, other.elements)
            other.merged = first
    return first


def _nested(a: int, b: int) -> bool:
    """Same loop, or one over the rows of the other."""
    return a > 0 and b > 0 and max(a, b) % min(a, b) == 0


def _without_intermediates(
    nodes: Sequence[Node | None],
    kernel_of: dict[int, int],
    storages: Sequence[Storage],
    roles: Sequence[str],
) -> list[Traffic]:
    current: dict[int, _Value] = {}
    readers: dict[tuple[int, int], list[int]] = {}  # (storage, writer) -> ops
    overwritten: set[tuple[int, int]] = set()
    sees: list[dict[int, int]] = []  # op -> storage -> writer of the value it reads
    for index, node in enumerate(nodes):
        seen: dict[int, int] = {}
        if node is not None:
            for moved in node.traffic.reads:
                value = current.get(moved.storage)
                if value is not None:
                    readers.setdefault((moved.storage, value.writer), []).append(index)
                seen[moved.storage] = value.writer if value is not None else -1
            for moved in node.traffic.writes:
                value = current.get(moved.storage)
                if value is not None:
                    if moved.nbytes >= value.nbytes:
                        overwritten.add((moved.storage, value.writer))
                    else:  # a part is replaced, the rest lives on: whoever comes needs it
                        readers.setdefault((moved.storage, value.writer), []).append(-1)
                current[moved.storage] = _Value(index, moved.nbytes)
        sees.append(seen)

    loaded: set[tuple[int, int, int]] = set()  # (kernel, storage, writer) already in registers
    result: list[Traffic] = []
    for index, node in enumerate(nodes):
        if node is None:
            result.append(Traffic((), ()))
            continue
        kernel = kernel_of[index]
        reads = []
        for moved in node.traffic.reads:
            writer = sees[index][moved.storage]
            key = (kernel, moved.storage, writer)
            inside = writer >= 0 and writer != index and kernel_of.get(writer) == kernel
            if not inside and key not in loaded:
                reads.append(moved)
            if node.kind in FUSIBLE:
                loaded.add(key)
        writes = []
        for moved in node.traffic.writes:
            used = readers.get((moved.storage, index), [])
            survives = storages[moved.storage].died is None or (roles[moved.storage] in _KEPT_ROLES)
            local = bool(used) and all(kernel_of.get(reader) == kernel for reader in used)
            if local and (not survives or (moved.storage, index) in overwritten):
                continue
            writes.append(Moved(moved.storage, moved.nbytes))
        result.append(Traffic(tuple(reads), tuple(writes)))
    return result
