"""What the price of a training plan rests on beside the model, the plan and the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tracer.hardware import Chip

from ..errors import UserError
from ..parallel.memory import Headroom
from ..parallel.plan import Plan
from .expert_load import ExpertChoice
from .program import is_reference
from .structure import Kernels

if TYPE_CHECKING:
    from ..capture.program import Program

BOTH = ("dualpipe", "dualpipev")  # schedules with slots in which F and B overlap


@dataclass(frozen=True)
class Overlap:
    """Which messages run beside which compute, each a named input.

    Attributes:
        pairs: F&B slots run forward and backward as two interleaved chains on two streams; what
            one sends, the other hides. False: one after the other.
        beside: axes whose messages hide behind the compute of their own pass as far as it reaches:
            ring attention ("cp"), the gathers of ZeRO 3 that are fetched ahead ("dp").
        data: "exposed", gradients are summed behind the last backward, or "last_backward", beside
            the last micro-batch's.
    """

    pairs: bool = True
    beside: tuple[str, ...] = ("dp", "edp", "stage")
    data: str = "exposed"

    def __post_init__(self) -> None:
        if self.data not in ("exposed", "last_backward"):
            raise UserError(f"data={self.data!r}: choose exposed or last_backward")

    def notes(self, schedule: str) -> list[str]:
        """A line each."""
        lines = []
        if schedule in BOTH:
            how = "two interleaved streams" if self.pairs else "one after the other"
            lines.append(f"F&B slots of {schedule}: {how}")
        if self.beside:
            lines.append(
                f"hidden behind their own pass as far as it reaches: {', '.join(self.beside)}"
            )
        lines.append(f"gradients and parameters over data ranks: {self.data.replace('_', ' ')}")
        return lines


@dataclass(frozen=True)
class Assumptions:
    """Everything that a plan's price rests on beside the model, the plan and the cluster.

    Attributes:
        kernels, overlap, headroom: see there.
        exchange: of tokens and experts: "normal" (DeepEP's kernels for training and prefill) or
            "nccl" (one all-to-all of all rows).
        experts: how tokens choose them, and where they stand.
        gradients: type in which gradients are kept and summed: "parameter" or "fp32".
        capacity: bytes of a GPU; None takes what the chip gives its programs
            (`Chip.memory_given`: 84.9e9 on an "80 GB" H100).
        kept: activations for the backward: "trace", as the traced program has them, or "fp8", as
            DeepSeek-V3 was trained (see `kept`).
        engine: "fused", a reference model's kernels around an exchange are those of DeepEP's users
            (`Kernels.exchanged`), or "traced".
    """

    kernels: Kernels = field(default_factory=Kernels)
    overlap: Overlap = field(default_factory=Overlap)
    headroom: Headroom = field(default_factory=Headroom)
    exchange: str = "normal"
    experts: ExpertChoice = field(default_factory=ExpertChoice)
    gradients: str = "parameter"
    kept: str = "trace"
    capacity: float | None = None
    engine: str = "fused"

    @property
    def gradient_bytes(self) -> float:
        """Of an element, as gradients are kept and summed."""
        return 4.0 if self.gradients == "fp32" else 2.0

    def capacity_of(self, chip: Chip) -> float:
        """Bytes of a GPU."""
        return self.capacity or float(chip.memory_given)

    def __post_init__(self) -> None:
        if self.gradients not in ("parameter", "fp32"):
            raise UserError(f"gradients={self.gradients!r}: choose parameter or fp32")
        if self.kept not in ("trace", "fp8"):
            raise UserError(f"kept={self.kept!r}: choose trace or fp8")
        if self.exchange not in ("normal", "nccl"):
            raise UserError(f"exchange={self.exchange!r}: choose normal or nccl")
        if self.engine not in ("fused", "traced"):
            raise UserError(f"engine={self.engine!r}: choose fused or traced")


def trained(assume: Assumptions, program: Program, plan: Plan) -> Assumptions:
    """With the kernels that its engine runs. Transformers sends rows: there all of them stay."""
    fused = assume.engine == "fused" and assume.exchange == "normal"
    if not fused or plan.ep == 1 or not is_reference(program):
        return assume
    return replace(assume, kernels=replace(assume.kernels, exchanged=True))
