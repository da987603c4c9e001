"""Messages of a plan's step by kind, and how much of each nothing hides."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..capture.records import BACKWARD, FORWARD
from ..parallel import overlap
from ..parallel.groups import Group
from ..parallel.network import NetTime
from .links import DEEPEP_DTYPES
from .opcost import pieces_of
from .passes import Chain, Passes

BETWEEN, END = "between stages", "end of the step"
_NAMES = {"normal": "DeepEP normal", "low_latency": "DeepEP low latency"}


@dataclass(frozen=True)
class Sent:
    """Messages of one kind in a step, as one GPU sends them: the mean over a pipeline's ranks.

    Attributes:
        part: "forward", "backward", `BETWEEN` or `END`.
        axis: the group's: "tp", "ep", "cp", "dp", "edp", "stage", "pp".
        collective, dtype: what is called, on elements of which type.
        group: its ranks and the domains they lie in.
        algorithm: what the library runs; "" where nobody chose.
        calls: in a step.
        bytes: that a rank hands over; None where only the seconds are known.
        links, nic: bytes that it sends over scale-up links and through its NIC.
        seconds, exposed: all of them, and those behind which no compute runs.
    """

    part: str
    axis: str
    collective: str
    dtype: str
    group: Group
    algorithm: str
    calls: float
    bytes: float | None
    links: float
    nic: float
    seconds: float
    exposed: float = field(default=0.0)

    @property
    def hidden(self) -> float:
        """Seconds behind compute."""
        return self.seconds - self.exposed

    @property
    def kind(self) -> tuple[str, ...]:
        """What makes two of them one row."""
        return self.part, self.axis, self.collective, self.dtype, self.algorithm

    def scaled(self, factor: float) -> Sent:
        """`factor` times as many."""
        return replace(
            self, calls=factor * self.calls,
            bytes=None if self.bytes is None else factor * self.bytes, links=factor * self.links,
            nic=factor * self.nic, seconds=factor * self.seconds, exposed=factor * self.exposed,
        )  # fmt: skip


def merged(sent: Iterable[Sent]) -> tuple[Sent, ...]:
    """One row a kind, in order; kinds that cancel are left out."""
    found: dict[tuple[str, ...], Sent] = {}
    for s in sent:
        known = found.get(s.kind)
        if known is None:
            found[s.kind] = s
            continue
        whole = None if known.bytes is None or s.bytes is None else known.bytes + s.bytes
        found[s.kind] = replace(
            known, calls=known.calls + s.calls, bytes=whole, links=known.links + s.links,
            nic=known.nic + s.nic, seconds=known.seconds + s.seconds,
            exposed=known.exposed + s.exposed,
        )  # fmt: skip
    return tuple(s for s in found.values() if s.seconds > 1e-12)


def of_time(part: str, axis: str, collective: str, dtype: str, group: Group, nbytes: float,
            time: NetTime, calls: float = 1.0) -> Sent:  # fmt: skip
    """`calls` of a message that takes `time`, all exposed."""
    one, algorithm = float(time.seconds), str(time.algorithm)
    return Sent(
        part, axis, collective, dtype, group, _NAMES.get(algorithm, algorithm), 1.0, float(nbytes),
        float(time.volume_intra), float(time.volume_inter), one, one,
    ).scaled(calls)  # fmt: skip


def messages_of(passes: Passes, groups: Mapping[str, Group]) -> tuple[Sent, ...]:
    """Of one micro-batch, all exposed.

    What sends nothing of its own (counts and scales that travel with rows) is left out. Messages
    that a rank's trace does not show, but whose seconds are in `passes`, are one row an axis.
    """
    found = []
    for source, piece in pieces_of(passes):
        message = piece.launch.message
        if message is None or piece.time is None:
            continue
        found.append(of_time(
            piece.launch.direction, message.axis, message.name,
            DEEPEP_DTYPES.get(message.dtype, message.dtype), source.links.groups[message.axis],
            message.nbytes / message.launches, piece.time, source.sign * message.launches,
        ))  # fmt: skip
    rows = merged(found)
    more = []
    for direction in (FORWARD, BACKWARD):
        for axis, seconds in passes.messages(direction).items():
            rest = seconds - sum(s.seconds for s in rows if (s.part, s.axis) == (direction, axis))
            if rest > 1e-9:
                group = groups.get(axis, Group(1, 1))
                more.append(Sent(direction, axis, "not traced", "", group, "", 0.0, None, 0.0, 0.0,
                                 rest, rest))  # fmt: skip
    return (*rows, *more)


def exposed_alone(passes: Passes, direction: str, beside: tuple[str, ...]) -> dict[str, float]:
    """Exposed seconds by axis of a pass with nothing else beside it.

    Messages of the axes `beside` hide behind its own compute as far as that reaches.
    """
    messages = passes.messages(direction)
    exposed, _, hides = passes.beside(direction, beside)
    left = exposed / hides if hides else 0.0
    return {axis: s * (left if axis in beside else 1.0) for axis, s in messages.items()}


def exposed_together(
    run: overlap.Overlap, chains: Mapping[str, Chain]
) -> dict[tuple[str, str], float]:
    """Exposed seconds by (chain, axis) of chains on two streams, as `pipeline.two_streams` names
    their operations: the chain's key and a number.
    """
    busy = sorted((s.start, s.end) for s in run.spans if s.stream == overlap.COMPUTE)
    starts = [start for start, _ in busy]
    found: dict[tuple[str, str], float] = {}
    for span in run.spans:
        if span.stream != overlap.COMM:
            continue
        covered, place = 0.0, max(bisect.bisect_right(starts, span.start) - 1, 0)
        while place < len(busy) and busy[place][0] < span.end:
            covered += max(min(busy[place][1], span.end) - max(busy[place][0], span.start), 0.0)
            place += 1
        key = span.name[0], chains[span.name[0]][int(span.name[1:])].axis
        found[key] = found.get(key, 0.0) + (span.end - span.start) - covered
    return found


def spread(rows: Iterable[Sent], exposed: Mapping[tuple[str, str], float]) -> list[Sent]:
    """Rows with the exposed seconds of their (part, axis) shared by their seconds."""
    rows = list(rows)
    whole: dict[tuple[str, str], float] = {}
    for s in rows:
        whole[s.part, s.axis] = whole.get((s.part, s.axis), 0.0) + s.seconds
    found = []
    for s in rows:
        share = exposed.get((s.part, s.axis), 0.0) / whole[s.part, s.axis]
        near = round(share)  # all or nothing, but for rounding
        found.append(replace(s, exposed=s.seconds * (near if abs(share - near) < 1e-9 else share)))
    return found
