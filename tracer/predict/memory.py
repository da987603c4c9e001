"""Bytes that a step holds on one chip, from the storages of its trace."""

from __future__ import annotations

from dataclasses import dataclass

from ..capture.records import FORWARD, Storage, Trace
from ..cost import Ledger

_STATIC = ("weights", "kv", "gradients", "optimizer")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what they are for. `activations` is the peak of everything that comes and goes."""

    weights: int
    kv: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """What must fit at the worst moment."""
        return self.weights + self.kv + self.gradients + self.optimizer + self.activations


def memory(ledger: Ledger) -> Memory:
    """Static storages by role, plus the peak of activations.

    The peak walks the ops in order, adding a storage when it is made and dropping it when its last
    reference died. Storages that the backward still needs are held by every folded layer at once,
    so they count once a layer; what a layer makes and drops itself counts once. Values that fusion
    keeps in registers take no memory.
    """
    trace = ledger.trace
    held = dict.fromkeys(_STATIC, 0)
    for storage in trace.storages:
        if storage.role in held:
            held[storage.role] += storage.nbytes * _layers(trace, storage)
    return Memory(**held, activations=activation_peak(ledger))


def activation_peak(ledger: Ledger) -> int:
    """The largest sum of live storages without a static role, in bytes."""
    trace = ledger.trace
    end = len(trace.ops)
    forward_end = 1 + max((i for i, op in enumerate(trace.ops) if op.phase == FORWARD), default=-1)
    change = [0] * (end + 2)
    for sid in ledger.materialised:
        storage = trace.storages[sid]
        if storage.role in _STATIC or storage.born < 0:
            continue
        died = end if storage.died is None else storage.died
        saved = storage.born < forward_end <= died
        nbytes = storage.nbytes * (_layers(trace, storage) if saved else 1)
        change[storage.born] += nbytes
        change[max(died, storage.born) + 1] -= nbytes
    peak = live = 0
    for delta in change:
        live += delta
        peak = max(peak, live)
    return peak


def _layers(trace: Trace, storage: Storage) -> int:
    """How many layers made a storage like this one; what existed before the trace counts once.

    Gradients count once too: each parameter of the model has its own.
    """
    if storage.role in ("weights", "gradients", "optimizer") or not (
        0 <= storage.born < len(trace.ops)
    ):
        return 1
    return trace.ops[storage.born].times
