"""Bytes of the fullest GPU of a training plan, with what its schedule holds in flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..parallel.schedules import Held, Schedule, peak_bytes
from .assumptions import Assumptions
from .block import Block, each
from .data_ranks import MOMENTS, DataRanks


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of the fullest GPU at its worst moment.

    Attributes:
        weights, gradients, optimizer, activations, working: what the model takes.
        reserve: kept free, and never less than `buffers`.
        capacity: of the GPU.
        buffers: of the reserve, what the kernels that exchange experts' tokens hold.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    reserve: float
    capacity: float
    buffers: float = 0.0

    @property
    def total(self) -> float:
        """All but the reserve."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working

    @property
    def fits(self) -> bool:
        """Whether the reserve stays free."""
        return self.total + self.reserve <= self.capacity

    @property
    def shortage(self) -> str:
        """Why it does not fit; empty where it does."""
        if self.fits:
            return ""
        return (
            f"does not fit: {self.total / 1e9:,.1f} GB ({self}) and a reserve of "
            f"{self.reserve / 1e9:.1f} GB in {self.capacity / 1e9:.4g} GB"
        )

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations", "working")
        return ", ".join(f"{name} {getattr(self, name) / 1e9:.1f}" for name in parts) + " GB"


def in_flight(blocks: Sequence[Block]) -> Held:
    """Bytes that a micro-batch holds in every stage until its backward has run."""
    return Held(*[tuple(b.saved for b in blocks)] * 2)


def fullest(
    schedule: Schedule, blocks: Sequence[Block], data: DataRanks, assume: Assumptions,
    buffers: float,
) -> GpuMemory:  # fmt: skip
    """The memory of the rank that holds most; arguments as of `by_rank`."""
    return max(by_rank(schedule, blocks, data, assume, buffers), key=lambda m: m.total)


def by_rank(
    schedule: Schedule, blocks: Sequence[Block], data: DataRanks, assume: Assumptions,
    buffers: float,
) -> list[GpuMemory]:  # fmt: skip
    """The memory of every rank of the pipeline.

    Args:
        schedule: the plan's, or its `shortest`.
        blocks: one a stage.
        data: the ranks that share parameters.
        assume: headroom, capacity and the type of gradients.
        buffers: of the exchange of experts' tokens.
    """
    plan, found = data.plan, []
    activations = peak_bytes(schedule, in_flight(blocks))
    capacity = assume.capacity_of(data.network.cluster.chip)
    item = assume.gradient_bytes
    owns = each(blocks, data.owned)
    holds = each(blocks, lambda b: sum(b.parameters.values()))
    for rank, stages in enumerate(schedule.stages_of_rank):
        mine = [blocks[s] for s in stages]
        owned = sum(owns[s] for s in stages)
        kept = owned if plan.zero >= 2 else sum(holds[s] for s in stages)
        state = owned * (max(b.master for b in mine) + 2 * MOMENTS[plan.moments])
        held = activations[rank] + sum(b.shared for b in mine)
        # Activations are gone when the optimizer steps; what it needs may be more than they were.
        working = max(*(b.working for b in mine), max(b.update for b in mine) - held)
        found.append(GpuMemory(
            sum(b.weights for b in mine), item * kept, state, held, working,
            max(assume.headroom.reserve * capacity, buffers), capacity, buffers,
        ))  # fmt: skip
    return found
