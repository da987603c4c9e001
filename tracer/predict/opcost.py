"""Kernels of a plan's program by what they run for: pass, module and op."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..cost.work import ATTENTION
from .passes import COMPUTE, Passes, Piece, Source

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
        for piece in source.clocked.pieces(source.links, attention=source.attention):
            yield source, piece


def kernels_of(passes: Passes) -> dict[Key, OpCost]:
    """Of one micro-batch; what a step runs once is left out."""
    return added(
        (_ops(source, piece), source.sign)
        for source, piece in pieces_of(passes)
        if piece.segment.axis == COMPUTE and not piece.once
    )


class Shares(NamedTuple):
    """Seconds of kernels: by what they wait for ("compute", "memory", "latency"), by how sure
    their counts are ("exact", "estimated", "unmodelled"); `peak` is what their matrix products
    take at the datasheet's peaks.
    """

    waits: dict[str, float]
    sure: dict[str, float]
    peak: float

    def plus(self, other: Shares, factor: float) -> Shares:
        """Itself and `factor` of `other`."""

        def both(mine: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
            names = dict.fromkeys([*mine, *theirs])
            return {n: mine.get(n, 0.0) + factor * theirs.get(n, 0.0) for n in names}

        return Shares(
            both(self.waits, other.waits),
            both(self.sure, other.sure),
            self.peak + factor * other.peak,
        )


def shares_of(passes: Passes) -> Shares:
    """Of one micro-batch; what a step runs once is left out."""
    waits: dict[str, float] = {}
    sure: dict[str, float] = {}
    peak = 0.0
    for source, piece in pieces_of(passes):
        if piece.segment.axis != COMPUTE or piece.once:
            continue
        timed = source.clocked.times[id(piece.kernel)]
        seconds = source.sign * piece.segment.seconds
        peak += timed.matrix * seconds / timed.total if timed.total else 0.0
        start = min(timed.launch / timed.total, 1.0) if timed.total else 0.0
        for name, share in (("latency", start), (timed.works, 1 - start)):
            waits[name] = waits.get(name, 0.0) + share * seconds
        for place, part in enumerate(piece.kernel.parts):
            share = timed.seconds_of(place) / timed.total if timed.total else 0.0
            sure[part.confidence] = sure.get(part.confidence, 0.0) + share * seconds
    return Shares(waits, sure, peak)


def _ops(source: Source, piece: Piece) -> dict[Key, OpCost]:
    """A kernel's seconds over the ops that it runs."""
    clocked, kernel = source.clocked, piece.kernel
    timed = clocked.times[id(kernel)]
    factor = piece.segment.seconds / timed.total if timed.total else 1.0
    work = source.attention if kernel.kind == ATTENTION else 1.0
    found: dict[Key, OpCost] = {}
    for place, part in enumerate(kernel.parts):
        op = clocked.ledger.trace.ops[part.op]
        key = (kernel.phase, part.module, op.overload_packet)
        cost = OpCost(op.times, part.cost.total_flops * work, part.cost.total_bytes,
                      timed.seconds_of(place) * factor)  # fmt: skip
        found[key] = found.get(key, NOTHING).plus(cost)
    return found
