"""The end of a training step: what ranks that share parameters exchange, and what each updates."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from ..capture.records import BACKWARD
from ..machine.calibration import calibration_of
from ..parallel.groups import Group
from ..parallel.network import Network
from ..parallel.plan import Plan
from ..parallel.schedules import Schedule
from .assumptions import Assumptions
from .block import Block, each
from .structure import groups_on

MOMENTS = {"fp32": 4.0, "bf16": 2.0}
ADAMW_LAUNCHES = 14  # kernels of torch's foreach AdamW


class DataRanks:
    """The data-parallel ranks of a plan on a cluster.

    Args:
        plan, network: the plan and where it runs.
        copies: of every stage in the pipeline: 2 under DualPipe.
        assume: the type of gradients, how kernels are timed, what hides messages.
    """

    def __init__(self, plan: Plan, network: Network, copies: float, assume: Assumptions) -> None:
        self.plan, self.network, self.assume = plan, network, assume
        self._copies = round(copies)
        self._item = assume.gradient_bytes
        self._groups: dict[str, Group] = {}

    def group(self, axis: str) -> Group:
        """The ranks that share a parameter: also those of the other copy of a stage (DualPipe)."""
        if axis not in self._groups:
            self._groups[axis] = self._wide(axis)
        return self._groups[axis]

    def _wide(self, axis: str) -> Group:
        group = groups_on(self.plan, self.network).get(axis, Group(1, 1))
        copies = self._copies
        if copies == 1:
            return group
        apart = max(group.domains * copies, group.span)
        return Group(group.ranks * copies, group.per_domain, group.domains * copies,
                     max(apart, self.plan.world // self.network.cluster.domain))  # fmt: skip

    def owned(self, block: Block) -> float:
        """Elements whose optimizer state a rank has."""
        if self.plan.zero == 0:
            return float(sum(block.parameters.values()))
        return sum(n / self.group(axis).ranks for axis, n in block.parameters.items())

    def reduction(self, block: Block) -> float:
        """Seconds: gradients summed, parameters gathered, as far as ZeRO leaves it for the end."""
        return sum(
            message(self.network, op, nbytes, group)
            for _, op, nbytes, group in self.reductions(block)
        )

    def reductions(self, block: Block) -> Iterator[tuple[str, str, float, Group]]:
        """(axis, collective, bytes, group) of what ZeRO leaves for the end of a step."""
        zero = self.plan.zero
        for axis, count in block.parameters.items():
            group = self.group(axis)
            if group.ranks == 1 or not count:
                continue
            if zero <= 1:
                yield axis, "reduce_scatter" if zero else "all_reduce", self._item * count, group
            if zero in (1, 2):
                yield axis, "all_gather", 2.0 * count, group
        if block.copied:  # whole gradients, as Megatron sums them, or the slices that are kept
            nbytes = self._item * block.copied / (self.group("dp").ranks if zero >= 2 else 1)
            yield "embedding", "all_reduce", nbytes, self.group("embedding")

    def optimizer(self, block: Block) -> float:
        """Seconds of AdamW: reads gradient, master, two moments; writes master, moments, parameter.

        What ZeRO 1 and less copy into flat buckets for the messages counts here.
        """
        if self.plan.world == 1:
            return block.passes.optimizer
        each_ = self._item + 2 * (block.master or 4.0) + 4 * MOMENTS[self.plan.moments] + 2.0
        flat = 0.0
        if self.plan.zero <= 1 and any(self.group(axis).ranks > 1 for axis in block.parameters):
            flat = 2 * self._item * sum(block.parameters.values())
        return self.stream(each_ * self.owned(block) + flat, ADAMW_LAUNCHES)

    def accumulation(self, block: Block) -> float:
        """Seconds to add a micro-batch's weight gradients to what is kept, beyond writing them."""
        if self.plan.micro_batches == 1:
            return 0.0
        wide = 8.0 if self.assume.gradients == "fp32" else 4.0
        return self.stream(wide * (sum(block.parameters.values()) + block.borrowed))

    def stream(self, nbytes: float, launches: int = 0) -> float:
        """Seconds to move so many bytes as contiguous elementwise kernels do."""
        rate, launch = self._streaming
        return float(nbytes / rate + launches * launch)

    @functools.cached_property
    def _streaming(self) -> tuple[float, float]:
        """Bytes a second, and seconds a launch."""
        chip, timing = self.network.cluster.chip, self.assume.kernels.timing
        if timing.model == "roofline":
            return float(chip.memory_bandwidth * timing.memory_efficiency), timing.launch
        c = calibration_of(chip)["elementwise"]
        return float(chip.memory_bandwidth * timing.memory_efficiency * c.memory), float(c.launch)

    def ends(self, schedule: Schedule, blocks: Sequence[Block]) -> tuple[float, float, float]:
        """Seconds behind the pipeline: messages over data ranks, optimizer, weights to FP8.

        Of the rank that takes longest.
        """
        reductions, updates = each(blocks, self.reduction), each(blocks, self.optimizer)
        messages, optimizer, once = 0.0, 0.0, 0.0
        for stages in schedule.stages_of_rank:
            mine = [blocks[s] for s in stages]
            sent = sum(reductions[s] for s in stages)
            if self.assume.overlap.data == "last_backward":
                sent = max(sent - max(b.passes.seconds(BACKWARD) for b in mine), 0.0)
            messages = max(messages, sent)
            optimizer = max(optimizer, sum(updates[s] for s in stages))
            once = max(once, sum(b.passes.once for b in mine))
        return messages, optimizer, once


@functools.lru_cache(maxsize=8192)
def message(network: Network, op: str, nbytes: float, group: Group) -> float:
    """Seconds of a collective; stages and plans share most of them."""
    return float(network.time(op, nbytes, group).seconds)
