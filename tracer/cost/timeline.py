"""Live memory over a trace, by role, op by op: a replay of when storages were made and died."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..algebra import most, sample
from ..capture.records import BACKWARD, FORWARD, RECOMPUTE, Trace
from .roles import storage_roles
from .work import ROLES


@dataclass(frozen=True)
class Timeline:
    """Bytes alive after every op; `by_role[role][i]` after op i, index 0 before the first.

    Weights, caches and whatever else existed before the trace count from the start. Sizes are the
    storages' own; an allocator adds rounding and fragments.
    """

    by_role: Mapping[str, list[int]]

    @property
    def total(self) -> list[int]:
        """The sum over roles."""
        return [sum(column) for column in zip(*self.by_role.values(), strict=True)]

    @property
    def peak(self) -> int:
        """The largest total, bytes."""
        peak: int = most((0, *self.total))
        return peak

    @property
    def at_peak(self) -> dict[str, int]:
        """Bytes by role where the total is largest."""
        total = self.total
        where = max(range(len(total)), key=lambda i: sample(total[i]))
        return {role: values[where] for role, values in self.by_role.items()}


def timeline(trace: Trace, materialised: Collection[int] | None = None) -> Timeline:
    """The memory timeline of `trace`.

    Args:
        trace: any trace; folded layers hold what their backward needs once a layer.
        materialised: storages that reach memory, if fusion keeps others in registers; all if None.
    """
    roles = storage_roles(trace)
    end = len(trace.ops)
    forward_end = 1 + max((i for i, op in enumerate(trace.ops) if op.phase == FORWARD), default=-1)
    trained = any(op.phase in (BACKWARD, RECOMPUTE) for op in trace.ops)
    change = {role: [0] * (end + 2) for role in ROLES}
    for sid, storage in enumerate(trace.storages):
        made_here = 0 <= storage.born < end
        if made_here and materialised is not None and sid not in materialised:
            continue
        born = storage.born + 1 if made_here else 0
        died = end + 1 if storage.died is None else max(storage.died, storage.born) + 1
        nbytes = storage.nbytes
        if made_here and _held_by_every_layer(trace, sid, forward_end, trained):
            nbytes *= trace.ops[storage.born].times
        change[roles[sid]][born] += nbytes
        change[roles[sid]][min(died, end + 1)] -= nbytes
    by_role: dict[str, list[int]] = {}
    for role, deltas in change.items():
        live, values = 0, []
        for delta in deltas[: end + 1]:
            live += delta
            values.append(live)
        by_role[role] = values
    return Timeline(by_role)


def _held_by_every_layer(trace: Trace, sid: int, forward_end: int, trained: bool) -> bool:
    """Whether a folded layer's storage exists once for each of the layers it stands for.

    Caches do, and what the forward keeps for the backward does. Gradients do not: the parameters of
    all layers have their own. What a layer makes and drops exists once at a time.
    """
    storage = trace.storages[sid]
    if storage.role is not None:
        return storage.role == "kv"
    outlives = storage.died is None or storage.died >= forward_end
    return trained and storage.born < forward_end and outlives
