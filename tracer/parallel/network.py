"""Seconds of collectives of a group of ranks on a cluster.

Alpha-beta forms: so many steps, each with a latency, and bytes over the slowest of links and NICs.
Within one scale-up domain they are the measured ones of `machine/kernels/collectives.py`; over
several domains the algorithms of NCCL (ring, tree, NVLS tree) and the hierarchical composition, of
which a library takes the quickest. Not modelled: congestion, in-network sums of InfiniBand
switches (SHARP), the choice between protocols within a message.

Sizes may be arrays; they broadcast. A group of one rank costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tracer.hardware import Chip, Cluster, load_cluster

from ..errors import UserError
from ..machine.calibration import calibration_of, network_constants
from ..machine.kernels import Collective, ExpertExchange, Num, Rates
from ..machine.kernels.collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    BROADCAST,
    MULTICAST_RANKS,
    REDUCE_SCATTER,
    SEND,
    collective,
    cost_of,
    traffic,
    transfer,
)
from .groups import Group

RING, TREE, NVLS, NVLS_TREE, PAT = "ring", "tree", "nvls", "nvls_tree", "pat"
HIERARCHICAL, DIRECT, NOTHING = "hierarchical", "direct", "none"
ALGORITHMS = (RING, TREE, NVLS, NVLS_TREE, PAT, HIERARCHICAL)


class NetTime(NamedTuple):
    """One communication of one rank.

    Attributes:
        seconds: from launch to end.
        latency: the part of it that moves no bytes.
        volume_intra: bytes that a rank sends over scale-up links.
        volume_inter: bytes that a rank sends through its NIC.
        algorithm: what the library runs (an array of names where sizes are an array).
        sms: SMs that the kernel holds while it runs.
    """

    seconds: Any
    latency: Any
    volume_intra: Any
    volume_inter: Any
    algorithm: Any
    sms: float = 0.0


FREE = NetTime(0.0, 0.0, 0.0, 0.0, NOTHING)


@dataclass(frozen=True)
class Network:
    """A cluster with the constants that its collectives are priced with.

    Attributes:
        constants: the scale-up domain's, measured on the chip `origin` names.
        experts: those of DeepEP's kernels, measured on the chip `experts_origin` names.
        rates: the chip's figures, with the cluster's links.
        algorithms: those that the library may choose from where it has a choice. NCCL alone has
            all but the hierarchical one, which frameworks compose.
    """

    cluster: Cluster
    constants: Collective
    experts: ExpertExchange
    rates: Rates
    origin: str
    experts_origin: str
    algorithms: tuple[str, ...] = ALGORITHMS

    @property
    def nic(self) -> float:
        """B/s that long messages of one rank reach through the network."""
        return float(self.cluster.nic_bandwidth * self.cluster.nic_share)

    def notes(self) -> list[str]:
        """What the seconds rest on, a line each."""
        cluster = self.cluster
        lines = []
        for what, origin in (
            ("collectives in a domain", self.origin),
            ("expert exchange", self.experts_origin),
        ):
            own = origin == cluster.chip.id
            lines.append(f"{cluster.name}: {what}: constants of {'its chip' if own else origin}")
        lines.append(
            f"{cluster.name}: network: {cluster.nic_share:.0%} of {cluster.nic_bandwidth / 1e9:g} "
            f"GB/s a chip, {cluster.same_leaf * 1e6:g} us ({cluster.cross_leaf * 1e6:g} us across "
            "leaves) a step"
        )
        if cluster.note:
            lines.append(f"{cluster.name}: {' '.join(cluster.note.split())}")
        return lines

    def all_reduce(self, nbytes: Num, group: Group) -> NetTime:
        """Sum of `nbytes` over all ranks, on all ranks."""
        return self.time(ALL_REDUCE, nbytes, group)

    def all_gather(self, nbytes: Num, group: Group) -> NetTime:
        """All parts on all ranks; `nbytes` is the whole result."""
        return self.time(ALL_GATHER, nbytes, group)

    def reduce_scatter(self, nbytes: Num, group: Group) -> NetTime:
        """A part of the sum on every rank; `nbytes` is the whole input."""
        return self.time(REDUCE_SCATTER, nbytes, group)

    def all_to_all(self, nbytes: Num, group: Group) -> NetTime:
        """Every rank sends an equal part of its `nbytes` to every rank, itself included."""
        return self.time(ALL_TO_ALL, nbytes, group)

    def broadcast(self, nbytes: Num, group: Group) -> NetTime:
        """`nbytes` of one rank on all ranks."""
        return self.time(BROADCAST, nbytes, group)

    def send(self, nbytes: Num, group: Group) -> NetTime:
        """`nbytes` from one rank of a group of two to the other (pipeline stages)."""
        if group.ranks > 2:
            raise UserError(f"send: a group of {group.ranks} ranks; give the two that exchange")
        return self.time(SEND, nbytes, group)

    def time(self, op: str, nbytes: Num, group: Group) -> NetTime:
        """Seconds of a collective by name: the quickest algorithm that the cluster has.

        Raises:
            UserError: a group with more ranks in a domain than the cluster's domains have, or
                more than it has altogether; sizes below zero.
        """
        self.check(group)
        if np.any(np.less(nbytes, 0)):
            raise UserError(f"{op}: message sizes below zero: {nbytes!r}")
        if group.ranks == 1:
            nothing = np.zeros(np.shape(nbytes))
            return FREE if np.ndim(nbytes) == 0 else FREE._replace(seconds=nothing)
        size = np.asarray(nbytes, dtype=np.float64)
        ways = self._within(op, size, group.ranks) if group.domains == 1 else (
            self._across(op, size, group)
        )  # fmt: skip
        return self._choose(ways)._replace(sms=float(self.cluster.comm_sms))

    def check(self, group: Group) -> None:
        """Refuse a group that does not fit the cluster."""
        c = self.cluster
        if group.per_domain > c.domain:
            raise UserError(
                f"group: {group.per_domain} ranks in one domain; those of {c.name} ({c.id}) have "
                f"{c.domain} chips"
            )
        if group.ranks > c.largest:
            raise UserError(
                f"group: {group.ranks:,} ranks; {c.name} ({c.id}) goes up to {c.largest:,} chips"
            )

    def _choose(self, ways: Sequence[NetTime]) -> NetTime:
        """The quickest of those that the library may run: the first is there on any hardware."""
        allowed = [way for way in ways if way.algorithm in self.algorithms]
        return quickest(allowed or ways[:1])

    def links(self, ranks: int) -> Rates:
        """The chip's figures with the links that lead to the others of `ranks` in its domain."""
        pair = self.cluster.pair_bandwidth
        if pair is None:
            return self.rates
        return self.rates._replace(link=min(self.rates.link, pair * max(1, ranks - 1)))

    def _switched(self, op: str, ranks: int) -> bool:
        """Whether the domain's switch carries this out: NVLS, from four ranks on."""
        adds = op in (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER)
        return adds and self.rates.switch and ranks >= MULTICAST_RANKS and NVLS in self.algorithms

    def _within(self, op: str, size: Num, ranks: int) -> list[NetTime]:
        """Ways to run it in one domain: as measured, and in the switch's constant latency."""
        c, moved = self.constants, traffic(op, ranks)
        switched = self._switched(op, ranks)
        rates = self.links(ranks)._replace(switch=switched)
        volume = moved.volume
        if op in (ALL_REDUCE, ALL_GATHER):
            found = collective(size, ranks, op == ALL_REDUCE, rates, c)
            if op == ALL_REDUCE and switched:
                volume = 1 + 1 / ranks
        else:
            factor, copies = cost_of(op, ranks, c)
            busy = size * (volume * factor + copies) / (rates.link * c.link)
            wire = self.cluster.link_latency if op == SEND else 0.0
            found = transfer(busy, max(c.launch + c.hop * moved.steps, wire), c)
        name = DIRECT if op in (ALL_TO_ALL, SEND) else RING
        name = NVLS if op == ALL_REDUCE and switched else name
        ways = [NetTime(found.seconds, found.latency, size * volume, 0.0 * size, name)]
        multicast = self.cluster.multicast_latency
        if switched and multicast is not None:
            # The measured latency grows with the ranks, as of the two to eight it was fitted on.
            seconds = found.seconds - found.latency + multicast
            ways.append(NetTime(seconds, multicast, size * volume, 0.0 * size, NVLS))
        return ways

    def _across(self, op: str, size: Num, group: Group) -> list[NetTime]:
        """Ways to run it over several domains."""
        c = self.constants
        ranks, per, domains = group.ranks, group.per_domain, group.domains
        wire, inside = self.cluster.wire(group.span), (per - 1) / per
        whole, between = traffic(op, ranks), traffic(op, domains)
        depth = math.ceil(math.log2(domains))
        latency: Num
        near: Num
        if op in (ALL_TO_ALL, SEND):
            # Straight to each peer: what stays in the domain over links, the rest through the NIC.
            outside = (ranks - group.fewest) / ranks if op == ALL_TO_ALL else 1.0
            near = (per - 1) / ranks if op == ALL_TO_ALL else 0.0
            latency = c.launch + wire + c.hop * (whole.steps - 1)
            return [self._piped(DIRECT, op, size, group, latency, near, outside)]
        # Rings: as many as a domain has NICs, each with a share of the message, through all ranks.
        latency = c.launch + c.hop * (whole.steps - between.steps) + wire * between.steps
        near, far = whole.volume * inside, whole.volume / group.fewest
        ways = [self._piped(RING, op, size, group, latency, near, far)]
        if op == ALL_REDUCE:
            # Two trees, each with half of the message: who has children in one has none in the
            # other and sends half up twice and half down twice. Chains within a domain.
            up = (1.0 if domains == 2 else 2.0) / group.fewest
            latency = c.launch + 2 * (c.hop * (per - 1) + wire * depth)
            ways.append(self._piped(TREE, op, size, group, latency, 2 * inside, up))
            multicast, chunk = self.cluster.multicast_latency, self.cluster.chunk_latency
            if self._switched(op, group.fewest) and multicast is not None and chunk is not None:
                latency = multicast + 2 * depth * max(chunk, wire)
                near = 1 + 1 / per
                ways.append(self._piped(NVLS_TREE, op, size, group, latency, near, up))
        if per == 1 and op in (ALL_GATHER, REDUCE_SCATTER):
            # NCCL's PAT (2.23 and later): as many bytes as the ring in a logarithm of its steps.
            latency = c.launch + wire * depth
            ways.append(self._piped(PAT, op, size, group, latency, 0.0, far))
        if per > 1 and op != BROADCAST:
            ways.append(self._hierarchical(op, size, group))
        return ways

    def _piped(
        self, name: str, op: str, size: Num, group: Group, latency: Num, near: Num, far: Num
    ) -> NetTime:
        """One kernel in which links and NICs work at the same time on `near` and `far` * size."""
        c = self.constants
        factor, copies = cost_of(op, group.ranks, c)
        rates = self.links(group.per_domain)
        link = size * (near * factor + copies) / (rates.link * c.link)
        found = transfer(np.maximum(link, size * far / self.nic), latency, c)
        return NetTime(found.seconds, latency, size * near, size * far, name)

    def _hierarchical(self, op: str, size: Num, group: Group) -> NetTime:
        """Three collectives in a row, or two: in the domain, on each rail, in the domain."""
        rail = Group(group.domains, 1, group.domains, group.span)
        part = size / group.fewest
        within = {
            ALL_REDUCE: (REDUCE_SCATTER, ALL_GATHER),
            REDUCE_SCATTER: (REDUCE_SCATTER,),
            ALL_GATHER: (ALL_GATHER,),
        }[op]
        parts = [self._choose(self._within(name, size, group.per_domain)) for name in within]
        parts.append(self._choose(self._across(op, part, rail)))
        return NetTime(
            sum(x.seconds for x in parts), sum(x.latency for x in parts),
            sum(x.volume_intra for x in parts), sum(x.volume_inter for x in parts), HIERARCHICAL,
        )  # fmt: skip


def quickest(ways: Sequence[NetTime]) -> NetTime:
    """The way with the least seconds, size by size."""
    shape = np.broadcast_shapes(*(np.shape(way.seconds) for way in ways))
    table = np.stack([np.broadcast_to(way.seconds, shape) for way in ways])
    best = table.argmin(axis=0)

    def pick(values: Sequence[Any]) -> Any:
        stacked = np.stack([np.broadcast_to(np.asarray(value), shape) for value in values])
        taken = np.take_along_axis(stacked, best[None], axis=0)[0]
        return taken.item() if taken.ndim == 0 else taken

    seconds, latency, intra, inter, algorithm = (pick([way[i] for way in ways]) for i in range(5))
    return NetTime(seconds, latency, intra, inter, algorithm)


def network_of(cluster: Cluster | str, algorithms: Sequence[str] = ALGORITHMS) -> Network:
    """The network of a cluster, by object, id or path of a .toml file.

    Raises:
        ClusterError: no such cluster.
        UserError: a chip file whose calibration lacks a constant, an unknown algorithm.
    """
    for name in algorithms:
        if name not in ALGORITHMS:
            raise UserError(f"algorithm {name!r}: choose from {', '.join(ALGORITHMS)}")
    found = load_cluster(cluster) if isinstance(cluster, str) else cluster
    chip: Chip = found.chip
    calibration = calibration_of(chip)
    experts, experts_origin = network_constants(chip, "expert_exchange")
    precision = "bf16" if "bf16" in chip.peak else next(iter(chip.peak))
    rates = calibration.rates(precision)._replace(link=found.link_bandwidth)
    return Network(
        found, calibration["collective"], experts, rates, calibration.origin["collective"],
        experts_origin, tuple(algorithms),
    )  # fmt: skip
