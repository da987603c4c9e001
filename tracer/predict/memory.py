"""Bytes that a step holds on one chip, from the storages of its trace."""

from __future__ import annotations

from dataclasses import dataclass

from ..algebra import most
from ..cost import Ledger
from ..cost.timeline import timeline

_STATIC = ("weights", "kv", "gradients", "optimizer")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what they are for. `activations` is the peak of everything that comes and goes.

    Weights, caches, gradients and optimizer state are taken as held throughout, as a training loop
    and a server hold them.
    """

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
    """The memory of the step behind `ledger`; what its fusion keeps in registers takes none."""
    live = timeline(ledger.trace, ledger.materialised).by_role
    held = {role: most((0, *live[role])) for role in _STATIC}
    moving = zip(live["activations"], live["temporary"], strict=True)
    return Memory(**held, activations=most((0, *(a + t for a, t in moving))))
