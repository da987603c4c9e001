"""A training step of a plan: from the seconds of a rank's own program to hours and dollars.

    step = pipeline (stages through the schedule's simulator)
         + what is left exposed of the gradients' reduction and the parameters' gathering
         + the optimizer's step on what a rank owns + weights rounded to FP8 once

A stage's forward and backward are the kernels of its traced program in order; messages inside of it
are exposed, but for those that a named input hides (`Overlap`). Slots in which a forward runs with
a backward (DualPipe's F&B) are two in-order streams, computed exactly (`parallel.overlap`).
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tracer.hardware import Cluster

from ..capture.records import BACKWARD, FORWARD
from ..errors import UserError
from ..machine.calibration import calibration_of
from ..parallel import overlap
from ..parallel.groups import Group, strided
from ..parallel.memory import Headroom
from ..parallel.network import Network, network_of
from ..parallel.plan import Plan
from ..parallel.schedules import (
    Durations,
    Held,
    PipelineStep,
    Schedule,
    Timeline,
    build,
    price,
    simulate,
)
from .imbalance import expert_skew
from .money import Money
from .passes import COMPUTE, Chain
from .program import Stages, stages_of
from .structure import Block, Kernels, groups_on

if TYPE_CHECKING:
    from ..capture.program import Program

BOTH = ("dualpipe", "dualpipev")  # schedules with slots in which F and B overlap
V_SHAPED = ("zbv", "dualpipev")  # two stages a rank
_MOMENTS = {"fp32": 4.0, "bf16": 2.0}
ADAMW_LAUNCHES = 14  # kernels of torch's foreach AdamW


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
            lines.append(f"hidden behind their own pass as far as it reaches: {', '.join(self.beside)}")
        lines.append(f"gradients and parameters over data ranks: {self.data.replace('_', ' ')}")
        return lines


@dataclass(frozen=True)
class Assumptions:
    """Everything that a plan's price rests on beside the model, the plan and the cluster.

    Attributes:
        kernels, overlap, headroom: see there.
        exchange: of tokens and experts: "normal" (DeepEP's kernels for training and prefill) or
            "nccl" (one all-to-all of all rows).
        imbalance: rows of the busiest expert-parallel rank over the mean; None takes what chance
            makes of even routing (`parallel.experts`).
        gradients: type in which gradients are kept and summed: "parameter" or "fp32".
        capacity: bytes of a GPU where it is not the datasheet's (an "80 GB" H100 reports 81,559 MiB).
        kept: activations for the backward: "trace", as the traced program has them, or "fp8", as
            DeepSeek-V3 was trained (see `kept`).
    """

    kernels: Kernels = field(default_factory=Kernels)
    overlap: Overlap = field(default_factory=Overlap)
    headroom: Headroom = field(default_factory=Headroom)
    exchange: str = "normal"
    imbalance: float | None = None
    gradients: str = "parameter"
    kept: str = "trace"
    capacity: float | None = None

    def __post_init__(self) -> None:
        if self.imbalance is not None and not 1 <= self.imbalance < float("inf"):
            raise UserError(f"imbalance={self.imbalance}: the busiest over the mean is at least 1")
        if self.gradients not in ("parameter", "fp32"):
            raise UserError(f"gradients={self.gradients!r}: choose parameter or fp32")
        if self.kept not in ("trace", "fp8"):
            raise UserError(f"kept={self.kept!r}: choose trace or fp8")
        if self.exchange not in ("normal", "nccl"):
            raise UserError(f"exchange={self.exchange!r}: choose normal or nccl")


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a step, mean over the ranks of the pipeline. The first four add up to the step.

    Attributes:
        compute: kernels, with what they take longer while communication holds SMs.
        communication: messages that nothing hides, those of the end of a step included.
        bubble: waiting for other stages.
        optimizer: its kernels, and weights rounded to FP8.
        imbalance: the part of the step that even experts would save.
    """

    compute: float
    communication: float
    bubble: float
    optimizer: float
    imbalance: float


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of the fullest GPU at its worst moment."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    buffers: float
    reserve: float
    capacity: float

    @property
    def total(self) -> float:
        """All but the reserve."""
        return (self.weights + self.gradients + self.optimizer + self.activations + self.working
                + self.buffers)  # fmt: skip

    @property
    def fits(self) -> bool:
        """Whether the reserve stays free."""
        return self.total + self.reserve <= self.capacity

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations", "working")
        return ", ".join(f"{name} {getattr(self, name) / 1e9:.1f}" for name in parts) + " GB"


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step of a plan on a cluster.

    `slots`: seconds by kind of pipeline slot (F, B, I, W, F&B), mean over ranks; B is the whole
    backward of a slot, I and W its parts. `reason` says why the plan does not run; then nothing
    but memory is to be quoted.
    """

    model: str
    plan: Plan
    cluster: Cluster
    seq: int
    seconds: float
    breakdown: Breakdown
    slots: dict[str, float]
    pipeline: PipelineStep
    memory: GpuMemory
    flops: float
    flops_full: float
    peak: float
    precision: str
    skew: float
    money: Money
    notes: tuple[str, ...] = ()
    reason: str = ""
    stages: tuple[dict[str, float], ...] = ()
    durations: Durations | None = None

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
        """Published FLOPs, causal attention counted by its pairs, over time and `peak`."""
        return self.flops / (self.seconds * self.plan.world * self.peak)

    @property
    def mfu_full(self) -> float:
        """The same with S^2 pairs counted, as Megatron does."""
        return self.flops_full / (self.seconds * self.plan.world * self.peak)

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
            "breakdown_s": vars(self.breakdown) if runs else None,
            "slots_s": dict(self.slots) if runs else None,
            "bubble_share": self.pipeline.bubble_share if runs else None,
            "tokens_per_s": self.tokens_per_s if runs else None,
            "tokens_per_s_per_gpu": self.tokens_per_s / self.plan.world if runs else None,
            "flops": self.flops, "peak": self.peak, "peak_precision": self.precision,
            "mfu_causal": self.mfu if runs else None, "mfu_full": self.mfu_full if runs else None,
            "gpu_hours_per_trillion_tokens": self.gpu_hours_per_trillion if runs else None,
            "dollars": self.money.dollars(self.tokens_per_s, self.plan.world) if runs else None,
            "tokens_budget": self.money.tokens, "price_per_gpu_hour": self.money.price,
            "expert_skew": self.skew,
            "memory": {**vars(self.memory), "total": self.memory.total},
            "stages": [dict(stage) for stage in self.stages], "notes": list(self.notes),
        }  # fmt: skip


def check(plan: Plan, cluster: Cluster, stages: Stages) -> tuple[Plan, Schedule]:
    """The plan with the chunks that its schedule has, and the schedule.

    Raises:
        UserError: all that keeps it from running, in one line.
    """
    if plan.schedule in V_SHAPED and plan.chunks == 1:
        plan = replace(plan, chunks=2)
    if plan.schedule.startswith("interleaved") and plan.chunks == 1 and plan.pp > 1:
        plan = replace(plan, chunks=2)
    reasons = stages.illegal(plan)
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
    free = plan.chunks if plan.schedule not in V_SHAPED and plan.chunks > 1 else None
    return plan, build(plan.schedule, plan.pp, plan.micro_batches, free)


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
        detail: also the seconds by kind of slot, which walk through the whole schedule.

    Raises:
        UserError: a plan that cannot run, with all reasons in one line. A plan that runs but does
            not fit is no error: see `TrainingStep.reason`.
    """
    assume = assume or Assumptions()
    network = network_of(cluster)
    cluster = network.cluster

    def stages_with(skew: float) -> Stages:
        return stages_of(
            program, plan, network, assume.kernels, phase="training", seq=seq,
            exchange=assume.exchange, skew=skew, kept=assume.kept,
        )  # fmt: skip

    plan, schedule = check(plan, cluster, stages_with(1.0))
    skew = assume.imbalance or expert_skew(program, plan, cluster, seq)
    stages = stages_with(skew)
    blocks = stages.blocks()
    timed = _Timed(plan, network, schedule, blocks, assume)
    even = timed
    if detail and skew > 1:
        even = _Timed(plan, network, schedule, stages_with(1.0).blocks(), assume)
    memory = timed.memory()
    pipeline = timed.pipeline
    ends = timed.ends()
    seconds = pipeline.seconds + sum(ends)
    flops, full, precision = stages.flops(blocks)
    money = money or Money(cluster.chip_hour)
    return TrainingStep(
        program.name, plan, cluster, seq, seconds, timed.breakdown(ends, pipeline.seconds - even.pipeline.seconds),
        timed.slots() if detail else {}, pipeline, memory, flops, full,
        float(cluster.chip.peak_for("bf16")), "bf16", skew, money,
        tuple(dict.fromkeys([
            *assume.kernels.notes(), *assume.overlap.notes(plan.schedule), *network.notes(),
            *stages.notes(), f"expert imbalance: busiest rank {skew:.3f} of the mean",
        ])),
        "" if memory.fits else (
            f"does not fit: {memory.total / 1e9:,.1f} GB ({memory}) and a reserve of "
            f"{memory.reserve / 1e9:.1f} GB in {memory.capacity / 1e9:g} GB"
        ),
        timed.stage_rows(), timed.durations,
    )  # fmt: skip


def timeline_of(step: TrainingStep) -> Timeline:
    """When every slot of the step's pipeline runs."""
    assert step.durations is not None
    plan = step.plan
    free = plan.chunks if plan.schedule not in V_SHAPED and plan.chunks > 1 else None
    schedule = build(plan.schedule, plan.pp, plan.micro_batches, free)
    return simulate(schedule, step.durations)


class _Timed:
    """A plan's stages through its schedule."""

    def __init__(
        self, plan: Plan, network: Network, schedule: Schedule, blocks: list[Block],
        assume: Assumptions,
    ) -> None:  # fmt: skip
        self.plan, self.network, self.schedule = plan, network, schedule
        self.blocks, self.assume = blocks, assume
        self.both = plan.schedule in BOTH and assume.overlap.pairs
        self.forward = [self._alone(b, FORWARD) for b in blocks]
        self.input = [self._alone(b, BACKWARD) for b in blocks]
        self.weight = [
            b.passes.seconds(BACKWARD, weight=True) + self._accumulation(b) for b in blocks
        ]
        hop = strided(2, plan.ranks_per_stage, network.cluster) if plan.pp > 1 else None
        sent = [float(network.send(b.passes.hop, hop).seconds) if hop else 0.0 for b in blocks]
        back = [float(network.send(b.passes.hop_back, hop).seconds) if hop else 0.0 for b in blocks]
        self.pairs: dict[tuple[int, int], overlap.Overlap] = {}
        overlapped = None
        if self.both:
            for f, b in schedule.pairs:
                self.pairs[f, b] = _two_streams(
                    blocks[f].passes.forward, self._with_accumulation(blocks[b])
                )
            overlapped = {pair: run.total for pair, run in self.pairs.items()}
        self.durations = Durations(
            tuple(self.forward), tuple(self.input), tuple(self.weight), overlapped=overlapped,
            transfer=tuple(sent[:-1]), gradient_transfer=tuple(back[1:]),
        )  # fmt: skip
        saved = tuple(b.saved for b in blocks)
        self.pipeline = price(
            plan.schedule, plan.pp, plan.micro_batches, self.durations, Held(saved, saved),
            plan.chunks if plan.schedule not in V_SHAPED and plan.chunks > 1 else None,
        )  # fmt: skip

    def _alone(self, block: Block, direction: str) -> float:
        """Seconds of a pass with nothing else beside it; of the backward without weights'."""
        passes = block.passes
        compute = passes.seconds(direction, weight=False)
        return compute + self._exposed(block, direction)

    def _exposed(self, block: Block, direction: str) -> float:
        messages = block.passes.messages(direction)
        beside = sum(s for axis, s in messages.items() if axis in self.assume.overlap.beside)
        rest = sum(messages.values()) - beside
        return rest + max(beside - block.passes.seconds(direction), 0.0)

    def _accumulation(self, block: Block) -> float:
        """Adding a micro-batch's weight gradients to what is kept, beyond writing them once."""
        if self.plan.micro_batches == 1:
            return 0.0
        each = 8.0 if self.assume.gradients == "fp32" else 4.0
        return self._stream(each * sum(block.parameters.values()))

    def _with_accumulation(self, block: Block) -> Chain:
        more = self._accumulation(block)
        chain = list(block.passes.backward)
        places = [i for i, s in enumerate(chain) if s.weight]
        for i in places:
            s = chain[i]
            chain[i] = s._replace(
                seconds=s.seconds + more / len(places), slowed=s.slowed + more / len(places)
            )
        return tuple(chain)

    def _stream(self, nbytes: float, launches: int = 0) -> float:
        """Seconds to move so many bytes as contiguous elementwise kernels do."""
        chip = self.network.cluster.chip
        timing = self.assume.kernels.timing
        if timing.model == "roofline":
            bandwidth = chip.memory_bandwidth * timing.memory_efficiency
            return float(nbytes / bandwidth + launches * timing.launch)
        c = calibration_of(chip)["elementwise"]
        rate = chip.memory_bandwidth * timing.memory_efficiency * c.memory
        return float(nbytes / rate + launches * c.launch)

    # -- the end of a step ------------------------------------------------------------------------

    def ends(self) -> tuple[float, float, float]:
        """Seconds behind the pipeline: messages over data ranks, optimizer, weights to FP8.

        Of the rank that takes longest.
        """
        messages, optimizer, once = 0.0, 0.0, 0.0
        for stages in self.schedule.stages_of_rank:
            mine = [self.blocks[s] for s in stages]
            message = sum(self._reduction(b) for b in mine)
            if self.assume.overlap.data == "last_backward":
                message = max(message - max(b.passes.seconds(BACKWARD) for b in mine), 0.0)
            messages = max(messages, message)
            optimizer = max(optimizer, sum(self._optimizer(b) for b in mine))
            once = max(once, sum(b.passes.once for b in mine))
        return messages, optimizer, once

    def _wide(self, axis: str) -> Group:
        """The ranks that share a parameter: also those of the other copy of a stage (DualPipe)."""
        group = groups_on(self.plan, self.network).get(axis, Group(1, 1))
        copies = round(self.schedule.copies)
        if copies == 1:
            return group
        apart = max(group.domains * copies, group.span)
        return Group(group.ranks * copies, group.per_domain, group.domains * copies,
                     max(apart, self.plan.world // self.network.cluster.domain))  # fmt: skip

    def _reduction(self, block: Block) -> float:
        """Gradients summed and parameters gathered: what ZeRO leaves for the end of a step."""
        zero, total = self.plan.zero, 0.0
        item = 4.0 if self.assume.gradients == "fp32" else 2.0
        for axis, count in block.parameters.items():
            group = self._wide(axis)
            if group.ranks == 1 or not count:
                continue
            if zero == 0:
                total += float(self.network.all_reduce(item * count, group).seconds)
            elif zero == 1:
                total += float(self.network.reduce_scatter(item * count, group).seconds)
            if zero in (1, 2):
                total += float(self.network.all_gather(2.0 * count, group).seconds)
        return total

    def owned(self, block: Block) -> float:
        """Elements whose optimizer state a rank has."""
        if self.plan.zero == 0:
            return float(sum(block.parameters.values()))
        return sum(n / self._wide(axis).ranks for axis, n in block.parameters.items())

    def _optimizer(self, block: Block) -> float:
        """AdamW: reads gradient, master, two moments; writes master, moments, parameter."""
        owned = self.owned(block)
        item = 4.0 if self.assume.gradients == "fp32" else 2.0
        each = item + 2 * (block.master or 4.0) + 4 * _MOMENTS[self.plan.moments] + 2.0
        flat = 0.0
        if self.plan.zero <= 1 and any(
            self._wide(axis).ranks > 1 for axis in block.parameters
        ):  # copied into flat buckets
            flat = 2 * item * sum(block.parameters.values())
        return self._stream(each * owned + flat, ADAMW_LAUNCHES)

    # -- memory -----------------------------------------------------------------------------------

    def memory(self) -> GpuMemory:
        """Of the fullest rank."""
        found = []
        capacity = self.assume.capacity or float(self.network.cluster.chip.memory_capacity)
        item = 4.0 if self.assume.gradients == "fp32" else 2.0
        for rank, stages in enumerate(self.schedule.stages_of_rank):
            mine = [self.blocks[s] for s in stages]
            owned = sum(self.owned(b) for b in mine)
            kept = owned if self.plan.zero >= 2 else sum(
                sum(b.parameters.values()) for b in mine
            )  # fmt: skip
            state = owned * (max(b.master for b in mine) + 2 * _MOMENTS[self.plan.moments])
            found.append(GpuMemory(
                sum(b.weights for b in mine), item * kept, state,
                self.pipeline.bytes[rank] + sum(b.shared for b in mine),
                max(b.working for b in mine), self.assume.headroom.buffers,
                self.assume.headroom.reserve * capacity, capacity,
            ))  # fmt: skip
        return max(found, key=lambda m: m.total)

    # -- where the time goes ----------------------------------------------------------------------

    @functools.cached_property
    def counts(self) -> list[Counter[tuple[str, int, int]]]:
        """Slots of every rank by (kind, stage, stage of the backward)."""
        return [
            Counter((a.kind, a.stage, a.backward[0] if a.backward else -1) for a in mine)
            for mine in self.schedule.actions
        ]

    def _seconds(self, kind: str, stage: int, back: int) -> float:
        if kind == "F&B":
            return float(self.durations.overlap(stage, back))
        parts = {"F": self.forward, "I": self.input, "W": self.weight}
        if kind == "B":
            return self.input[stage] + self.weight[stage]
        return parts[kind][stage]

    def slots(self) -> dict[str, float]:
        """Seconds by kind, mean over ranks; weight gradients of a B count under W."""
        total: dict[str, float] = {}
        for mine in self.counts:
            for (kind, stage, back), n in mine.items():
                if kind == "B":
                    for part in ("I", "W"):
                        total[part] = total.get(part, 0.0) + n * self._seconds(part, stage, -1)
                else:
                    total[kind] = total.get(kind, 0.0) + n * self._seconds(kind, stage, back)
        return {kind: seconds / len(self.counts) for kind, seconds in total.items()}

    def breakdown(self, ends: tuple[float, float, float], imbalance: float) -> Breakdown:
        """Means over ranks; `imbalance` as in `Breakdown`."""
        ranks = self.schedule.ranks
        exposed = 0.0
        for mine in self.counts:
            for (kind, stage, back), n in mine.items():
                if kind == "F&B" and (stage, back) in self.pairs:
                    exposed += n * self.pairs[stage, back].exposed
                    continue
                if kind in ("F", "F&B"):
                    exposed += n * self._exposed(self.blocks[stage], FORWARD)
                if kind in ("B", "I", "F&B"):
                    at = back if kind == "F&B" else stage
                    exposed += n * self._exposed(self.blocks[at], BACKWARD)
        busy = sum(self.pipeline.busy) / ranks
        bubble = sum(self.pipeline.bubble) / ranks
        exposed /= ranks
        return Breakdown(
            busy - exposed, exposed + ends[0] + sum(self.pipeline.sending) / ranks, bubble,
            ends[1] + ends[2], imbalance,
        )  # fmt: skip

    def stage_rows(self) -> tuple[dict[str, float], ...]:
        """Seconds of one micro-batch by stage, messages and compute apart."""
        rows = []
        for b in self.blocks:
            p = b.passes
            rows.append({
                "forward": p.seconds(FORWARD), "input_gradient": p.seconds(BACKWARD, weight=False),
                "weight_gradient": p.seconds(BACKWARD, weight=True),
                "forward_messages": sum(p.messages(FORWARD).values()),
                "backward_messages": sum(p.messages(BACKWARD).values()),
                "optimizer": self._optimizer(b), "reduction": self._reduction(b),
            })  # fmt: skip
        return tuple(rows)


@functools.lru_cache(maxsize=4096)
def _two_streams(forward: Chain, backward: Chain) -> overlap.Overlap:
    """A forward and a backward of two micro-batches, interleaved on two streams."""
    chains = []
    for name, chain in (("f", forward), ("b", backward)):
        chains.append([
            overlap.StreamOp(
                f"{name}{i}", overlap.COMPUTE if s.axis == COMPUTE else overlap.COMM, s.seconds,
                (), s.slowed if s.axis == COMPUTE else 0.0, s.sms,
            )
            for i, s in enumerate(chain)
        ])  # fmt: skip
    return overlap.schedule(overlap.interleave(*chains))
