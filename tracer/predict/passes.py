"""A rank's program as two streams: stretches of compute and the messages between them, in order.

One layer, or one stage, of one micro-batch. The forward and the backward are chains of `Segment`s
as the trace has them; which of the messages hide behind compute is for the caller to say.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..capture.records import FORWARD
from ..cost.work import Cost

if TYPE_CHECKING:
    from .clocked import Clocked
    from .links import Links

COMPUTE = ""


class Segment(NamedTuple):
    """A stretch of one stream.

    Attributes:
        axis: "" for compute, else the group that a message goes through ("ep", "tp", ...).
        seconds: alone on the chip.
        slowed: of compute, seconds while communication holds its SMs; of a message 0.
        sms: of a message, SMs that it holds.
        weight: whether it makes gradients of weights and of nothing else.
    """

    axis: str
    seconds: float
    slowed: float = 0.0
    sms: float = 0.0
    weight: bool = False


Chain = tuple[Segment, ...]


class Source(NamedTuple):
    """A program within `Passes`, and what `Clocked.pieces` takes; `sign` is -1 if taken off."""

    clocked: Clocked
    links: Links
    sign: int = 1


@dataclass(frozen=True)
class Passes:
    """What a rank runs for one micro-batch.

    Attributes:
        forward, backward: in order; the backward with what it computes again and both gradients.
        once: seconds of compute that a step needs once: weights rounded to FP8, which all of its
            micro-batches share.
        hop, hop_back: bytes that a stage sends on to the next one, and back.
        cost: of the micro-batch, forward and backward.
        reduced: bytes of gradients that are summed over each axis ("dp", "edp", "stage").
        optimizer: seconds of the optimizer's kernels, as traced.
        launches: kernels.
        made_of: the programs that this sums up, for whoever asks for their kernels.
    """

    forward: Chain = ()
    backward: Chain = ()
    once: float = 0.0
    hop: float = 0.0
    hop_back: float = 0.0
    cost: Cost = field(default_factory=Cost)
    reduced: Mapping[str, float] = field(default_factory=dict)
    optimizer: float = 0.0
    launches: int = 0
    made_of: tuple[Source, ...] = field(default=(), repr=False, compare=False)

    def seconds(self, direction: str, *, weight: bool | None = None) -> float:
        """Compute seconds of a direction: all, those of weight gradients, or all others."""
        chain = self.forward if direction == FORWARD else self.backward
        return sum(s.seconds for s in chain if s.axis == COMPUTE and weight in (None, s.weight))

    def messages(self, direction: str) -> dict[str, float]:
        """Seconds of messages of a direction by axis."""
        found: dict[str, float] = {}
        for s in self.forward if direction == FORWARD else self.backward:
            if s.axis != COMPUTE:
                found[s.axis] = found.get(s.axis, 0.0) + s.seconds
        return found

    def beside(self, direction: str, axes: Collection[str]) -> tuple[float, float, float]:
        """Messages of `axes` behind the compute of their own pass, as far as that reaches.

        Returns:
            Seconds that are left exposed, seconds that compute takes longer while they hold SMs,
            and all seconds of those messages.
        """
        chain = self.forward if direction == FORWARD else self.backward
        sent = [s for s in chain if s.axis in axes and s.axis != COMPUTE]
        messages, alone = sum(s.seconds for s in sent), self.seconds(direction)
        slowed = alone  # all of it, if they held their SMs all the while
        if any(s.sms for s in sent):
            slowed = sum(max(s.slowed, s.seconds) for s in chain if s.axis == COMPUTE)
        hidden = min(messages, slowed)
        longer = hidden * (1 - alone / slowed) if slowed else 0.0
        return messages - hidden, longer, messages


def joined(parts: Sequence[Passes]) -> Passes:
    """Parts of one stage in the order of the forward; the backward runs them the other way."""
    reduced: dict[str, float] = {}
    for part in parts:
        for axis, nbytes in part.reduced.items():
            reduced[axis] = reduced.get(axis, 0.0) + nbytes
    return Passes(
        tuple(itertools.chain.from_iterable(p.forward for p in parts)),
        tuple(itertools.chain.from_iterable(p.backward for p in reversed(parts))),
        sum(p.once for p in parts),
        max((p.hop for p in parts), default=0.0),
        max((p.hop_back for p in parts), default=0.0),
        Cost.sum(p.cost for p in parts),
        reduced,
        sum(p.optimizer for p in parts),
        sum(p.launches for p in parts),
        tuple(itertools.chain.from_iterable(p.made_of for p in parts)),
    )


def beyond(whole: Passes, part: Passes) -> Passes:
    """What `whole` has more than `part`: the output head of a last layer, say. One stretch each."""

    def more(a: Chain, b: Chain) -> Chain:
        found = []
        for weight in (False, True):
            x = [s for s in a if s.axis == COMPUTE and s.weight is weight]
            y = [s for s in b if s.axis == COMPUTE and s.weight is weight]
            seconds = max(sum(s.seconds for s in x) - sum(s.seconds for s in y), 0.0)
            slowed = max(sum(s.slowed for s in x) - sum(s.slowed for s in y), seconds)
            if seconds:
                found.append(Segment(COMPUTE, seconds, slowed, weight=weight))
        axes = dict.fromkeys(s.axis for s in a if s.axis != COMPUTE)
        for axis in axes:
            seconds = sum(s.seconds for s in a if s.axis == axis)
            seconds -= sum(s.seconds for s in b if s.axis == axis)
            sms = max(s.sms for s in a if s.axis == axis)
            if seconds > 1e-9:
                found.append(Segment(axis, seconds, sms=sms))
        return tuple(found)

    negative = -1
    reduced = {k: max(v - part.reduced.get(k, 0.0), 0.0) for k, v in whole.reduced.items()}
    return Passes(
        more(whole.forward, part.forward), more(whole.backward, part.backward),
        max(whole.once - part.once, 0.0), 0.0, 0.0,
        whole.cost + negative * part.cost, reduced,
        max(whole.optimizer - part.optimizer, 0.0), max(whole.launches - part.launches, 0),
        (*whole.made_of, *(source._replace(sign=-source.sign) for source in part.made_of)),
    )  # fmt: skip


def unfolded(chain: Iterable[tuple[Segment, int]]) -> Chain:
    """Layers that were folded one after the other again, and neighbours on one stream together."""
    found: list[Segment] = []
    for times, run in itertools.groupby(chain, key=lambda item: item[1]):
        once = [s._replace(seconds=s.seconds / times, slowed=s.slowed / times) for s, _ in run]
        for s in itertools.chain.from_iterable(itertools.repeat(once, times)):
            last = found[-1] if found else None
            if last is not None and last.axis == s.axis and last.weight == s.weight:
                found[-1] = last._replace(
                    seconds=last.seconds + s.seconds, slowed=last.slowed + s.slowed,
                    sms=max(last.sms, s.sms),
                )  # fmt: skip
            elif s.seconds:
                found.append(s)
    return tuple(found)
