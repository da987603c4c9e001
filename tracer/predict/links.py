"""A plan's messages on a cluster: which group each goes through, and what one launch takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..machine.uneven import Uneven
from ..parallel.expert_exchange import NORMAL, dispatch
from ..parallel.expert_traffic import Routing, Spread, token_bytes
from ..parallel.groups import Group
from ..parallel.network import NetTime, Network

DEEPEP_DTYPES = {"uint8": "fp8", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
OVER_DATA = ("dp", "edp", "stage")  # axes whose ranks share parameters
COLLECTIVES = {
    "all_reduce": "all_reduce", "all_reduce_": "all_reduce", "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather", "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all", "broadcast": "broadcast", "isend": "send", "irecv": "send",
    "_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter",
    "allreduce_": "all_reduce", "alltoall_base_": "all_to_all",
}  # fmt: skip


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
        over_data = self.axis in OVER_DATA
        return over_data and COLLECTIVES[self.name] in ("reduce_scatter", "all_reduce")


class RankLoad(NamedTuple):
    """The expert-parallel rank that all others wait for, and what a token sends.

    Attributes:
        rows: of that rank over the mean.
        read: experts that it reads weights of over those that even routing makes it read.
        sent: tokens that reach it over the mean, for kernels that send a token once a rank.
        copies: of a token; None: those of even routing of the model's own gate.
    """

    rows: float = 1.0
    read: float = 1.0
    sent: float = 1.0
    copies: Spread | None = None

    @property
    def uneven(self) -> Uneven:
        """What it changes in the kernels of the rank."""
        return Uneven(self.rows, self.read)


EVEN_LOAD = RankLoad()


@dataclass(frozen=True)
class Links:
    """How a plan's groups lie in a cluster, and how expert-parallel ranks exchange tokens.

    Attributes:
        network: of the cluster.
        groups: by axis.
        routing: of the model's experts; None without.
        kernel: of the exchange, "normal" or "low_latency" (DeepEP's), or "nccl": one all-to-all.
        load: of the expert-parallel rank that all others wait for.
    """

    network: Network
    groups: Mapping[str, Group]
    routing: Routing | None = None
    kernel: str = "normal"
    load: RankLoad = EVEN_LOAD

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
        exchange = axis == "ep" and message.name == "all_to_all_single"
        if exchange and self.kernel != "nccl" and self.routing is not None:
            if dtype.startswith("int") or (dtype == "float32" and message.before == "uint8"):
                return None
            precision = DEEPEP_DTYPES.get(dtype, "bf16")
            per = {"uint8": 1.0}.get(dtype, token_bytes(1, precision))
            skew = self.load.sent if self.kernel == NORMAL else self.load.rows
            return dispatch(
                self.network, one / (self.routing.top_k * per), 1, self.routing, group,
                kernel=self.kernel, precision=precision, skew=skew, copies=self.load.copies,
            )  # fmt: skip
        time = self.network.time(COLLECTIVES[message.name], one, group)
        if exchange and not dtype.startswith("int"):
            moving = self.load.rows * (time.seconds - time.latency)
            time = time._replace(seconds=time.latency + moving)
        return time
