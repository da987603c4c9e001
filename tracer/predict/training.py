"""A training step of a plan: from the seconds of a rank's own program to hours and dollars.

    step = pipeline (stages through the schedule's simulator)
         + what is left exposed of the gradients' reduction and the parameters' gathering
         + the optimizer's step on what a rank owns + weights rounded to FP8 once

A stage's forward and backward are the kernels of its traced program in order; messages inside of it
are exposed, but for those that a named input hides (`Overlap`). Slots in which a forward runs with
a backward (DualPipe's F&B) are two in-order streams, computed exactly (`parallel.overlap`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tracer.hardware import Cluster

from ..errors import UserError
from ..parallel.network import network_of
from ..parallel.plan import Plan
from ..parallel.schedules import (
    Durations,
    PipelineStep,
    Schedule,
    Timeline,
    build,
    shortest,
    simulate,
)
from .assumptions import Assumptions, Overlap, trained
from .data_ranks import DataRanks
from .expert_load import rank_load
from .gpu_memory import GpuMemory, fullest
from .links import EVEN_LOAD, RankLoad
from .money import Money
from .pipeline import V_SHAPED, Timed, free_stages
from .program import Stages, stages_of
from .time_shares import Breakdown, Shares

if TYPE_CHECKING:
    from ..capture.program import Program


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step of a plan on a cluster.

    `breakdown` and `slots` are left out of searches. `slots`: seconds by kind of pipeline slot (F,
    I, W, F&B), mean over ranks, a whole backward split into I and W; "data", messages over data
    ranks behind the pipeline, and "optimizer". `flops` are the model's as published, `flops_mtp`
    what its MTP module adds; `_full`, with all pairs of attention. `reason` says why the plan does
    not run; then nothing but memory is to be quoted.
    """

    model: str
    plan: Plan
    cluster: Cluster
    seq: int
    seconds: float
    breakdown: Breakdown | None
    slots: dict[str, float]
    pipeline: PipelineStep
    memory: GpuMemory
    flops: float
    flops_full: float
    peak: float
    precision: str
    load: RankLoad
    money: Money
    notes: tuple[str, ...] = ()
    reason: str = ""
    stages: tuple[dict[str, float], ...] = ()
    durations: Durations | None = None
    flops_mtp: float = 0.0
    flops_mtp_full: float = 0.0

    @property
    def imbalance(self) -> float | None:
        """Seconds that even experts would save."""
        return self.breakdown.imbalance if self.breakdown else None

    @property
    def feasible(self) -> bool:
        """Whether it runs at all."""
        return not self.reason

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.plan.global_batch * self.seq

    @property
    def tokens_per_s(self) -> float:
        """Of all GPUs."""
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Published FLOPs, causal attention counted by its pairs, over time and `peak`.

        Without those of an MTP module, with which the training step of DeepSeek-V3 was published.
        """
        return self.flops / (self.seconds * self.plan.world * self.peak)

    @property
    def mfu_full(self) -> float:
        """The same with S^2 pairs counted, as Megatron does."""
        return self.flops_full / (self.seconds * self.plan.world * self.peak)

    @property
    def mfu_with_mtp(self) -> float:
        """As `mfu`, with the FLOPs of the MTP module."""
        return self.mfu * (1 + self.flops_mtp / self.flops)

    @property
    def gpu_hours_per_trillion(self) -> float:
        """GPU hours for 1e12 tokens."""
        return 1e12 / self.tokens_per_s * self.plan.world / 3600

    def as_dict(self) -> dict[str, Any]:
        """The record, JSON-ready; throughput is None where the plan does not run."""
        runs = self.feasible
        return {
            "kind": "training", "model": self.model, "cluster": self.cluster.id,
            "plan": str(self.plan), "gpus": self.plan.world, "seq": self.seq,
            "global_batch": self.plan.global_batch, "feasible": runs, "reason": self.reason,
            "step_s": self.seconds if runs else None,
            "breakdown_s": asdict(self.breakdown) if runs and self.breakdown else None,
            "slots_s": dict(self.slots) if runs else None,
            "bubble_share": self.pipeline.bubble_share if runs else None,
            "tokens_per_s": self.tokens_per_s if runs else None,
            "tokens_per_s_per_gpu": self.tokens_per_s / self.plan.world if runs else None,
            "flops": self.flops, "peak": self.peak, "peak_precision": self.precision,
            "mfu_causal": self.mfu if runs else None, "mfu_full": self.mfu_full if runs else None,
            "mtp": self.plan.mtp, "flops_mtp": self.flops_mtp,
            "mfu_causal_with_mtp": self.mfu_with_mtp if runs and self.plan.mtp else None,
            "gpu_hours_per_trillion_tokens": self.gpu_hours_per_trillion if runs else None,
            "dollars": self.money.dollars(self.tokens_per_s, self.plan.world) if runs else None,
            "tokens_budget": self.money.tokens, "price_per_gpu_hour": self.money.price,
            "expert_skew": self.load.rows, "experts_read": self.load.read,
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "stages": [dict(stage) for stage in self.stages], "notes": list(self.notes),
        }  # fmt: skip


def check(
    plan: Plan, cluster: Cluster, stages: Stages, *, whole: bool = True
) -> tuple[Plan, Schedule]:
    """The plan with the chunks that its schedule has, and the schedule, or its `shortest`.

    Raises:
        UserError: all that keeps it from running, in one line.
    """
    if plan.schedule in V_SHAPED and plan.chunks == 1:
        plan = replace(plan, chunks=2)
    if plan.schedule.startswith("interleaved") and plan.chunks == 1 and plan.pp > 1:
        plan = replace(plan, chunks=2)
    reasons = stages.illegal(plan)
    if plan.schedule in V_SHAPED and plan.chunks != 2:
        reasons.append(f"{plan.schedule} has 2 chunks a rank, not {plan.chunks}")
    if plan.world > cluster.largest:
        reasons.append(
            f"{plan.world:,} GPUs; {cluster.name} ({cluster.id}) goes up to {cluster.largest:,}"
        )
    if plan.pp > 1 and plan.micro_batches < plan.pp:
        reasons.append(
            f"{plan.micro_batches} micro-batches do not fill PP={plan.pp} stages: give at least "
            f"{plan.pp}"
        )
    if reasons:
        raise UserError(f"plan {plan}: {'; '.join(reasons)}")
    build_it = build if whole else shortest
    return plan, build_it(plan.schedule, plan.pp, plan.micro_batches, free_stages(plan))


def training_memory(
    program: Program, plan: Plan, cluster: Cluster | str, *, seq: int = 4096,
    assume: Assumptions | None = None,
) -> GpuMemory:  # fmt: skip
    """Bytes of the fullest GPU of a plan; no seconds. Arguments and errors: `predict_training`."""
    assume = trained(assume or Assumptions(), program, plan)
    network = network_of(cluster)
    stages = stages_of(
        program, plan, network, assume.kernels, phase="training", seq=seq,
        exchange=assume.exchange, kept=assume.kept,
    )  # fmt: skip
    plan, schedule = check(plan, network.cluster, stages, whole=False)
    data = DataRanks(plan, network, schedule.copies, assume)
    return fullest(schedule, stages.blocks(), data, assume, stages.buffers())


def predict_training(
    program: Program, plan: Plan, cluster: Cluster | str, *, seq: int = 4096,
    assume: Assumptions | None = None, money: Money | None = None, detail: bool = True,
) -> TrainingStep:  # fmt: skip
    """Price one step of `plan`.

    Args:
        program: the model.
        plan: how it is cut; `micro_batches` are those of one pipeline in a step, of both
            directions together under DualPipe.
        cluster: where.
        seq: tokens of a sequence.
        assume: what the price rests on.
        money: price of a GPU hour and tokens of a whole run.
        detail: also the breakdown and seconds by kind of slot, from the whole schedule.

    Raises:
        UserError: a plan that cannot run, with all reasons in one line. A plan that runs but does
            not fit is no error: see `TrainingStep.reason`.
    """
    assume = trained(assume or Assumptions(), program, plan)
    network = network_of(cluster)
    cluster = network.cluster

    def stages_with(load: RankLoad) -> Stages:
        return stages_of(
            program, plan, network, assume.kernels, phase="training", seq=seq,
            exchange=assume.exchange, load=load, kept=assume.kept,
        )  # fmt: skip

    plan, schedule = check(plan, cluster, stages_with(EVEN_LOAD), whole=detail)
    load = rank_load(program, plan, network, seq, assume.experts)
    stages = stages_with(load)
    blocks = stages.blocks()
    timed = Timed(plan, network, schedule, blocks, assume)
    even = timed
    if detail and load != EVEN_LOAD:
        even = Timed(plan, network, schedule, stages_with(EVEN_LOAD).blocks(), assume)
    memory = fullest(schedule, blocks, timed.data, assume, stages.buffers())
    pipeline = timed.pipeline
    ends = timed.data.ends(schedule, blocks)
    shares = Shares(timed) if detail else None
    seconds = pipeline.seconds + sum(ends)
    flops, full = stages.flops()
    money = money or Money(cluster.chip_hour)
    return TrainingStep(
        program.name, plan, cluster, seq, seconds,
        shares.breakdown(ends, pipeline.seconds - even.pipeline.seconds) if shares else None,
        {**shares.slots(), "data": ends[0], "optimizer": ends[1] + ends[2]} if shares else {},
        pipeline, memory, flops, full,
        float(cluster.chip.peak_for("bf16")), "bf16", load, money,
        tuple(dict.fromkeys([
            *assume.kernels.notes(cluster.chip), *assume.overlap.notes(plan.schedule),
            *network.notes(), *stages.notes(), *assume.experts.notes(load),
        ])),
        memory.shortage,
        shares.stage_rows() if shares else (), timed.durations, *stages.mtp_flops(),
    )  # fmt: skip


def timeline_of(step: TrainingStep) -> Timeline:
    """When every slot of the step's pipeline runs."""
    assert step.durations is not None
    plan = step.plan
    schedule = build(plan.schedule, plan.pp, plan.micro_batches, free_stages(plan))
    return simulate(schedule, step.durations)


__all__ = [
    "Assumptions", "Breakdown", "GpuMemory", "Overlap", "TrainingStep", "check", "predict_training",
    "timeline_of", "training_memory",
]  # fmt: skip
