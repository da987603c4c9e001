"""Which rank holds which routed expert.

Shapes: E logical experts, R ranks (GPUs) of an expert-parallel group, N nodes, S physical slots of
a rank; E <= R·S, and what is beyond E are further copies of experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Placement:
    """held: INT64 [R, S], the logical expert in each slot. ranks_per_node: consecutive ranks."""

    name: str
    experts: int
    held: Ints
    ranks_per_node: int

    def __post_init__(self) -> None:
        missing = np.flatnonzero(self.copies == 0)
        if len(missing):
            raise UserError(f"{self.name}: no rank holds expert {missing[0]} of {self.experts}")
        if self.ranks_per_node < 1 or self.ranks % self.ranks_per_node:
            raise UserError(
                f"{self.name}: {self.ranks} ranks do not fill nodes of {self.ranks_per_node}"
            )

    @property
    def ranks(self) -> int:
        return int(self.held.shape[0])

    @property
    def nodes(self) -> int:
        return self.ranks // self.ranks_per_node

    @cached_property
    def copies(self) -> Ints:
        """INT64 [E] slots that hold each expert."""
        return np.bincount(self.held.ravel(), minlength=self.experts)

    @cached_property
    def share(self) -> Floats:
        """[E, R] part of an expert's tokens that a rank serves: its copies share them evenly."""
        return self._slots_by_rank / self.copies[:, None]

    @cached_property
    def node_share(self) -> Floats:
        """[E, N] the same by node."""
        slots = self._slots_by_rank.reshape(self.experts, self.nodes, -1).sum(axis=2)
        by_node: Floats = slots / self.copies[:, None]
        return by_node

    @property
    def _slots_by_rank(self) -> Ints:
        """INT64 [E, R] slots of each rank that hold each expert."""
        cell = self.held * self.ranks + np.arange(self.ranks)[:, None]
        count = np.bincount(cell.ravel(), minlength=self.experts * self.ranks)
        return count.reshape(self.experts, self.ranks)

    def load(self, load: ArrayLike) -> Floats:
        """[R] what each rank has of a load [E] of the logical experts."""
        on_ranks: Floats = np.asarray(load, float) @ self.share
        return on_ranks


def round_robin(experts: int, ranks: int, ranks_per_node: int) -> Placement:
    """Expert e on rank e mod R."""
    each = _each("round_robin", experts, ranks)
    held = np.arange(experts).reshape(each, ranks).T
    return Placement("round_robin", experts, held, ranks_per_node)


def contiguous(experts: int, ranks: int, ranks_per_node: int) -> Placement:
    """Expert e on rank e // (E/R): neighbours, and so groups of a gate, stay on one node."""
    each = _each("contiguous", experts, ranks)
    return Placement("contiguous", experts, np.arange(experts).reshape(ranks, each), ranks_per_node)


def balanced(
    load: ArrayLike, ranks: int, ranks_per_node: int, slots: int | None = None
) -> Placement:
    """Heaviest experts replicated, then all copies packed over all ranks (EPLB's global policy).

    load: [E] tokens of each expert. slots: physical slots in all, a multiple of R; E if not given.
    The published greedy packing can end up above round-robin (loads 3 2 3 2 0 2 on two ranks: 7,
    where every second one is 6); where it does, the result is round-robin's.
    """
    weight = _load("balanced", load)
    each = _slots("balanced", len(weight), ranks, slots)
    held = _pack_copies(weight, ranks, each)
    chosen = Placement("balanced", len(weight), held, ranks_per_node)
    if len(weight) % ranks:
        return chosen
    return _better("balanced", chosen, round_robin(len(weight), ranks, ranks_per_node), weight)


def hierarchical(
    load: ArrayLike, groups: int, ranks: int, ranks_per_node: int, slots: int | None = None
) -> Placement:
    """Groups packed to nodes, experts replicated and packed within them (EPLB's hierarchical one).

    load: [E]. groups: those of the gate, consecutive experts; each stays on one node, so a token
    reaches no more nodes than groups. slots: as in `balanced`. Never above `contiguous`, which
    keeps groups on nodes as well.
    """
    weight = _load("hierarchical", load)
    experts = len(weight)
    each = _slots("hierarchical", experts, ranks, slots)
    if ranks_per_node < 1 or ranks % ranks_per_node:
        raise UserError(f"hierarchical: {ranks} ranks do not fill nodes of {ranks_per_node}")
    nodes = ranks // ranks_per_node
    if groups < 1 or experts % groups or groups % nodes:
        raise UserError(
            f"hierarchical: {experts} experts in {groups} groups on {nodes} nodes; groups must "
            "divide the experts, and nodes the groups (else take balanced)"
        )
    by_group = weight.reshape(groups, -1)
    node_of_group = pack(by_group.sum(axis=1), nodes)
    held = np.empty((ranks, each), np.int64)
    ids = np.arange(experts).reshape(groups, -1)
    for node in range(nodes):
        mine = ids[node_of_group == node].ravel()
        local = _pack_copies(weight[mine], ranks_per_node, each)
        held[node * ranks_per_node : (node + 1) * ranks_per_node] = mine[local]
    chosen = Placement("hierarchical", experts, held, ranks_per_node)
    if experts % ranks:
        return chosen
    return _better("hierarchical", chosen, contiguous(experts, ranks, ranks_per_node), weight)


def pack(weight: Floats, packs: int) -> Ints:
    """[n] the pack of each item: n/packs items each, heaviest first to the lightest open pack."""
    room = np.full(packs, len(weight) // packs)
    total = np.zeros(packs)
    where = np.empty(len(weight), np.int64)
    for item in np.argsort(-weight, kind="stable"):
        lightest = int(np.argmin(np.where(room > 0, total, np.inf)))
        where[item] = lightest
        room[lightest] -= 1
        total[lightest] += weight[item]
    return where


def replicate(weight: Floats, slots: int) -> Ints:
    """INT64 [slots] the expert of each copy: all once, then again whose copies are heaviest."""
    copies = np.ones(len(weight), np.int64)
    again = np.empty(slots - len(weight), np.int64)
    for i in range(len(again)):
        again[i] = np.argmax(weight / copies)
        copies[again[i]] += 1
    return np.concatenate([np.arange(len(weight)), again])


def _pack_copies(weight: Floats, ranks: int, each: int) -> Ints:
    """INT64 [ranks, each] experts, as indices into `weight`."""
    copy = replicate(weight, ranks * each)
    where = pack((weight / np.bincount(copy))[copy], ranks)
    return copy[np.argsort(where, kind="stable")].reshape(ranks, each)


def _better(name: str, chosen: Placement, plain: Placement, weight: Floats) -> Placement:
    """`chosen`, or `plain` with every spare slot a second copy on the same rank if that is less."""
    if chosen.load(weight).max() <= plain.load(weight).max():
        return chosen
    spare = np.arange(chosen.held.shape[1]) % plain.held.shape[1]
    return Placement(name, plain.experts, plain.held[:, spare], plain.ranks_per_node)


def _each(name: str, experts: int, ranks: int) -> int:
    if ranks < 1 or experts < 1 or experts % ranks:
        raise UserError(
            f"{name}: {experts} experts do not divide over {ranks} ranks; take a divisor, or "
            "balanced with slots for copies"
        )
    return experts // ranks


def _slots(name: str, experts: int, ranks: int, slots: int | None) -> int:
    """Slots of a rank."""
    wanted = experts if slots is None else slots
    if ranks < 1 or wanted < experts or wanted % ranks:
        raise UserError(
            f"{name}: {wanted} slots for {experts} experts on {ranks} ranks; there must be a slot "
            "for every expert and the same number on every rank"
        )
    return wanted // ranks


def _load(name: str, load: ArrayLike) -> Floats:
    weight = np.asarray(load, float)
    if weight.ndim != 1 or not len(weight) or not np.isfinite(weight).all() or weight.min() < 0:
        raise UserError(f"{name}: the load is one finite number, not negative, for every expert")
    return weight
