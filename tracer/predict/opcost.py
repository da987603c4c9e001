"""Kernels of a plan's program by what they run for: pass, module and op."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..cost.work import UNMODELLED
from .clocked import Piece
from .passes import Passes, Source

Key = tuple[str, str, str]  # pass, module path, op without its overload


class OpCost(NamedTuple):
    """What one kind of op in one module costs: runs, FLOPs, bytes, seconds."""

    times: float
    flops: float
    bytes: float
    seconds: float

    def plus(self, other: OpCost, factor: float = 1.0) -> OpCost:
        """Itself and `factor` of `other`."""
        return OpCost(*(a + factor * b for a, b in zip(self, other, strict=True)))


NOTHING = OpCost(0, 0, 0, 0.0)
Costs = Mapping[Key, OpCost]


def added(parts: Iterable[tuple[Costs, float]]) -> dict[Key, OpCost]:
    """The sum of costs, each with its factor; kinds of op that cancel are left out."""
    found: dict[Key, OpCost] = {}
    for costs, factor in parts:
        for key, cost in costs.items():
            found[key] = found.get(key, NOTHING).plus(cost, factor)
    return {k: c for k, c in found.items() if any(abs(value) > _ROUNDING for value in c)}


_ROUNDING = 1e-12  # below it a difference of seconds is none


def pieces_of(passes: Passes) -> Iterable[tuple[Source, Piece]]:
    """The pieces of every program within `passes`."""
    for source in passes.made_of:
        for piece in source.clocked.pieces(source.links):
            yield source, piece


def kernels_of(passes: Passes) -> dict[Key, OpCost]:
    """Of one micro-batch; what a step runs once is left out."""
    return added((_ops(source, piece), source.sign) for source, piece in _kernels(passes))


def _kernels(passes: Passes) -> Iterable[tuple[Source, Piece]]:
    for source, piece in pieces_of(passes):
        if piece.launch.message is None and not piece.launch.once:
            yield source, piece


class Waits(NamedTuple):
    """Seconds of kernels: by what they wait for ("compute", "memory", "latency"), by how sure
    their counts are ("exact", "estimated", "unmodelled"); `peak` is what their matrix products
    take at the datasheet's peaks.
    """

    waits: dict[str, float]
    sure: dict[str, float]
    peak: float

    def plus(self, other: Waits, factor: float) -> Waits:
        """Itself and `factor` of `other`."""

        def both(mine: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
            names = dict.fromkeys([*mine, *theirs])
            return {n: mine.get(n, 0.0) + factor * theirs.get(n, 0.0) for n in names}

        return Waits(
            both(self.waits, other.waits),
            both(self.sure, other.sure),
            self.peak + factor * other.peak,
        )


def waits_of(passes: Passes) -> Waits:
    """Of one micro-batch; what a step runs once is left out."""
    waits: dict[str, float] = {}
    sure: dict[str, float] = {}
    peak = 0.0
    for source, piece in _kernels(passes):
        launch, seconds = piece.launch, source.sign * piece.segment.seconds
        scale = seconds / launch.seconds if launch.seconds else 0.0
        peak += launch.peak * scale
        for name, own in (("latency", launch.start), (launch.works, launch.seconds - launch.start)):
            waits[name] = waits.get(name, 0.0) + own * scale
        for op in launch.ops:
            sure[op.confidence] = sure.get(op.confidence, 0.0) + op.share * seconds
    return Waits(waits, sure, peak)


def _ops(source: Source, piece: Piece) -> dict[Key, OpCost]:
    """A kernel's seconds over the ops that it runs."""
    launch = piece.launch
    found: dict[Key, OpCost] = {}
    for op in launch.ops:
        cost = OpCost(op.times, op.flops, op.nbytes, op.share * piece.segment.seconds)
        key = (launch.phase, op.module, op.op)
        found[key] = found.get(key, NOTHING).plus(cost)
    return found


def unmodelled_in(passes: Passes) -> dict[str, int]:
    """Ops without a formula, and how often they ran."""
    found: dict[str, int] = {}
    for _, piece in pieces_of(passes):
        for op in piece.launch.ops:
            if op.confidence == UNMODELLED:
                found[op.op] = found.get(op.op, 0) + op.times
    return found
