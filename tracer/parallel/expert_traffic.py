"""What routed tokens send: expected distinct ranks and domains, exact under uniform routing.

Experts lie in order over the ranks of a group, and in order over routing groups. A token keeps
`groups_kept` of the routing groups, all equally likely, and `top_k` experts out of those, all
equally likely (DeepSeek-V3: 8 of 256 experts out of 4 of 8 groups). Its own rank is any of them.

A gate that keeps the groups with the best experts hits more of them than this: `experts.copies` has
its tokens.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

from ..errors import UserError
from .groups import Group


@dataclass(frozen=True)
class Routing:
    """A router: `top_k` of `experts`, out of `groups_kept` of `groups` equal groups of them.

    With redundant experts, `experts` counts what is placed.
    """

    experts: int
    top_k: int
    groups: int = 1
    groups_kept: int = 1

    def __post_init__(self) -> None:
        if min(self.experts, self.top_k, self.groups, self.groups_kept) < 1:
            raise UserError(f"routing: {self}: give at least 1 of each")
        if self.groups_kept > self.groups:
            raise UserError(f"routing: groups_kept={self.groups_kept} of groups={self.groups}")
        if self.experts % self.groups:
            raise UserError(f"routing: {self.experts} experts in {self.groups} equal groups")
        if self.top_k > self.experts // self.groups * self.groups_kept:
            raise UserError(
                f"routing: top_k={self.top_k} of {self.experts // self.groups * self.groups_kept} "
                f"experts in {self.groups_kept} of {self.groups} groups"
            )

    def miss(self, first: int, last: int) -> float:
        """Chance that a token goes to none of the experts `first` to `last` - 1."""
        size = self.experts // self.groups
        pool = size * self.groups_kept
        # Routing groups that lie in the range as a whole, and up to two that lie in it in part.
        held = [
            min(last, (g + 1) * size) - max(first, g * size)
            for g in range(first // size, -(-last // size))
        ]
        whole = sum(n == size for n in held)
        parts = [n for n in held if n < size]
        rest = self.groups - whole - len(parts)
        chance = 0.0
        for kept in itertools.product((0, 1), repeat=len(parts)):
            for full in range(whole + 1):
                others = self.groups_kept - full - sum(kept)
                if not 0 <= others <= rest:
                    continue
                ways = comb(whole, full) * comb(rest, others)
                inside = full * size + sum(n for n, k in zip(parts, kept, strict=True) if k)
                chance += ways * comb(pool - inside, self.top_k)
        return chance / (comb(self.groups, self.groups_kept) * comb(pool, self.top_k))


class Spread(NamedTuple):
    """Where a token's copies go, expected values.

    Attributes:
        ranks, domains: distinct ones that hold one of its experts, its own among them.
        forwarded: copies over links, one a distinct rank: from where the token is, or where it
            entered the domain (the rank of the same number), to the other ranks.
        crossing: domains that it crosses the network to.
        pairs_forwarded, pairs_crossing: the same with one copy an expert (low-latency kernels).
    """

    ranks: float
    domains: float
    forwarded: float
    crossing: float
    pairs_forwarded: float
    pairs_crossing: float


@functools.cache
def spread(routing: Routing, group: Group) -> Spread:
    """Expected copies of a token of `group`, whose domains fill up one after the other."""
    return expected(routing, group, routing.miss)


def expected(routing: Routing, group: Group, miss: Callable[[int, int], float]) -> Spread:
    """`spread` with the chance of a router's own: `miss(first, last)`, as `Routing.miss`."""
    bounds = [rank * routing.experts // group.ranks for rank in range(group.ranks + 1)]
    hit = [1 - miss(a, b) if b > a else 0.0 for a, b in itertools.pairwise(bounds)]
    ranks = domains = forwarded = crossing = near = far = 0.0
    for members in _members(group):
        m = len(members)
        first, last = bounds[members[0]], bounds[members[-1] + 1]
        reached = 1 - miss(first, last) if last > first else 0.0
        here = sum(hit[rank] for rank in members)
        pairs = routing.top_k * (last - first) / routing.experts
        ranks += here
        forwarded += here * (1 - 1 / m)
        domains += reached
        crossing += reached * (1 - m / group.ranks)
        near += pairs * (m - 1) / group.ranks
        far += pairs * (1 - m / group.ranks)
    return Spread(ranks, domains, forwarded, crossing, near, far)


def _members(group: Group) -> list[range]:
    """Ranks by domain: even ones where they divide, else the last has what is left."""
    found, first = [], 0
    for domain in range(group.domains):
        left = group.domains - domain - 1
        count = min(group.per_domain, group.ranks - first - left)
        found.append(range(first, first + count))
        first += count
    return found


def token_bytes(hidden: int, precision: str) -> float:
    """Bytes of one token on the wire: FP8 has an FP32 scale for every 128 elements.

    Raises:
        UserError: a precision that no exchange is known in.
    """
    per = {"fp8": 1 + 4 / 128, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
    if precision not in per:
        raise UserError(f"token in {precision!r}: choose one of {', '.join(per)}")
    return hidden * per[precision]
