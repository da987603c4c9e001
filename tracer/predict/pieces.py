"""The stages of a transformers model from few traces: its front, its layers, and its tail.

What a rank runs for layers of one kind does not depend on how many there are, nor on where in the
pipeline they are. So a stage's layers are traced as a stage between others, at most `_LAYERS` of
one kind, and counted as often as there are; a front (embedding) and a tail (norm, head, loss) are
stages without layers. What this leaves out are kernels that would fuse across these seams. Memory
is counted on the safe side: up to two states [B, S, D] too many at a seam, and what the head keeps
as if layers needed most at the same time. `tests/predict/test_transformers_pieces.py` holds it
against stages traced as a whole.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..capture.records import Storage, Trace
from ..collector import without_collector
from ..cost import Cost, Kernel, Ledger
from ..cost.lowered import in_fp8, saved_weights
from ..errors import UserError
from ..parallel.memory import Moving
from ..parallel.network import Network
from ..parallel.plan import Plan
from .block import Block, Held, held_by, together
from .clocked import Clocked
from .kernels import Kernels
from .links import Links
from .passes import Passes

FIRST, BETWEEN, LAST = 0, 1, 2  # stages of a pipeline of three
_LAYERS = 4  # traced: the first, two that are one, the last


@dataclass(frozen=True)
class Traced:
    """A rank's program in seconds and bytes.

    Attributes:
        clocked, held: its seconds and its bytes.
        experts: elements of experts that only some ranks have.
        saved: bytes of weights that FP8 spares.
        layer: what one layer more costs; None where layers are of several kinds, or few.
    """

    clocked: Clocked
    held: Held
    experts: float = 0.0
    saved: float = 0.0
    layer: Layer | None = None

    def block(self, links: Links, cut: Plan) -> Block:
        """Its block, with messages over `links`."""
        passes = self.clocked.passes(links)
        block = self.held.block(passes)
        if self.held.training:
            block = replace(block, parameters=self._parameters(passes, cut))
        return replace(block, weights=block.weights - self.saved)

    def _parameters(self, passes: Passes, cut: Plan) -> dict[str, float]:
        """Elements by the axis over which their gradients are summed."""
        if cut.zero == 3:  # the rank's own are slices: whole ones are what it scatters
            found = {axis: nbytes / self.held.itemsize for axis, nbytes in passes.reduced.items()}
            if self.experts:
                found.setdefault("edp", self.experts)  # nobody else has them
            return found
        others = self.held.numel - self.experts
        return {"dp": others} | ({"edp": self.experts} if self.experts else {})


@dataclass(frozen=True)
class Layer:
    """The numbers of a piece with one layer more, and the `cost` of that layer."""

    held: Held
    experts: float
    saved: float
    cost: Cost


@functools.lru_cache(maxsize=256)
def traced(
    program: Any, work: Any, cut: Plan, place: int, layers: range | None, kernels: Kernels,
    network: Network, fp8: bool,
) -> Traced:  # fmt: skip
    """A stage as a piece; `layers` None for those that the plan gives it."""
    with without_collector():
        if uncut(cut):
            trace = alone(program, work)
        else:
            from ..capture.huggingface.sharded import record_rank

            trace = record_rank(program, work, cut, rank=place * cut.ranks_per_stage, layers=layers)
        plain = kernels.ledger(trace)
        ledger, saved = (in_fp8(plain), saved_weights(plain)) if fp8 else (plain, 0)
        clocked = Clocked(ledger, network, kernels.timing)
        layer = None
        if layers is not None and len(layers) == _LAYERS and len(trace.folds) == 1:
            longer = _longer(ledger)
            layer = Layer(
                held_by(longer, cut), _experts(longer.trace, cut),
                saved_weights(_longer(plain)) if fp8 else 0,
                Clocked(longer, network, kernels.timing).cost + _NEGATIVE * clocked.cost,
            )  # fmt: skip
        return Traced(clocked, held_by(ledger, cut), _experts(trace, cut), saved, layer)


_NEGATIVE = -1


def alone(program: Any, work: Any) -> Trace:
    """The trace of one GPU with all of the model.

    `record` folds layers that are all alike. Where every other one sees a window (GPT-OSS), those
    of a plan's stage are folded, so the model is a stage of its own; if its code does not run as
    one, all layers are traced.
    """
    from ..capture.workload import record

    if program.layers == 0 and hasattr(program, "config"):
        from ..capture.huggingface.config import differs_by_window
        from ..capture.huggingface.sharded import record_rank
        from ..capture.huggingface.stage import layers_of

        if differs_by_window(program.config) and layers_of(program) is not None:
            with contextlib.suppress(UserError):
                return record_rank(program, work, Plan(micro_batch=work.batch))
    return record(program, work)


def uncut(cut: Plan) -> bool:
    """Whether ranks run what one GPU runs: data ranks with parameters of their own."""
    plain = cut.ep == 1 and cut.zero == 0 and cut.recompute == "none"
    return cut.world == cut.dp and plain


def _experts(trace: Trace, cut: Plan) -> int:
    if cut.ep == 1:
        return 0
    return sum(p.numel for p in trace.parameters if ".experts." in p.name)


def stage(
    program: Any, work: Any, cut: Plan, layers: range, kinds: tuple[int, ...],
    ends: tuple[bool, bool], kernels: Kernels, links: Links, fp8: bool,
) -> Block:  # fmt: skip
    """The block of a stage of `layers` of these kinds; `ends`: whether it is first, and last."""
    network = links.network
    own = range(layers.start, layers.start + min(len(layers), _LAYERS))
    stretches = len(set(kinds)) == 1
    middle = traced(
        program, work, cut, BETWEEN, own if stretches else layers, kernels, network, fp8
    )  # fmt: skip
    if stretches and len(layers) > _LAYERS:
        middle = stretched(middle, len(layers))
    plain = replace(cut, ep=1, recompute="none")
    blocks = [middle.block(links, cut)]
    for place, there in zip((FIRST, LAST), ends, strict=True):
        if there:
            end = traced(program, work, plain, place, range(0), kernels, network, fp8)
            blocks.insert(0 if place == FIRST else len(blocks), end.block(links, plain))
    block = together(blocks)
    if middle.held.training:  # states that cross a seam are held on both sides of it
        block = replace(block, saved=block.saved - sum(ends) * block.passes.hop)
    hops = middle.clocked.cost.messages.get("pp", 0) // 2 * (2 - sum(ends))
    cost = replace(block.passes.cost, messages={**block.passes.cost.messages, "pp": hops})
    return replace(block, passes=replace(block.passes, cost=cost))


def stretched(piece: Traced, layers: int) -> Traced:
    """A piece of `_LAYERS` layers of one kind with so many."""
    more, layer = layers - _LAYERS, piece.layer
    assert layer is not None
    clocked = copy.copy(piece.clocked)
    clocked.launches = [item.stretched(2, layers - 2) for item in clocked.launches]
    clocked.cost = clocked.cost + more * layer.cost
    clocked.reduced = {
        axis: nbytes + sum(
            item.message.nbytes - old.message.nbytes
            for item, old in zip(clocked.launches, piece.clocked.launches, strict=True)
            if item.message and old.message and item.message.axis == axis and item.message.reduces
        )
        for axis, nbytes in piece.clocked.reduced.items()
    }  # fmt: skip
    a, b = piece.held, layer.held
    moving = (x + more * (y - x) for x, y in zip(a.moving, b.moving, strict=True))
    longer = Moving(*moving)._replace(update=a.moving.update)  # in passing, of any length
    held = a._replace(moving=longer, numel=a.numel + more * (b.numel - a.numel))
    return Traced(
        clocked, held, piece.experts + more * (layer.experts - piece.experts),
        piece.saved + more * (layer.saved - piece.saved),
    )  # fmt: skip


def _longer(ledger: Ledger) -> Ledger:
    """With one layer more: what the two folded ones do, three do."""
    trace = ledger.trace
    (fold,) = trace.folds
    ops = [op if op.times == 1 else op._replace(times=op.times * 3 // 2) for op in trace.ops]
    storages, parameters = list(trace.storages), list(trace.parameters)
    for parameter in trace.parameters:
        if parameter.name.startswith(f"{fold.members[-1]}."):
            name = parameter.name.replace(fold.members[-1], f"{fold.members[-1]}+", 1)
            parameters.append(parameter._replace(name=name, storage=len(storages), offset=0))
            storages.append(Storage(parameter.nbytes, -1, None, "weights"))
    longer = replace(
        trace, ops=ops, storages=storages, parameters=parameters,
        folds=(fold._replace(layers=3, members=(*fold.members, f"{fold.members[-1]}+")),),
    )  # fmt: skip
    return replace(
        ledger, trace=longer, kernels=tuple(_with_times(k, trace) for k in ledger.kernels)
    )


def _with_times(kernel: Kernel, trace: Trace) -> Kernel:
    """A kernel of two folded layers for three."""
    parts = tuple(
        p if trace.ops[p.op].times == 1 else p._replace(cost=_three_halves(p.cost))
        for p in kernel.parts
    )
    launches = kernel.launches if kernel.launches == 1 else kernel.launches * 3 // 2
    return kernel._replace(launches=launches, parts=parts, cost=Cost.sum(p.cost for p in parts))


def _three_halves(cost: Cost) -> Cost:
    """Of two layers' cost that of three."""

    def grown(table: Mapping[str, int]) -> dict[str, int]:
        return {key: value * 3 // 2 for key, value in table.items()}

    return Cost(
        grown(cost.flops), cost.vector_flops * 3 // 2, grown(cost.recompute_flops),
        grown(cost.read), grown(cost.write), grown(cost.messages),
    )  # fmt: skip
