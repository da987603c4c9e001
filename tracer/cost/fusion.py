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


@dataclass
class _Group:
    elements: int
    phase: str
    members: list[int] = field(default_factory=list)
    open: bool = True


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
    for index, node in enumerate(nodes):
        if node is None:
            continue
        sources = {m.storage for m in node.traffic.reads}
        targets = {m.storage for m in node.traffic.writes}
        group: _Group | None = None
        fusible = node.kind in FUSIBLE or node.kind == REDUCTION
        if fusible:
            group = _join(node, sources | targets, home, barred, groups)
        for storage in sources | targets:
            producer = home.get(storage)
            if producer is not None and producer is not group:
                producer.open = False
        if group is None:
            group = _Group(node.elements, node.phase, open=fusible)
            groups.append(group)
        group.members.append(index)
        group.elements = max(group.elements, node.elements)
        for storage in targets:
            home[storage] = group
            if node.kind == REDUCTION:
                barred.add(storage)
            else:
                barred.discard(storage)
    return groups


def _join(
    node: Node,
    touched: set[int],
    home: dict[int, _Group],
    barred: set[int],
    groups: list[_Group],
) -> _Group | None:
    """The open kernel that `node` can run in; several are merged into one."""
    found: list[_Group] = []
    for storage in sorted(touched):
        group = home.get(storage)
        if (
            group is not None
            and group.open
            and storage not in barred
            and group.phase == node.phase
            and _nested(group.elements, node.elements)
            and all(group is not other for other in found)
        ):
            found.append(group)
    if not found:
        return None
    # A kernel that a barred value links to this op has to end before it.
    blocked = {id(home[s]) for s in touched if s in barred and s in home}
    found = [group for group in found if id(group) not in blocked]
    if not found:
        return None
    first, *others = found
    for other in others:
        if not _nested(first.elements, other.elements):
            continue
        first.members = sorted(first.members + other.members)
        first.elements = max(first.elements, other.elements)
        groups[:] = [group for group in groups if group is not other]
        for storage, group in home.items():
            if group is other:
                home[storage] = first
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
