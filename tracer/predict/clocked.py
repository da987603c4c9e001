"""A rank's program with the seconds of its kernels: all that no link changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ..capture.records import BACKWARD, FORWARD, OPTIMIZER, RECOMPUTE
from ..cost import Ledger
from ..cost.onepass import CAST
from ..cost.work import COLLECTIVE, Cost
from ..machine import KernelTime, Timing, time_ledger
from ..machine.uneven import RowKernels
from ..parallel.network import NetTime, Network
from .links import COLLECTIVES, OVER_DATA, Links, Message
from .passes import COMPUTE, Passes, Segment, Source, unfolded
from .routed import routed_kernels
from .weight_ops import weight_gradients


class OpShare(NamedTuple):
    """One op of a kernel: runs, FLOPs, bytes, how sure they are, its share of the seconds."""

    module: str
    op: str
    times: int
    flops: float
    nbytes: float
    confidence: str
    share: float


class Launch(NamedTuple):
    """A kernel of a pass, or a message, in its place.

    Attributes:
        direction: forward or backward.
        launches: of it.
        message: None for a kernel.
        seconds, slowed: of all launches, alone and while communication holds its SMs.
        weight: whether it makes gradients of weights and of nothing else.
        kind: of the kernel.
        once: whether a step runs it once for all of its micro-batches.
        phase: the op's own: what is computed again has one.
        works: what it waits for once it has started, compute or memory.
        start, peak: seconds until it has, and those of its products at the datasheet's peaks.
        routed: its place among the kernels of routed rows, -1 for others.
        ops: what it runs.
    """

    direction: str
    launches: int
    message: Message | None = None
    seconds: float = 0.0
    slowed: float = 0.0
    weight: bool = False
    kind: str = ""
    once: bool = False
    phase: str = ""
    works: str = ""
    start: float = 0.0
    peak: float = 0.0
    routed: int = -1
    ops: tuple[OpShare, ...] = ()

    def stretched(self, old: int, new: int) -> Launch:
        """What runs once in each of `old` folded layers, for `new` of them."""
        if self.launches != old or new == old:
            return self
        message, grown = self.message, new / old
        if message is not None:
            message = message._replace(nbytes=message.nbytes * grown, launches=new)
        ops = tuple(
            op._replace(times=new, flops=op.flops * grown, nbytes=op.nbytes * grown)
            if op.times == old else op
            for op in self.ops
        )  # fmt: skip
        return self._replace(
            launches=new, message=message, seconds=self.seconds * grown,
            slowed=self.slowed * grown, start=self.start * grown, peak=self.peak * grown, ops=ops,
        )  # fmt: skip


class Piece(NamedTuple):
    """A launch over a plan's links, as a stretch of a stream; `time` is one launch of a message,
    None where it sends nothing of its own.
    """

    launch: Launch
    segment: Segment
    time: NetTime | None = None


class Clocked:
    """A rank's program in seconds: all that no link changes. Neither trace nor ledger is kept.

    Args:
        ledger: of a rank's trace.
        network: of the cluster; its chip runs the kernels, its messages hold SMs.
        timing: of the chip, without SMs reserved for communication.
    """

    def __init__(self, ledger: Ledger, network: Network, timing: Timing) -> None:
        chip = network.cluster.chip
        times = time_ledger(ledger, chip, timing)
        timed = {id(k.kernel): k for k in times.kernels}
        routed = routed_kernels(ledger)
        places = {id(kernel): place for place, kernel in enumerate(routed)}
        slowed, away = timed, times
        if any(k.kind == COLLECTIVE for k in ledger.kernels):
            held = replace(timing, reserved_sms=timing.reserved_sms + network.cluster.comm_sms)
            away = time_ledger(ledger, chip, held)
            slowed = {id(k.kernel): k for k in away.kernels}
        self.alone = RowKernels(times, routed)
        self.beside = self.alone if away is times else RowKernels(away, routed)
        self.cost = Cost.sum(k.cost for k in ledger.kernels if k.phase != OPTIMIZER)
        self.optimizer = 0.0
        self.hops = {FORWARD: 0.0, BACKWARD: 0.0}
        self.reduced: dict[str, float] = {}
        self.launches: list[Launch] = []
        weights, before = weight_gradients(ledger), ""
        for kernel in ledger.kernels:
            direction = BACKWARD if kernel.phase == RECOMPUTE else kernel.phase
            if kernel.kind == COLLECTIVE:
                dtype = next(ledger.trace.ops[kernel.parts[0].op].inputs()).dtype
                axis, nbytes = next(iter(kernel.cost.messages.items()))
                if self._goes_through(kernel.name, axis, nbytes, direction):
                    message = Message(kernel.name, axis, nbytes, kernel.launches, dtype, before)
                    self.launches.append(Launch(direction, kernel.launches, message))
                    before = dtype
            elif direction == OPTIMIZER:
                self.optimizer += timed[id(kernel)].total
            else:
                makes = direction == BACKWARD and all(p.op in weights for p in kernel.parts)
                once = kernel.name == CAST and set(kernel.cost.read) == {"weights"}
                time = timed[id(kernel)]
                self.launches.append(Launch(
                    direction, kernel.launches, None, time.total, slowed[id(kernel)].total, makes,
                    kernel.kind, once, kernel.phase, time.works, min(time.launch, time.total),
                    time.matrix, places.get(id(kernel), -1), _ops(time, ledger),
                ))  # fmt: skip

    def _goes_through(self, name: str, axis: str, nbytes: float, direction: str) -> bool:
        """Whether a message is one of the passes': notes what stages and data ranks exchange."""
        if axis == "pp":
            if name == "isend":
                self.hops[direction] += nbytes
            return False
        if axis == "embedding":  # at the end of a step, which is priced from the parameters
            return False
        over_data = direction == OPTIMIZER or axis in OVER_DATA
        if over_data and COLLECTIVES[name] in ("reduce_scatter", "all_reduce"):
            self.reduced[axis] = self.reduced.get(axis, 0.0) + nbytes
        return direction != OPTIMIZER

    def passes(self, links: Links) -> Passes:
        """The passes with their messages over `links`."""
        chains: dict[str, list[tuple[Segment, int]]] = {FORWARD: [], BACKWARD: []}
        once, launches = 0.0, 0
        for item, segment, _ in self.pieces(links):
            launches += item.launches if item.message is None else 0
            if item.once:
                once += segment.seconds if item.direction == FORWARD else 0.0
            else:
                chains[item.direction].append((segment, item.launches))
        return Passes(
            unfolded(chains[FORWARD]), unfolded(chains[BACKWARD]), once, self.hops[FORWARD],
            self.hops[BACKWARD], self.cost, self.reduced, self.optimizer, launches,
            (Source(self, links),),
        )  # fmt: skip

    def pieces(self, links: Links) -> Iterator[Piece]:
        """Kernels and messages of a micro-batch in order."""
        uneven = links.load.uneven
        alone, beside = self.alone.factors(uneven), self.beside.factors(uneven)
        for item in self.launches:
            if item.message is not None:
                time, segment = links.time(item.message), Segment(item.message.axis, 0.0)
                if time is not None:
                    total = item.launches * float(time.seconds)
                    segment = Segment(item.message.axis, total, sms=time.sms)
                yield Piece(item, segment, time)
                continue
            seconds, slowed = item.seconds, item.slowed
            if item.routed >= 0:
                seconds, slowed = seconds * alone[item.routed], slowed * beside[item.routed]
            segment = Segment(COMPUTE, seconds, max(slowed, seconds), weight=item.weight)
            yield Piece(item, segment)


def _ops(time: KernelTime, ledger: Ledger) -> tuple[OpShare, ...]:
    """What a kernel runs; its seconds go to its ops by their bytes."""
    found = []
    for place, part in enumerate(time.kernel.parts):
        op = ledger.trace.ops[part.op]
        share = time.seconds_of(place) / time.total if time.total else 0.0
        found.append(OpShare(
            part.module, op.overload_packet, op.times, part.cost.total_flops,
            part.cost.total_bytes, part.confidence, share,
        ))  # fmt: skip
    return tuple(found)
