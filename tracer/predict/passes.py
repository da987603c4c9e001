"""A rank's program as two streams: stretches of compute and the messages between them, in order.

One layer, or one stage, of one micro-batch. The forward and the backward are chains of `Segment`s
as the trace has them; which of the messages hide behind compute is for the caller to say.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..capture.records import BACKWARD, FORWARD, OPTIMIZER, RECOMPUTE
from ..cost import Ledger
from ..cost.onepass import CAST
from ..cost.work import COLLECTIVE, GROUPED_GEMM, Cost
from ..machine import Timing, time_ledger
from ..machine.roofline import KernelTime
from ..parallel.expert_exchange import dispatch
from ..parallel.expert_traffic import Routing, token_bytes
from ..parallel.groups import Group
from ..parallel.network import NetTime, Network
from .weight_ops import weight_gradients

COMPUTE = ""
DEEPEP_DTYPES = {"uint8": "fp8", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


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


class Message(NamedTuple):
    """A collective of a rank's program: its op, its group, bytes of all launches, and the dtypes of
    what it sends and of what the collective before it sent ("" for the first).
    """

    name: str
    axis: str
    nbytes: float
    launches: int
    dtype: str
    before: str

    @property
    def reduces(self) -> bool:
        """Whether gradients are summed by it."""
        over_data = self.axis in ("dp", "edp", "stage")
        return over_data and _COLLECTIVES[self.name] in ("reduce_scatter", "all_reduce")


@dataclass(frozen=True)
class Links:
    """How a plan's groups lie in a cluster, and how expert-parallel ranks exchange tokens.

    Attributes:
        network: of the cluster.
        groups: by axis.
        routing: of the model's experts; None without.
        kernel: of the exchange, "normal" or "low_latency" (DeepEP's), or "nccl": one all-to-all.
        skew: rows of the busiest expert-parallel rank over the mean: what all ranks wait for.
    """

    network: Network
    groups: Mapping[str, Group]
    routing: Routing | None = None
    kernel: str = "normal"
    skew: float = 1.0

    def time(self, message: Message) -> NetTime | None:
        """One launch of a collective; None where it sends nothing of its own.

        The counts of rows and the FP32 scales of FP8 rows travel with the rows in DeepEP's kernels:
        they cost nothing of their own there.
        """
        axis, dtype = message.axis, message.dtype
        group = self.groups.get(axis)
        if group is None or group.ranks == 1:
            return None
        one = message.nbytes / message.launches
        exchange = axis == "ep" and message.name == "all_to_all_single" and self.kernel != "nccl"
        if exchange and self.routing is not None:
            if dtype.startswith("int") or (dtype == "float32" and message.before == "uint8"):
                return None
            precision = DEEPEP_DTYPES.get(dtype, "bf16")
            per = {"uint8": 1.0}.get(dtype, token_bytes(1, precision))
            return dispatch(
                self.network, one / (self.routing.top_k * per), 1, self.routing, group,
                kernel=self.kernel, precision=precision, skew=self.skew,
            )  # fmt: skip
        return self.network.time(_COLLECTIVES[message.name], one, group)


_COLLECTIVES = {
    "all_reduce": "all_reduce", "all_reduce_": "all_reduce", "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather", "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all", "broadcast": "broadcast", "isend": "send", "irecv": "send",
    "_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter",
    "allreduce_": "all_reduce", "alltoall_base_": "all_to_all",
}  # fmt: skip


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


class Source(NamedTuple):
    """A program within `Passes`, and what `Clocked.pieces` takes; `sign` is -1 if taken off."""

    clocked: Clocked
    links: Links
    sign: int = 1


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
        slowed = {kernel: k.total for kernel, k in timed.items()}
        if any(k.kind == COLLECTIVE for k in ledger.kernels):
            held = replace(timing, reserved_sms=timing.reserved_sms + network.cluster.comm_sms)
            away = time_ledger(ledger, chip, held)
            slowed = {id(k.kernel): k.total for k in away.kernels}
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
                    direction, kernel.launches, None, time.total, slowed[id(kernel)], makes,
                    kernel.kind, once, kernel.phase, time.works, min(time.launch, time.total),
                    time.matrix, _ops(time, ledger),
                ))  # fmt: skip

    def _goes_through(self, name: str, axis: str, nbytes: float, direction: str) -> bool:
        """Whether a message is one of the passes': notes what stages and data ranks exchange."""
        if axis == "pp":
            if name == "isend":
                self.hops[direction] += nbytes
            return False
        over_data = direction == OPTIMIZER or axis in ("dp", "edp", "stage")
        if over_data and _COLLECTIVES[name] in ("reduce_scatter", "all_reduce"):
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
            _unfolded(chains[FORWARD]), _unfolded(chains[BACKWARD]), once, self.hops[FORWARD],
            self.hops[BACKWARD], self.cost, self.reduced, self.optimizer, launches,
            (Source(self, links),),
        )  # fmt: skip

    def pieces(self, links: Links) -> Iterator[Piece]:
        """Kernels and messages of a micro-batch in order."""
        for item in self.launches:
            if item.message is not None:
                time, segment = links.time(item.message), Segment(item.message.axis, 0.0)
                if time is not None:
                    total = item.launches * float(time.seconds)
                    segment = Segment(item.message.axis, total, sms=time.sms)
                yield Piece(item, segment, time)
                continue
            factor = links.skew if item.kind == GROUPED_GEMM else 1.0
            seconds, slowed = item.seconds * factor, item.slowed * factor
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


def _unfolded(chain: Iterable[tuple[Segment, int]]) -> Chain:
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
