"""How the ranks of one communicator lie in a cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tracer.hardware import Cluster

from ..errors import UserError


@dataclass(frozen=True)
class Group:
    """Ranks of one communicator: `per_domain` of them in each scale-up domain but the last ones.

    Attributes:
        ranks: all of them.
        per_domain: most ranks in one domain.
        domains: domains that have ranks of it; from `ranks` and `per_domain` if left out.
        span: domains from the first to the last, others between them included: whether messages
            cross the spine. `domains` if left out.
    """

    ranks: int
    per_domain: int
    domains: int = 0
    span: int = 0

    def __post_init__(self) -> None:
        for name in ("ranks", "per_domain"):
            value = getattr(self, name)
            if value < 1 or value != int(value):
                raise UserError(f"group: {name}={value}: give a whole number, at least 1")
        if self.per_domain > self.ranks:
            object.__setattr__(self, "per_domain", self.ranks)
        needed = -(-self.ranks // self.per_domain)
        object.__setattr__(self, "domains", self.domains or needed)
        object.__setattr__(self, "span", self.span or self.domains)
        if not needed <= self.domains <= self.ranks:
            raise UserError(
                f"group: {self.ranks} ranks, {self.per_domain} a domain, do not lie in "
                f"{self.domains} domains: give {needed} to {self.ranks}"
            )
        if self.span < self.domains:
            raise UserError(f"group: span={self.span}: at least its {self.domains} domains")

    @property
    def fewest(self) -> int:
        """Ranks that every domain has at least: the NICs a domain can count on for one message."""
        return max(1, self.ranks - self.per_domain * (self.domains - 1))


def packed(ranks: int, cluster: Cluster) -> Group:
    """`ranks` neighbours that fill one domain after the other (TP, EP)."""
    return strided(ranks, 1, cluster)


def strided(ranks: int, stride: int, cluster: Cluster) -> Group:
    """Ranks 0, stride, 2 stride, ... of a numbering that fills domains (DP, PP over TP groups).

    Raises:
        UserError: a group that the cluster is too small for.
    """
    if ranks < 1 or stride < 1:
        raise UserError(f"group: {ranks} ranks with stride {stride}: give at least 1 of each")
    needed = (ranks - 1) * stride + 1
    if needed > cluster.largest:
        raise UserError(
            f"group: {ranks} ranks with stride {stride} need {needed:,} chips; "
            f"{cluster.name} ({cluster.id}) goes up to {cluster.largest:,}"
        )
    held = Counter(rank * stride // cluster.domain for rank in range(ranks))
    return Group(ranks, max(held.values()), len(held), max(held) + 1)
