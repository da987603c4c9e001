"""The stages of a training plan through its schedule: seconds, memory, and where both go."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

from ..capture.records import BACKWARD, FORWARD
from ..machine.calibration import calibration_of
from ..parallel import overlap
from ..parallel.groups import Group, strided
from ..parallel.network import Network
from ..parallel.plan import Plan
from ..parallel.schedules import Durations, Held, PipelineStep, Schedule, peak_bytes, price
from .assumptions import BOTH, Assumptions
from .passes import COMPUTE, Chain
from .structure import Block, groups_on

V_SHAPED = ("zbv", "dualpipev")  # two stages a rank
_MOMENTS = {"fp32": 4.0, "bf16": 2.0}
ADAMW_LAUNCHES = 14  # kernels of torch's foreach AdamW


def free_stages(plan: Plan) -> int | None:
    """Stages a rank, for a schedule that leaves them free."""
    return plan.chunks if plan.schedule not in V_SHAPED and plan.chunks > 1 else None


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


class Timed:
    """A plan's stages through its schedule; seconds are found when they are asked for.

    `slots` and `breakdown` want the whole schedule, all else is the same from its `shortest`.
    """

    def __init__(
        self, plan: Plan, network: Network, schedule: Schedule, blocks: list[Block],
        assume: Assumptions,
    ) -> None:  # fmt: skip
        self.plan, self.network, self.schedule = plan, network, schedule
        self.blocks, self.assume = blocks, assume
        self.both = plan.schedule in BOTH and assume.overlap.pairs
        self.held = Held(*[tuple(b.saved for b in blocks)] * 2)

    @functools.cached_property
    def forward(self) -> tuple[float, ...]:
        """Seconds by stage, as `input` and `weight`, the two halves of the backward."""
        return tuple(self._alone(b, FORWARD) for b in self.blocks)

    @functools.cached_property
    def input(self) -> tuple[float, ...]:
        return tuple(self._alone(b, BACKWARD) for b in self.blocks)

    @functools.cached_property
    def weight(self) -> tuple[float, ...]:
        return tuple(
            b.passes.seconds(BACKWARD, weight=True) + self._accumulation(b) for b in self.blocks
        )

    @functools.cached_property
    def pairs(self) -> dict[tuple[int, int], overlap.Overlap]:
        """F&B slots by (stage of the forward, stage of the backward), as two streams."""
        if not self.both:
            return {}
        return {
            (f, b): two_streams(
                self.blocks[f].passes.forward, self._with_accumulation(self.blocks[b])
            )
            for f, b in self.schedule.pairs
        }

    @functools.cached_property
    def durations(self) -> Durations:
        """Seconds of every slot and transfer."""
        plan, network, blocks = self.plan, self.network, self.blocks
        hop = strided(2, plan.ranks_per_stage, network.cluster) if plan.pp > 1 else None
        sent = [_message(network, "send", b.passes.hop, hop) if hop else 0.0 for b in blocks]
        back = [_message(network, "send", b.passes.hop_back, hop) if hop else 0.0 for b in blocks]
        overlapped = {pair: run.total for pair, run in self.pairs.items()}
        return Durations(
            self.forward, self.input, self.weight,
            overlapped=overlapped if self.both else None,
            transfer=tuple(sent[:-1]), gradient_transfer=tuple(back[1:]),
        )  # fmt: skip

    @functools.cached_property
    def pipeline(self) -> PipelineStep:
        """The step up to its last backward."""
        plan = self.plan
        return price(
            plan.schedule, plan.pp, plan.micro_batches, self.durations, self.held,
            free_stages(plan),
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
                total += _message(self.network, "all_reduce", item * count, group)
            elif zero == 1:
                total += _message(self.network, "reduce_scatter", item * count, group)
            if zero in (1, 2):
                total += _message(self.network, "all_gather", 2.0 * count, group)
        return total

    def owned(self, block: Block) -> float:
        """Elements whose optimizer state a rank has."""
        if self.plan.zero == 0:
            return float(sum(block.parameters.values()))
        return sum(n / self._wide(axis).ranks for axis, n in block.parameters.items())

    def _optimizer(self, block: Block) -> float:
        """AdamW: reads gradient, master, two moments; writes master, moments, parameter."""
        if self.plan.world == 1:
            return block.passes.optimizer
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
        activations = peak_bytes(self.schedule, self.held)
        capacity = self.assume.capacity or float(self.network.cluster.chip.memory_given)
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
                activations[rank] + sum(b.shared for b in mine),
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


@functools.lru_cache(maxsize=8192)
def _message(network: Network, op: str, nbytes: float, group: Group) -> float:
    """Seconds of a collective; stages and plans share most of them."""
    return float(network.time(op, nbytes, group).seconds)


@functools.lru_cache(maxsize=4096)
def two_streams(forward: Chain, backward: Chain, lead: int = 0) -> overlap.Overlap:
    """Passes of two micro-batches on two streams; `lead` as in `overlap.interleave`."""
    chains = []
    for name, chain in (("f", forward), ("b", backward)):
        chains.append([
            overlap.StreamOp(
                f"{name}{i}", overlap.COMPUTE if s.axis == COMPUTE else overlap.COMM, s.seconds,
                (), s.slowed if s.axis == COMPUTE else 0.0, s.sms,
            )
            for i, s in enumerate(chain)
        ])  # fmt: skip
    return overlap.schedule(overlap.interleave(*chains, lead=lead))
