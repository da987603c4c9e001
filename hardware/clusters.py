"""Reads `clusters/<id>.toml`: how chips are joined, in two levels, as strictly as the chips.

A cluster is domains (NVLink nodes or racks) in which every chip reaches every other over the
scale-up links, joined by a network in which each domain has so many NICs. Leaf switches serve a few
domains each; a message to a domain of another leaf crosses the spine.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tracer.errors import UserError

from .loader import Chip, ChipError, load_chip
from .tables import Format, choose, read_all

CLUSTERS = Path(__file__).parent / "clusters"


class ClusterError(UserError):
    """A cluster file that does not hold together, or one that does not exist."""


_SECONDS = (1e-9, 1e-3, "write seconds (2.8e-6, not 2.8)")
_COUNT = (1.0, math.inf, "")

FORMAT = Format(
    error=ClusterError,
    texts=(("name", "chip", "fabric"), ("note",)),
    sections={
        "domain": (("chips", "bandwidth", "latency"), ("pair", "multicast")),
        "nic": (("count", "bandwidth", "share"), ()),
        "network": (("leaf", "same_leaf", "cross_leaf"), ("chunk",)),
        "size": (("chips",), ()),
        "communication": (("sms",), ()),
        "price": (("chip_hour",), ()),
    },
    required=("domain", "nic", "network", "size", "communication"),
    others=("aliases",),
    counts=("domain.chips", "nic.count", "network.leaf", "size.chips", "communication.sms"),
    ranges={
        "domain.chips": _COUNT,
        "nic.count": _COUNT,
        "network.leaf": _COUNT,
        "size.chips": _COUNT,
        "communication.sms": _COUNT,
        "domain.latency": _SECONDS,
        "domain.multicast": _SECONDS,
        "network.same_leaf": _SECONDS,
        "network.cross_leaf": _SECONDS,
        "network.chunk": _SECONDS,
        "nic.share": (0.0, 1.0, "write a share of the line rate, at most 1"),
        "price.chip_hour": (0.01, 1000.0, "write USD an hour of one chip (2.0)"),
    },
    floor=(1e6, "write B/s (50e9, not 50 or 400)"),
)


@dataclass(frozen=True)
class Cluster:
    """Chips in scale-up domains, joined by a network. SI base units; bandwidths are one way.

    Attributes:
        chip: the chip, its own datasheet with it.
        domain: chips of one scale-up domain (8 a DGX node, 72 an NVL72 rack).
        link_bandwidth: scale-up B/s of one chip.
        pair_bandwidth: scale-up B/s between two chips where links lead from each to each; None
            where a switch gives any pair all of `link_bandwidth`.
        link_latency: s, 64 bytes to another chip of the domain, end to end.
        multicast_latency: s of a collective that the domain's switch carries out; None without.
        nics: NICs of one domain (as many rails, where the network is built in rails).
        nic_rate: B/s of one NIC at line rate.
        nic_share: share of it that long messages reach.
        leaf: domains under one leaf switch (of each rail).
        same_leaf, cross_leaf: s, 64 bytes to a chip of another domain, end to end.
        chunk_latency: s of one step of a chunked protocol over the network (NVLS trees).
        largest: chips that the cluster, or the reference design, goes up to.
        comm_sms: SMs that communication kernels hold while they run.
        chip_hour: USD an hour of one chip where a public source says so, else None.
        sources: dotted key of every number -> where it is from.
    """

    id: str
    name: str
    fabric: str
    chip: Chip
    domain: int
    link_bandwidth: float
    pair_bandwidth: float | None
    link_latency: float
    multicast_latency: float | None
    nics: int
    nic_rate: float
    nic_share: float
    leaf: int
    same_leaf: float
    cross_leaf: float
    chunk_latency: float | None
    largest: int
    comm_sms: int
    chip_hour: float | None = None
    note: str = ""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    aliases: tuple[str, ...] = ()

    @property
    def nic_bandwidth(self) -> float:
        """Line rate of the network for one chip when all chips of a domain send, B/s one way."""
        return self.nics * self.nic_rate / self.domain

    def wire(self, domains: int) -> float:
        """Seconds that 64 bytes take between domains that lie among `domains` neighbours."""
        return self.same_leaf if domains <= self.leaf else self.cross_leaf


def cluster_ids() -> list[str]:
    """The ids of the bundled clusters, sorted. Lists file names only: nothing is parsed."""
    return sorted(path.stem for path in CLUSTERS.glob("*.toml"))


def load_cluster(id_or_path: str | os.PathLike[str]) -> Cluster:
    """A bundled cluster by id or alias, or one of your own by the path of its .toml file.

    Names match whatever their case and separators, and paths are told from names, as for chips.

    Raises:
        ClusterError: no such cluster, or a file that is missing, malformed, incomplete, unsourced,
            or names a chip that does not exist.
    """
    if not isinstance(id_or_path, str) or id_or_path.lower().endswith(".toml"):
        return read_cluster(Path(id_or_path))
    found: Cluster = choose(id_or_path, load_directory(CLUSTERS), ClusterError, "cluster")
    return found


@functools.cache
def load_directory(directory: Path) -> dict[str, Cluster]:
    """Every cluster of a folder by id, its ids and aliases checked against one another.

    Raises:
        ClusterError: as `read_cluster`, or two files that claim one name.
    """
    return read_all(directory, read_cluster, ClusterError)


def read_cluster(path: Path) -> Cluster:
    """One cluster file, checked in full; its id is the file's name without .toml.

    A chip given as a .toml path is looked for beside the cluster file.

    Raises:
        ClusterError: one line with the file and the key at fault.
    """
    data = FORMAT.parse(path)
    text = FORMAT.all_texts(path, data)
    figures, sources = FORMAT.figures(path, data)
    given = text["chip"]
    try:
        chip = load_chip(path.parent / given if given.lower().endswith(".toml") else given)
    except ChipError as error:
        raise FORMAT.fault(path, "chip", str(error)) from None
    domain, nic, network = figures["domain"], figures["nic"], figures["network"]
    if network["same_leaf"] > network["cross_leaf"]:
        what = "must not be above network.cross_leaf, which passes more switches"
        raise FORMAT.fault(path, "network.same_leaf", what)
    if figures["size"]["chips"] < domain["chips"]:
        raise FORMAT.fault(path, "size.chips", "must hold one domain at least (domain.chips)")
    held = figures["communication"]["sms"]
    if chip.sm_count is not None and held >= chip.sm_count:
        what = f"{held:g} leave none of the {chip.sm_count} that {chip.name} has"
        raise FORMAT.fault(path, "communication.sms", what)
    return Cluster(
        id=path.stem,
        name=text["name"],
        fabric=text["fabric"],
        chip=chip,
        domain=int(domain["chips"]),
        link_bandwidth=domain["bandwidth"],
        pair_bandwidth=domain.get("pair"),
        link_latency=domain["latency"],
        multicast_latency=domain.get("multicast"),
        nics=int(nic["count"]),
        nic_rate=nic["bandwidth"],
        nic_share=nic["share"],
        leaf=int(network["leaf"]),
        same_leaf=network["same_leaf"],
        cross_leaf=network["cross_leaf"],
        chunk_latency=network.get("chunk"),
        largest=int(figures["size"]["chips"]),
        comm_sms=int(figures["communication"]["sms"]),
        chip_hour=figures.get("price", {}).get("chip_hour"),
        note=text.get("note", ""),
        sources=sources,
        aliases=FORMAT.aliases(path, data),
    )
