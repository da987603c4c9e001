"""What a priced plan's step is made of: its seconds, kernels, messages, stages and bytes.

A step is priced as a handful of sums. Here the same stages are walked once more, so that every
figure can be followed to the ops of a rank's program; all sums come out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from ..capture.records import BACKWARD, FORWARD
from ..parallel.groups import strided
from ..parallel.network import Network, network_of
from ..parallel.plan import Plan
from .assumptions import Assumptions, trained
from .block import Block
from .engine import as_served
from .gpu_memory import GpuMemory, by_rank
from .messages import (
    BETWEEN,
    END,
    Sent,
    exposed_alone,
    exposed_together,
    merged,
    messages_of,
    of_time,
    spread,
)
from .mtp import Added
from .opcost import Key, OpCost, Waits, added, kernels_of, unmodelled_in, waits_of
from .passes import Passes
from .pipeline import Timed, two_streams
from .program import stages_of
from .serving import Serving, ServingStep, memories, served, span, stages_for
from .structure import groups_on
from .time_shares import Shares
from .training import TrainingStep, check

if TYPE_CHECKING:
    from ..capture.program import Program

KERNELS, SUMMED, SLOWED = "kernels", "gradients added up", "slower beside messages"
COMPUTE, COMMUNICATION, BUBBLE = "compute", "exposed communication", "pipeline bubble"
OPTIMIZER, HOPS, HOST = "optimizer", "between stages", "waiting for the host"


class StageTimes(NamedTuple):
    """A stage's layers, an MTP module among them, and its seconds for one micro-batch, compute and
    messages apart.
    """

    first: int
    layers: int
    forward: float
    input: float  # gradients of inputs, with what is computed again
    weight: float  # gradients of weights, added up
    forward_messages: float
    backward_messages: float

    @property
    def total(self) -> float:
        """All of it, nothing hidden."""
        return sum(self[2:])


@dataclass(frozen=True)
class Detail:
    """The parts of a step. Unless said otherwise a GPU's: the mean over a pipeline's ranks.

    Attributes:
        parts: seconds that add up to the step.
        compute: seconds that add up to `parts["compute"]`.
        kernels: of a step, by pass, module and op; their seconds add up to `compute["kernels"]`.
        shares: seconds of the kernels by what they wait for, and by how sure their counts are.
        sent: messages by kind; what they expose adds up to `parts["exposed communication"]` (and
            of serving "between stages").
        stages: by stage.
        pace: the stage that takes longest.
        pace_kernels: of that stage, one micro-batch.
        memories: by rank of the pipeline.
        unmodelled: ops without a formula, and how often they ran in the traced programs.
        mtp: what an MTP module adds to the last stage; None without.
    """

    parts: dict[str, float]
    compute: dict[str, float]
    kernels: dict[Key, OpCost]
    shares: Waits
    sent: tuple[Sent, ...]
    stages: tuple[StageTimes, ...]
    pace: int
    pace_kernels: dict[Key, OpCost]
    memories: tuple[GpuMemory, ...]
    unmodelled: dict[str, int] = field(default_factory=dict)
    mtp: Added | None = None


def training_detail(program: Program, step: TrainingStep, assume: Assumptions) -> Detail:
    """Of a step that `predict_training` priced, with its `assume` and the whole schedule."""
    plan, network = step.plan, network_of(step.cluster)
    assume = trained(assume, program, plan)
    stages = stages_of(
        program, plan, network, assume.kernels, phase="training", seq=step.seq,
        exchange=assume.exchange, load=step.load, kept=assume.kept,
    )  # fmt: skip
    plan, schedule = check(plan, step.cluster, stages)
    timed = Timed(plan, network, schedule, stages.blocks(), assume)
    b = step.breakdown
    assert b is not None
    ranks, blocks = schedule.ranks, timed.blocks
    each = plan.micro_batches / ranks  # of every stage's passes, how many a rank runs in the mean
    summed = each * sum(timed.data.accumulation(block) for block in blocks)
    kernels, shares = _kernels(blocks, each)
    alone = sum(cost.seconds for cost in kernels.values())
    rows = tuple(
        StageTimes(*_layers(program, plan, number), p.seconds(FORWARD),
                   p.seconds(BACKWARD, weight=False),
                   p.seconds(BACKWARD, weight=True) + timed.data.accumulation(block),
                   sum(p.messages(FORWARD).values()), sum(p.messages(BACKWARD).values()))
        for number, block in enumerate(blocks) for p in [block.passes]
    )  # fmt: skip
    pace = max(range(len(rows)), key=lambda number: rows[number].total)
    return Detail(
        {COMPUTE: b.compute, COMMUNICATION: b.communication, BUBBLE: b.bubble,
         OPTIMIZER: b.optimizer},
        {KERNELS: alone, SUMMED: summed, SLOWED: _slowed(timed) / ranks},
        kernels, shares, merged([*_inside(timed, each), *_hops(timed, each), *_ends(timed)]),
        rows, pace, kernels_of(blocks[pace].passes),
        tuple(by_rank(schedule, blocks, timed.data, assume, stages.buffers())),
        _unmodelled(blocks), stages.mtp(),
    )  # fmt: skip


def serving_detail(program: Program, step: ServingStep, assume: Serving) -> Detail:
    """Of a step that `predict_serving` priced, with its `assume`."""
    assume = served(assume, program, step.phase)
    program = as_served(program, assume.engine)
    plan, network, count = step.plan, network_of(step.cluster), assume.micro_batches
    stages = stages_for(
        program, plan, network, step.phase, assume, step.seq, step.context, step.load
    )
    blocks = stages.blocks()
    kernels, shares = _kernels(blocks, count)
    alone = sum(cost.seconds for cost in kernels.values())
    spans = [span(block, assume, step.phase) for block in blocks]
    compute, exposed = sum(s[2] for s in spans), sum(s[1] for s in spans)
    sent: list[Sent] = []
    for block in blocks:
        passes = block.passes
        seen = _exposed(passes, count, span(block, assume, step.phase)[1])
        found = messages_of(passes, groups_on(plan, network))
        sent += spread((s.scaled(count) for s in found), seen)
    hops = _sends([b.passes.hop for b in blocks[:-1]], plan.ranks_per_stage, network)
    rows = tuple(
        StageTimes(*_layers(program, plan, number), block.passes.seconds(FORWARD), 0.0, 0.0,
                   sum(block.passes.messages(FORWARD).values()), 0.0)
        for number, block in enumerate(blocks)
    )  # fmt: skip
    pace = max(range(len(rows)), key=lambda number: rows[number].total)
    hop = sum(s.seconds for s in hops)
    return Detail(
        {COMPUTE: compute, COMMUNICATION: exposed, HOPS: hop,
         HOST: max(step.seconds - hop - compute - exposed, 0.0) if step.host else 0.0},
        {KERNELS: alone, SLOWED: max(compute - alone, 0.0)},
        kernels, shares, merged([*sent, *hops]), rows, pace,
        kernels_of(blocks[pace].passes), tuple(memories(stages, assume, step.cluster)),
        _unmodelled(blocks),
    )  # fmt: skip


def _exposed(passes: Passes, count: int, exposed: float) -> dict[tuple[str, str], float]:
    """The `exposed` seconds of a stage's messages by axis: as two streams leave them, all alike of
    one micro-batch.
    """
    by = passes.messages(FORWARD)
    if count == 2:
        both = two_streams(passes.forward, passes.forward)
        chains = {"f": passes.forward, "b": passes.forward}
        left = dict.fromkeys(by, 0.0)
        for (_, axis), seconds in exposed_together(both, chains).items():
            left[axis] += seconds
        by = left if sum(left.values()) else by
    whole = sum(by.values())
    return {(FORWARD, axis): exposed * s / whole for axis, s in by.items() if whole}


def detail_of(
    program: Program, step: TrainingStep | ServingStep, assume: Assumptions | Serving
) -> Detail:
    """`training_detail` or `serving_detail`."""
    if isinstance(step, TrainingStep):
        assert isinstance(assume, Assumptions)
        return training_detail(program, step, assume)
    assert isinstance(assume, Serving)
    return serving_detail(program, step, assume)


def _layers(program: Program, plan: Plan, stage: int) -> tuple[int, int]:
    """First layer of a stage and how many it has; 0 of a model whose layers are not known."""
    layers = plan.layers_of(stage, program.layers)
    return layers.start, len(layers)


def _kernels(blocks: Sequence[Block], each: float) -> tuple[dict[Key, OpCost], Waits]:
    """Kernels of all stages, `each` times."""
    alike: dict[int, tuple[Block, int]] = {}
    for block in blocks:
        alike[id(block)] = block, alike.get(id(block), (block, 0))[1] + 1
    shares = Waits({}, {}, 0.0)
    for block, count in alike.values():
        shares = shares.plus(waits_of(block.passes), each * count)
    kernels = added((kernels_of(block.passes), each * count) for block, count in alike.values())
    return kernels, shares


def _slowed(timed: Timed) -> float:
    """Seconds that compute takes longer beside messages, summed over ranks."""
    found, counts = 0.0, Shares(timed).counts
    for mine in counts:
        for (kind, stage, back), n in mine.items():
            if kind == "F&B" and (stage, back) in timed.pairs:
                run, block = timed.pairs[stage, back], timed.blocks[back]
                alone = timed.blocks[stage].passes.seconds(FORWARD)
                alone += block.passes.seconds(BACKWARD) + timed.data.accumulation(block)
                found += n * (run.total - run.exposed - alone)
                continue
            if kind in ("F", "F&B"):
                found += n * timed.slowed(timed.blocks[stage], FORWARD)
            if kind in ("B", "I", "F&B"):
                found += n * timed.slowed(timed.blocks[back if kind == "F&B" else stage], BACKWARD)
    return found


def _inside(timed: Timed, each: float) -> list[Sent]:
    """Messages of forwards and backwards, with what their slots leave exposed."""
    counts = Shares(timed).counts
    exposed: dict[int, dict[tuple[str, str], float]] = {n: {} for n in range(len(timed.blocks))}

    def add(stage: int, direction: str, by_axis: dict[str, float], n: int) -> None:
        for axis, seconds in by_axis.items():
            key = direction, axis
            exposed[stage][key] = exposed[stage].get(key, 0.0) + n * seconds / len(counts)

    beside = timed.assume.overlap.beside
    for mine in counts:
        for (kind, stage, back), n in mine.items():
            if kind == "F&B" and (stage, back) in timed.pairs:
                chains = {"f": timed.blocks[stage].passes.forward,
                          "b": timed.blocks[back].passes.backward}  # fmt: skip
                for (name, axis), s in exposed_together(timed.pairs[stage, back], chains).items():
                    if name == "f":
                        add(stage, FORWARD, {axis: s}, n)
                    else:
                        add(back, BACKWARD, {axis: s}, n)
                continue
            if kind in ("F", "F&B"):
                add(stage, FORWARD, exposed_alone(timed.blocks[stage].passes, FORWARD, beside), n)
            if kind in ("B", "I", "F&B"):
                at = back if kind == "F&B" else stage
                add(at, BACKWARD, exposed_alone(timed.blocks[at].passes, BACKWARD, beside), n)
    groups = groups_on(timed.plan, timed.network)
    found: list[Sent] = []
    for stage, block in enumerate(timed.blocks):
        rows = messages_of(block.passes, groups)
        found += spread((s.scaled(each) for s in rows), exposed[stage])
    return found


def _hops(timed: Timed, each: float) -> list[Sent]:
    """Activations and their gradients between stages: what waits for them counts as bubble."""
    schedule, blocks = timed.schedule, timed.blocks
    alone = schedule.copies == 1
    sizes = []
    for stage in range(len(blocks) - 1):
        if alone and any({stage, stage + 1} <= set(m) for m in schedule.stages_of_rank):
            continue  # neighbours on one rank send nothing
        sizes += [blocks[stage].passes.hop, blocks[stage + 1].passes.hop_back]
    sent = _sends(sizes, timed.plan.ranks_per_stage, timed.network)
    sending = sum(timed.pipeline.sending) / schedule.ranks
    whole = each * sum(s.seconds for s in sent)
    return [
        replace(s, exposed=sending * s.seconds / whole if whole else 0.0)
        for s in (row.scaled(each) for row in sent)
    ]


def _sends(sizes: Sequence[float], stride: int, network: Network) -> list[Sent]:
    if not sizes:
        return []
    pair = strided(2, stride, network.cluster)
    return [
        of_time(BETWEEN, "pp", "send", "", pair, nbytes, network.send(nbytes, pair))
        for nbytes in sizes
    ]


def _ends(timed: Timed) -> list[Sent]:
    """Gradients and parameters over data ranks, of the rank that takes longest over them."""
    best: list[Sent] = []
    for stages in timed.schedule.stages_of_rank:
        mine = []
        for stage in stages:
            for axis, op, nbytes, group in timed.data.reductions(timed.blocks[stage]):
                time = timed.network.time(op, nbytes, group)
                mine.append(of_time(END, axis, op, "", group, nbytes, time))
        best = max(best, mine, key=lambda rows: sum(s.seconds for s in rows))
    whole = sum(s.seconds for s in best)
    exposed = timed.data.ends(timed.schedule, timed.blocks)[0]
    return [replace(s, exposed=s.seconds * exposed / whole) for s in best]


def _unmodelled(blocks: Sequence[Block]) -> dict[str, int]:
    found: dict[str, int] = {}
    for block in blocks:
        found |= unmodelled_in(block.passes)
    return found


__all__ = ["Detail", "StageTimes", "detail_of", "serving_detail", "training_detail"]
