"""What a rank runs and holds of one layer, or at an end; their sums are stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..cost import Ledger
from ..parallel.memory import Moving, moving_of
from ..parallel.plan import Plan
from .passes import Passes, beyond, joined


@dataclass(frozen=True)
class Block:
    """One layer (or what is at an end) of a rank.

    Bytes, of one micro-batch where it matters: `weights`, `saved` for the backward, `shared` of
    what is saved but the same for all micro-batches (weights in FP8), `working` beside these, `kv`;
    `update` comes and goes in the optimizer's step, when nothing is saved any more.
    `parameters`: elements by axis over which their gradients are summed. `borrowed`: elements that
    another stage of the GPU holds, `copied`: that a stage of other GPUs has too (see `mtp`).
    """

    passes: Passes
    weights: float = 0.0
    saved: float = 0.0
    shared: float = 0.0
    working: float = 0.0
    kv: float = 0.0
    parameters: Mapping[str, float] = field(default_factory=dict)
    master: float = 4.0  # bytes an element of FP32 master weights: none for FP32 parameters
    update: float = 0.0
    borrowed: float = 0.0
    copied: float = 0.0

    def minus(self, other: Block) -> Block:
        """What this one has more than `other`."""
        parameters = {
            k: max(v - other.parameters.get(k, 0.0), 0.0) for k, v in self.parameters.items()
        }
        return Block(
            beyond(self.passes, other.passes), max(self.weights - other.weights, 0.0),
            max(self.saved - other.saved, 0.0), max(self.shared - other.shared, 0.0),
            self.working, max(self.kv - other.kv, 0.0), parameters, self.master, self.update,
        )  # fmt: skip


def together(blocks: list[Block]) -> Block:
    """Blocks of one stage, in order."""
    parameters: dict[str, float] = {}
    for block in blocks:
        for axis, count in block.parameters.items():
            parameters[axis] = parameters.get(axis, 0.0) + count
    return Block(
        joined([b.passes for b in blocks]),
        sum(b.weights for b in blocks), sum(b.saved for b in blocks),
        sum(b.shared for b in blocks), max(b.working for b in blocks), sum(b.kv for b in blocks),
        parameters, max(b.master for b in blocks), max(b.update for b in blocks),
        sum(b.borrowed for b in blocks), sum(b.copied for b in blocks),
    )  # fmt: skip


def each(blocks: Sequence[Block], value: Callable[[Block], float]) -> tuple[float, ...]:
    """`value` of every stage's block, found once for stages that are alike and share theirs."""
    known = {key: value(block) for key, block in {id(b): b for b in blocks}.items()}
    return tuple(known[id(b)] for b in blocks)


class Held(NamedTuple):
    """What a rank's program holds, with one micro-batch in flight: a block without its seconds.

    `sliced`: bytes by the axis over which ZeRO 2 and 3 slice them, as if whole. `rest`: the axis
    over which gradients are summed that no message of the trace shows, `numel` elements.
    """

    moving: Moving
    sliced: Mapping[str, float]
    slices: float
    master: float
    training: bool
    zero: int
    rest: str
    itemsize: float
    numel: float

    def block(self, passes: Passes, ranks: Mapping[str, int] | None = None) -> Block:
        """The block that runs `passes`; `ranks` by axis where they are not those of the trace."""
        count: dict[str, float] = {}
        if self.training:
            summed = self.sliced or passes.reduced  # what is used twice is summed twice in there
            count = {axis: nbytes / self.itemsize for axis, nbytes in summed.items()}
            left = self.numel - (sum(count.values()) if self.zero <= 1 else 0.0)
            if left > 0:
                count[self.rest] = count.get(self.rest, 0.0) + left
        m, weights = self.moving, float(self.moving.weights)
        if self.zero == 3 and ranks is not None:
            weights += sum(n / ranks[axis] for axis, n in self.sliced.items()) - self.slices
        return Block(
            passes, weights, m.saved, m.shared, m.working, m.kv, count, self.master, m.update
        )


def held_by(ledger: Ledger, cut: Plan) -> Held:
    """The bytes and parameters of a ledger's rank."""
    trace, ranks = ledger.trace, cut.groups(0)
    trained = [p for p in trace.parameters if p.trainable and not p.buffer]
    sliced: dict[str, float] = {}
    slices, numel = 0.0, 0
    for p in trained:
        name = p.name.rpartition(".")[2]
        if not name.startswith("shard_"):
            numel += p.numel
        elif cut.zero >= 2:
            axis = name.split("_")[1]
            slices += p.nbytes
            sliced[axis] = sliced.get(axis, 0.0) + p.nbytes * len(ranks[axis])
    fp32 = all(p.dtype == "float32" for p in trained) and trained
    return Held(
        moving_of(ledger), sliced, slices, 0.0 if fp32 else 4.0,
        trace.header.get("phase") == "training", cut.zero, "edp" if cut.ep > 1 else "dp",
        max((p.nbytes // max(p.numel, 1) for p in trained), default=2), numel,
    )  # fmt: skip
