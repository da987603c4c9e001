"""What a storage is for: weights, activations, kv, temporary, gradients or optimizer state.

Roles follow from what happens to the storage, never from names. Parameters and buffers are
weights; caches, gradients of parameters and optimizer state are marked by whoever made them. What
an op creates is an *activation* if it outlives the module call that made it (another call reads it,
or the backward does), and *temporary* if it is gone when the call returns.
"""

from __future__ import annotations

from ..capture.records import BACKWARD, FORWARD, RECOMPUTE, Trace


def storage_roles(trace: Trace) -> list[str]:
    """The role of every storage of the trace, by id."""
    first_call: dict[int, int] = {}
    crossing: set[int] = set()
    forward: set[int] = set()
    backward: set[int] = set()
    for op in trace.ops:
        touched = {ref.storage for ref in op.inputs()}
        touched.update(out.storage for out in op.outputs)
        for storage in touched:
            if first_call.setdefault(storage, op.call) != op.call:
                crossing.add(storage)
        if op.phase == FORWARD:
            forward |= touched
        elif op.phase in (BACKWARD, RECOMPUTE):
            backward |= touched
    roles = []
    for sid, record in enumerate(trace.storages):
        if record.role is not None:
            roles.append(record.role)
        elif record.born < 0 or sid in crossing or (sid in forward and sid in backward):
            roles.append("activations")
        else:
            roles.append("temporary")
    return roles


def made_of_weights(trace: Trace, until: int | None = None) -> set[int]:
    """Storages that the ops before `until` (all of them) made of weights alone, by id: casts of
    them, and whatever else is the same for every micro-batch.
    """
    same = {
        s for s, record in enumerate(trace.storages)
        if record.role in ("weights", "gradients", "optimizer") and record.born < 0
    }  # fmt: skip
    made: set[int] = set()
    for op in trace.ops[:until]:
        inputs = {ref.storage for ref in op.inputs()}
        outputs = {out.storage for out in op.outputs} - inputs
        if inputs and inputs - same <= made:
            made |= outputs
        else:
            made -= outputs
    return made
