"""The stages of a training plan through its schedule: seconds up to the last backward."""

from __future__ import annotations

import functools

from ..capture.records import BACKWARD, FORWARD
from ..parallel import overlap
from ..parallel.groups import strided
from ..parallel.network import Network
from ..parallel.plan import Plan
from ..parallel.schedules import Durations, PipelineStep, Schedule, price
from .assumptions import BOTH, Assumptions
from .block import Block, each
from .data_ranks import DataRanks, message
from .gpu_memory import in_flight
from .passes import COMPUTE, Chain

V_SHAPED = ("zbv", "dualpipev")  # two stages a rank


def free_stages(plan: Plan) -> int | None:
    """Stages a rank, for a schedule that leaves them free."""
    return plan.chunks if plan.schedule not in V_SHAPED and plan.chunks > 1 else None


class Timed:
    """A plan's stages through its schedule; seconds are found when they are asked for.

    `pipeline` and `durations` are the same from the schedule's `shortest`.
    """

    def __init__(
        self, plan: Plan, network: Network, schedule: Schedule, blocks: list[Block],
        assume: Assumptions,
    ) -> None:  # fmt: skip
        self.plan, self.network, self.schedule = plan, network, schedule
        self.blocks, self.assume = blocks, assume
        self.data = DataRanks(plan, network, schedule.copies, assume)
        self.both = plan.schedule in BOTH and assume.overlap.pairs

    @functools.cached_property
    def forward(self) -> tuple[float, ...]:
        """Seconds by stage, as `input` and `weight`, the two halves of the backward."""
        return each(self.blocks, lambda b: self._alone(b, FORWARD))

    @functools.cached_property
    def input(self) -> tuple[float, ...]:
        return each(self.blocks, lambda b: self._alone(b, BACKWARD))

    @functools.cached_property
    def weight(self) -> tuple[float, ...]:
        return each(
            self.blocks,
            lambda b: b.passes.seconds(BACKWARD, weight=True) + self.data.accumulation(b),
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
        sent = [message(network, "send", b.passes.hop, hop) if hop else 0.0 for b in blocks]
        back = [message(network, "send", b.passes.hop_back, hop) if hop else 0.0 for b in blocks]
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
            plan.schedule, plan.pp, plan.micro_batches, self.durations, in_flight(self.blocks),
            free_stages(plan),
        )  # fmt: skip

    def _alone(self, block: Block, direction: str) -> float:
        """Seconds of a pass with nothing else beside it; of the backward without weights'."""
        compute = block.passes.seconds(direction, weight=False)
        return compute + self.slowed(block, direction) + self.exposed(block, direction)

    def exposed(self, block: Block, direction: str) -> float:
        """Seconds of a pass's messages that its own compute does not hide."""
        left, _, beside = block.passes.beside(direction, self.assume.overlap.beside)
        return sum(block.passes.messages(direction).values()) - beside + left

    def slowed(self, block: Block, direction: str) -> float:
        """Seconds that its own compute takes longer while messages behind it hold SMs."""
        return block.passes.beside(direction, self.assume.overlap.beside)[1]

    def _with_accumulation(self, block: Block) -> Chain:
        more = self.data.accumulation(block)
        chain = list(block.passes.backward)
        places = [i for i, s in enumerate(chain) if s.weight]
        for i in places:
            s = chain[i]
            chain[i] = s._replace(
                seconds=s.seconds + more / len(places), slowed=s.slowed + more / len(places)
            )
        return tuple(chain)


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
