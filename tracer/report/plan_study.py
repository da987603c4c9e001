"""All that one command computed of a plan: what its outputs are made from."""

from __future__ import annotations

from dataclasses import dataclass

from ..machine import Timing
from ..predict.detail import (
    BUBBLE,
    COMMUNICATION,
    COMPUTE,
    HOPS,
    HOST,
    OPTIMIZER,
    SLOWED,
    SUMMED,
    Detail,
)
from ..predict.money import Money
from ..predict.opcost import Key, OpCost, added
from ..predict.placements import Placed
from ..predict.serving import ServingStep
from ..predict.training import TrainingStep
from .plan_sides import PlanSide
from .text import pattern

LIMITS = {
    "compute": "compute units", "memory": "memory", "latency": "kernels to start",
    SUMMED: "gradients to be added up", SLOWED: "SMs that messages hold",
    COMMUNICATION: "messages", BUBBLE: "other stages (bubble)", OPTIMIZER: "the optimizer",
    HOPS: "sends between stages", HOST: "the host",
}  # fmt: skip
MEMORY = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimizer",
    "activations": "activations", "working": "working",
}  # fmt: skip


@dataclass(frozen=True)
class PlanStudy:
    """A priced step with its parts.

    Attributes:
        step, detail, money: see there.
        source, dtype: of the model.
        timing: what its seconds assume of the chip.
        advice: what would make a plan fit that does not.
        compared: another plan, if one was named.
        routing: how tokens choose experts, in words.
        placements: of experts, what each makes of the routing.
    """

    step: TrainingStep | ServingStep
    detail: Detail
    money: Money
    source: str
    dtype: str
    timing: Timing
    command: str
    versions: dict[str, str]
    advice: str = ""
    compared: PlanSide | None = None
    routing: str = ""
    placements: tuple[Placed, ...] = ()

    @property
    def phase(self) -> str:
        """training, prefill or decode."""
        return "training" if isinstance(self.step, TrainingStep) else self.step.phase

    @property
    def if_it_fit(self) -> str:
        """What every caption of seconds ends with."""
        return "" if self.step.feasible else " **Hypothetical: as if GPUs had the memory.**"

    @property
    def kernels(self) -> dict[Key, OpCost]:
        """Of a step, layers of one pattern together, longest first."""
        return by_pattern(self.detail.kernels)

    @property
    def limits(self) -> dict[str, float]:
        """Seconds by what the step waits for, longest first; they add up to the step."""
        detail, waits = self.detail, self.detail.shares.waits
        found = {
            LIMITS["compute"]: waits.get("compute", 0.0),
            LIMITS["memory"]: waits.get("memory", 0.0),
            LIMITS["latency"]: waits.get("latency", 0.0),
        }
        for name, seconds in (*detail.compute.items(), *detail.parts.items()):
            if name in LIMITS and name != COMPUTE:
                found[LIMITS[name]] = found.get(LIMITS[name], 0.0) + seconds
        return dict(
            sorted(((n, s) for n, s in found.items() if s > 1e-12), key=lambda item: -item[1])
        )

    def held(self) -> dict[str, float]:
        """Bytes of the fullest GPU by part; a server's activations are its caches."""
        return held_by(self.step, self.step.memory)


def held_by(step: TrainingStep | ServingStep, memory: object) -> dict[str, float]:
    """Bytes by part of a `GpuMemory` of `step`."""
    names = dict(MEMORY)
    if not isinstance(step, TrainingStep):
        names["activations"] = "kv"
    return {name: getattr(memory, field) for field, name in names.items()}


def by_pattern(kernels: dict[Key, OpCost]) -> dict[Key, OpCost]:
    """Layers of one pattern together, longest first."""
    merged = added(
        ({(key[0], pattern(key[1]), key[2].removeprefix("aten.")): cost}, 1)
        for key, cost in kernels.items()
    )
    return dict(sorted(merged.items(), key=lambda item: -item[1].seconds))
