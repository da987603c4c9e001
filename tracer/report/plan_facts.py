"""What the rules of `plan_rules` look at: a plain record of one priced plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..capture.records import RECOMPUTE
from ..predict.assumptions import BOTH
from ..predict.detail import BUBBLE, COMPUTE, KERNELS
from ..predict.messages import Sent
from ..predict.serving import ServingStep
from ..predict.training import TrainingStep
from .plan_study import LIMITS, PlanStudy


@dataclass(frozen=True)
class AxisFacts:
    """Messages of one group: its ranks, the nodes they lie in, seconds in all and exposed."""

    ranks: int
    nodes: int
    seconds: float
    exposed: float


@dataclass(frozen=True)
class PlanFacts:
    """One plan. Seconds are a GPU's of a step; `limits`, by what it waits for, add up to it.

    `bubble` and `compute` are parts of it, `peak_seconds` what its products take at the peaks.

    `reason` and `advice` say why it does not fit and what would; `again` are seconds of kernels
    that compute activations again; `pace` is the slowest stage over the mean; `hides` whether the
    schedule runs one micro-batch beside another's messages; `faster` the next smaller precision and
    its rate over this one's; `largest` and `floor` of serving: the largest batch of a data rank
    and the least seconds that the expert exchange allows.
    """

    phase: str
    seconds: float
    limits: Mapping[str, float]
    compute: float
    bubble: float
    peak_seconds: float
    axes: Mapping[str, AxisFacts]
    held: Mapping[str, float]
    capacity: float
    reserve: float
    chip: str
    pp: int = 1
    micro_batches: int = 1
    schedule: str = "1f1b"
    recompute: str = "none"
    again: float = 0.0
    pace: float = 1.0
    hides: bool = False
    skew: float = 1.0
    imbalance: float = 0.0
    faster: tuple[str, float] | None = None
    mfu: float | None = None
    peak: float = 0.0
    precision: str = "bf16"
    batch: int = 0
    largest: int | None = None
    floor: float | None = None
    estimated: float = 0.0
    unmodelled: float = 0.0
    reason: str = ""
    advice: str = ""
    data: tuple[str, ...] = field(default=("dp", "edp", "stage"))

    @property
    def fits(self) -> bool:
        """In memory."""
        return not self.reason

    @property
    def total(self) -> float:
        """Bytes of the fullest GPU."""
        return sum(self.held.values())

    @property
    def free(self) -> float:
        """Bytes left beside the reserve; below 0 where it does not fit."""
        return self.capacity - self.reserve - self.total

    def waits(self, name: str) -> float:
        """Seconds that it waits for "compute", "memory" or "latency"."""
        return self.limits.get(LIMITS[name], 0.0)


def plan_facts(study: PlanStudy) -> PlanFacts:
    """The facts of `study`."""
    step, detail, plan = study.step, study.detail, study.step.plan
    totals = [stage.total for stage in detail.stages]
    mean = sum(totals) / len(totals)
    whole = detail.compute[KERNELS] or 1.0
    facts = PlanFacts(
        study.phase, step.seconds, study.limits, detail.parts[COMPUTE],
        detail.parts.get(BUBBLE, 0.0), detail.shares.peak, _axes(detail.sent),
        {name: held for name, held in study.held().items() if held}, step.memory.capacity,
        step.memory.reserve, step.cluster.chip.name, plan.pp, plan.micro_batches, plan.schedule,
        plan.recompute,
        sum(cost.seconds for key, cost in detail.kernels.items() if key[0] == RECOMPUTE),
        totals[detail.pace] / mean if mean else 1.0, skew=step.load.rows,
        imbalance=step.imbalance or 0.0,
        estimated=detail.shares.sure.get("estimated", 0.0) / whole,
        unmodelled=detail.shares.sure.get("unmodelled", 0.0) / whole, reason=step.reason,
        advice=study.advice, faster=_faster(study),
    )  # fmt: skip
    more: dict[str, object] = {}
    if isinstance(step, TrainingStep):
        more = {"mfu": step.mfu if step.feasible else None, "peak": step.peak,
                "precision": step.precision, "hides": plan.schedule in BOTH}  # fmt: skip
    elif isinstance(step, ServingStep):
        more = {"batch": step.batch, "largest": step.largest_batch, "floor": step.ep_limit,
                "hides": plan.micro_batches == 2}  # fmt: skip
    return PlanFacts(**{**vars(facts), **more})


def _axes(sent: tuple[Sent, ...]) -> dict[str, AxisFacts]:
    found: dict[str, AxisFacts] = {}
    for s in sent:
        known = found.get(s.axis, AxisFacts(0, 0, 0.0, 0.0))
        found[s.axis] = AxisFacts(
            max(known.ranks, s.group.ranks), max(known.nodes, s.group.domains),
            known.seconds + s.seconds, known.exposed + s.exposed,
        )  # fmt: skip
    return found


def _faster(study: PlanStudy) -> tuple[str, float] | None:
    """FP8, where the model runs in BF16 on a chip that has the units."""
    peak = study.step.cluster.chip.peak
    if study.dtype != "bf16" or "fp8" not in peak or "bf16" not in peak:
        return None
    ratio = float(peak["fp8"] / peak["bf16"])
    return ("fp8", ratio) if ratio > 1 else None
