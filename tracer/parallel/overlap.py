"""Communication beside compute: two in-order streams with dependencies, exactly.

Each stream runs its operations in the order given, one at a time, each as soon as those that it
waits for are done (CUDA streams with events). While a communication kernel holds SMs, compute goes
on at `seconds / slowed` of its pace. Work never waits without a reason, so that

    max(compute, communication) <= total <= compute + communication.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tracer.hardware import Chip

from ..cost import Ledger
from ..errors import UserError
from ..machine import Timing, time_ledger
from .network import NetTime

COMPUTE, COMM = "compute", "comm"
STREAMS = (COMPUTE, COMM)


@dataclass(frozen=True)
class StreamOp:
    """One operation of a stream.

    Attributes:
        name: unlike any other's.
        stream: "compute" or "comm".
        seconds: alone on the chip.
        after: names of operations that must be done first, on either stream.
        slowed: of compute, seconds if communication held its SMs all the while; `seconds` if 0.
        sms: of communication, SMs that it holds; 0 where copy engines or NICs do the work.
    """

    name: str
    stream: str
    seconds: float
    after: tuple[str, ...] = ()
    slowed: float = 0.0
    sms: float = 0.0


class Span(NamedTuple):
    """When an operation ran."""

    name: str
    stream: str
    start: float
    end: float


@dataclass(frozen=True)
class Overlap:
    """A schedule of both streams, in seconds.

    Attributes:
        total: from the first start to the last end.
        compute, comm: how long each stream was busy; `compute` holds what SMs given away cost.
        exposed: communication while no compute ran.
        hidden: communication while compute ran.
        stretched: what compute took longer because communication held SMs.
        spans: every operation's start and end, in order of start.
    """

    total: float
    compute: float
    comm: float
    exposed: float
    hidden: float
    stretched: float
    spans: tuple[Span, ...]


def compute(name: str, seconds: float, *after: str, slowed: float = 0.0) -> StreamOp:
    """A compute operation; `priced` gives `seconds` and `slowed` of a ledger."""
    return StreamOp(name, COMPUTE, seconds, after, slowed)


def communication(name: str, time: NetTime, *after: str) -> StreamOp:
    """A communication operation from its time on the network."""
    return StreamOp(name, COMM, float(time.seconds), after, sms=time.sms)


def schedule(ops: Sequence[StreamOp]) -> Overlap:
    """Run the operations; each stream in the order in which its own stand in `ops`.

    Raises:
        UserError: a name twice, a dependency that does not exist, an unknown stream, a time below
            zero, or operations that wait for one another for ever.
    """
    _check(ops)
    queues = {stream: [op for op in ops if op.stream == stream] for stream in STREAMS}
    place = dict.fromkeys(STREAMS, 0)
    done: set[str] = set()
    left: dict[str, float] = {}  # of what runs now: seconds of its own still to do
    start: dict[str, float] = {}
    spans: list[Span] = []
    now = busy_compute = busy_comm = hidden = 0.0
    while len(done) < len(ops):
        running = []
        for stream in STREAMS:
            if place[stream] < len(queues[stream]):
                op = queues[stream][place[stream]]
                if op.name in left or all(name in done for name in op.after):
                    left.setdefault(op.name, op.seconds)
                    start.setdefault(op.name, now)
                    running.append(op)
        if not running:
            waiting = [q[place[s]].name for s, q in queues.items() if place[s] < len(q)]
            raise UserError(f"{', '.join(waiting)}: never start: each waits for a later operation")
        pace = _paces(running)
        step = min(left[op.name] / pace[op.name] for op in running)
        now += step
        kinds = {op.stream for op in running}
        busy_compute += step if COMPUTE in kinds else 0.0
        busy_comm += step if COMM in kinds else 0.0
        hidden += step if len(kinds) == 2 else 0.0
        for op in running:
            if left[op.name] / pace[op.name] <= step:
                del left[op.name]
                done.add(op.name)
                place[op.stream] += 1
                spans.append(Span(op.name, op.stream, start[op.name], now))
            else:
                left[op.name] -= step * pace[op.name]
    spans.sort(key=lambda span: (span.start, span.end))
    alone = sum(op.seconds for op in queues[COMPUTE])
    return Overlap(
        now, busy_compute, busy_comm, busy_comm - hidden, hidden,
        max(0.0, busy_compute - alone), tuple(spans),
    )  # fmt: skip


def _paces(running: Sequence[StreamOp]) -> dict[str, float]:
    """Seconds of own work that each running operation does a second."""
    held = any(op.stream == COMM and op.sms > 0 for op in running)
    return {
        op.name: op.seconds / op.slowed if held and op.stream == COMPUTE and op.slowed else 1.0
        for op in running
    }


def _check(ops: Sequence[StreamOp]) -> None:
    names = Counter(op.name for op in ops)
    for name, count in names.items():
        if count > 1:
            raise UserError(f"operation {name!r} is there {count} times")
    for op in ops:
        if op.stream not in STREAMS:
            raise UserError(f"operation {op.name!r}: stream {op.stream!r}: {' or '.join(STREAMS)}")
        if not 0 <= op.seconds < float("inf"):
            raise UserError(f"operation {op.name!r}: {op.seconds} seconds")
        if op.slowed and op.slowed < op.seconds:
            raise UserError(
                f"operation {op.name!r}: slowed to {op.slowed} s is quicker than {op.seconds} s"
            )
        for name in op.after:
            if name not in names:
                raise UserError(f"operation {op.name!r} waits for {name!r}, which is not there")


def interleave(*chains: Iterable[StreamOp], lead: int = 0) -> list[StreamOp]:
    """Chains that each run in order, taking turns: micro-batches, or F and B of DualPipe.

    Every operation waits for the one before it in its chain; the streams take the first of each
    chain, the second of each, and so on, so that one chain computes while another is on the wire.
    `lead`: turns that each chain is ahead of the one behind it.
    """
    linked: list[list[StreamOp | None]] = []
    for number, chain in enumerate(chains):
        ops = list(chain)
        linked.append([
            *[None] * (lead * number),
            *(replace(op, after=(*op.after, ops[i - 1].name)) if i else op
              for i, op in enumerate(ops)),
        ])  # fmt: skip
    turns = itertools.zip_longest(*linked)
    return [op for turn in turns for op in turn if op is not None]


def priced(
    ledger: Ledger, chip: Chip, timing: Timing | None = None, *, sms: float = 0.0
) -> tuple[float, float]:
    """Seconds of a ledger alone, and with `sms` more SMs reserved for communication.

    Raises:
        UserError: communication that would take all SMs.
    """
    timing = timing or Timing()
    held = timing.reserved_sms + sms
    if chip.sm_count is not None and held >= chip.sm_count:
        raise UserError(f"{held:g} SMs for communication: {chip.name} has {chip.sm_count}")
    alone = time_ledger(ledger, chip, timing).step
    slowed = time_ledger(ledger, chip, replace(timing, reserved_sms=held)).step
    return alone, max(alone, slowed)
