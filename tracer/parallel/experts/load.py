"""What a routing law does to the ranks of a placement: rows, the slowest rank, traffic.

A *row* is a token at one of its k experts. A token is *sent* once to every rank (or node) that has
at least one of its experts, however many. Tokens start evenly spread over all ranks.

Shapes: T tokens of all ranks together, E experts, R ranks, N nodes, k experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from .expectation import chances, missed
from .placement import Placement
from .routing import Ints, RoutingLaw, sample

Floats = NDArray[np.float64]

_SAMPLES = 65_536  # tokens, where a chance is sampled: its standard error is below 0.002
_DRAWN = 8_192  # tokens up to which batches are drawn token by token
_BATCHES = 2_048


@dataclass(frozen=True, eq=False)
class ExpertLoad:
    """One dispatch of `tokens` tokens, in expectation.

    rows: [R] (token, expert) pairs at each rank; their sum is T·k.
    slowest_rows: the most rows that any rank has, averaged over batches: above `rows.max()`, since
    in every batch chance makes another rank the slowest.
    rows_by_expert: [E]. experts_read: [R] different experts of a rank that get any token.
    experts_held: [R]. hit_rank, hit_node: [R], [N] chance that a token is sent there.
    sampled: whether the chances are those of 65,536 sampled tokens (limited routing of uneven
    experts has no other way; with even ones only hit_rank and hit_node), or exact.
    """

    routing: RoutingLaw
    placement: Placement
    tokens: int
    rows: Floats
    slowest_rows: float
    rows_by_expert: Floats
    experts_read: Floats
    experts_held: Ints
    hit_rank: Floats
    hit_node: Floats
    sampled: bool

    @property
    def mean_rows(self) -> float:
        """Rows of a rank if all had the same."""
        return self.tokens * self.routing.top_k / self.placement.ranks

    @property
    def imbalance(self) -> float:
        """Rows of the slowest rank over the mean, 1 or more: what all ranks wait for."""
        return self.slowest_rows / self.mean_rows

    @property
    def experts_read_slowest(self) -> float:
        """The most experts that a rank reads weights of."""
        return float(self.experts_read.max())

    @property
    def ranks_per_token(self) -> float:
        """Different ranks that a token is sent to, its own included."""
        return float(self.hit_rank.sum())

    @property
    def nodes_per_token(self) -> float:
        """Different nodes that a token is sent to, its own included."""
        return float(self.hit_node.sum())

    @property
    def remote_nodes_per_token(self) -> float:
        """Different nodes that it is sent to beside the one on which it is."""
        return self.nodes_per_token * (1 - 1 / self.placement.nodes)

    @property
    def sent(self) -> Floats:
        """[R, R] tokens from rank to rank; what stays on a rank is on the diagonal."""
        return self._spread(self.hit_rank)

    @property
    def sent_to_node(self) -> Floats:
        """[R, N] tokens from rank to node, once a node however many ranks of it they reach."""
        return self._spread(self.hit_node)

    @property
    def sent_within(self) -> float:
        """Tokens from a rank to others of its node, mean over ranks, once a rank."""
        return float((self.sent * (self._same_node & ~np.eye(len(self.rows), dtype=bool))).sum()
                     / len(self.rows))  # fmt: skip

    @property
    def sent_between(self) -> float:
        """Tokens from a rank to ranks of other nodes, mean over ranks, once a rank."""
        return float((self.sent * ~self._same_node).sum() / len(self.rows))

    @property
    def sent_between_once(self) -> float:
        """The same once a node, whence the node hands them on: what node-aware dispatch sends."""
        return self.remote_nodes_per_token * self.tokens / self.placement.ranks

    @property
    def received_slowest(self) -> float:
        """The most tokens that a rank gets from the others, in expectation."""
        return float((self.sent.sum(axis=0) - self.sent.diagonal()).max())

    @property
    def _same_node(self) -> NDArray[np.bool_]:
        node = np.arange(self.placement.ranks) // self.placement.ranks_per_node
        same: NDArray[np.bool_] = node[:, None] == node
        return same

    def _spread(self, hit: Floats) -> Floats:
        ranks = self.placement.ranks
        return np.broadcast_to(hit * self.tokens / ranks, (ranks, len(hit))).copy()


def slowest_rows(routing: RoutingLaw, placement: Placement, tokens: int, seed: int = 0) -> float:
    """`ExpertLoad.slowest_rows` alone: what tokens send costs more to find."""
    chance = chances(routing)
    if chance is None:
        return expert_load(routing, placement, tokens, seed).slowest_rows
    rows = tokens * (chance @ placement.share)
    return max(_slowest(routing, placement, tokens, rows, seed), float(rows.max()))


def expert_load(
    routing: RoutingLaw, placement: Placement, tokens: int, seed: int = 0
) -> ExpertLoad:
    """The load that `tokens` tokens (of all ranks together) put on the ranks of `placement`.

    Rows, experts read and sends are exact without a group limit, see `expectation`; the slowest
    rank's excess over the largest mean is drawn, always with the same seed: 64 to 2,048 batches, a
    standard error of at most 2 % of that excess.

    Raises:
        UserError: routing and placement of different numbers of experts, no tokens.
    """
    if routing.experts != placement.experts:
        raise UserError(
            f"{routing} has {routing.experts} experts, the {placement.name} placement "
            f"{placement.experts}"
        )
    if tokens < 1:
        raise UserError(f"{tokens} tokens: expert load needs at least one")
    one = _one_token(routing, placement, seed)
    chance = one.chance
    rows = tokens * (chance @ placement.share)
    # Copies of an expert on one rank are one: its weights are read once.
    read = 1.0 - (1.0 - np.minimum(chance[:, None] * placement.share, 1.0)) ** tokens
    slowest = _slowest(routing, placement, tokens, rows, seed)
    return ExpertLoad(
        routing, placement, tokens, rows, max(slowest, float(rows.max())), tokens * chance,
        read.sum(axis=0), (placement.share > 0).sum(axis=0), one.hit_rank, one.hit_node,
        one.sampled,
    )  # fmt: skip


def expert_shares(routing: RoutingLaw, seed: int = 0) -> Floats:
    """[E] the part of tokens that choose each expert; sums to k. Sampled where there is no closed
    form, see `ExpertLoad.sampled`.
    """
    chance = chances(routing)
    if chance is None:
        chosen = sample(routing, _SAMPLES, seed)
        chance = np.bincount(chosen.ravel(), minlength=routing.experts) / _SAMPLES
    return chance


class _OneToken(NamedTuple):
    """Chances of a single token: of each expert [E], rank [R] and node [N]."""

    chance: Floats
    hit_rank: Floats
    hit_node: Floats
    sampled: bool


@lru_cache(maxsize=64)
def _one_token(routing: RoutingLaw, placement: Placement, seed: int) -> _OneToken:
    chance, shares = expert_shares(routing, seed), (placement.share, placement.node_share)
    if chances(routing) is not None and not routing.limited:
        weight = np.array(routing.weights)
        on_rank, on_node = (1.0 - missed(weight, routing.top_k, share) for share in shares)
        return _OneToken(chance, on_rank, on_node, False)
    chosen = sample(routing, _SAMPLES, seed)
    on_rank, on_node = (_hit(chosen, share) for share in shares)
    return _OneToken(chance, on_rank, on_node, True)


def _hit(chosen: Ints, share: Floats) -> Floats:
    """[X] part of the tokens that are sent to each set; share: [E, X]."""
    away = np.zeros(share.shape[1])
    for some in np.array_split(chosen, -(-chosen.size * share.shape[1] // 2**20)):
        away += np.prod(1.0 - share[some], axis=1).sum(axis=0)
    return 1.0 - away / len(chosen)


@lru_cache(maxsize=256)
def _axes(routing: RoutingLaw, placement: Placement, seed: int) -> tuple[Floats, Floats]:
    """[R] variances and [R, R] axes of the rows that one sampled token brings to each rank."""
    chosen = sample(routing, _SAMPLES // 4, seed)  # the first of those that chances rest on
    rank = _ranks_of(chosen, placement, np.random.default_rng(seed + 1))
    count = np.zeros((len(rank), placement.ranks), np.float32)
    np.add.at(count, (np.arange(len(rank))[:, None], rank), 1.0)
    mean = count.mean(axis=0, dtype=float)
    values, vectors = np.linalg.eigh((count.T @ count) / len(rank) - np.outer(mean, mean))
    return values, vectors


def _slowest(routing: RoutingLaw, placement: Placement, tokens: int, rows: Floats, seed: int
             ) -> float:  # fmt: skip
    """Rows of the slowest rank, averaged over batches of `tokens`.

    Small batches are drawn from sampled tokens; in large ones rows are sums of so many independent
    tokens that they are normal. Both are moved to the expected rows.
    """
    random = np.random.default_rng(seed + 2)
    if tokens <= _DRAWN:
        pool = sample(routing, _SAMPLES, seed)
        mean = np.bincount(pool.ravel(), minlength=routing.experts) @ placement.share / len(pool)
        batches = int(np.clip(2**19 // tokens, 64, _BATCHES))
        most = np.empty(batches)
        for i in range(batches):
            mine = pool[random.integers(0, len(pool), tokens)]
            count = np.bincount(_ranks_of(mine, placement, random).ravel(), minlength=len(rows))
            most[i] = (rows + count - tokens * mean).max()
        return float(most.mean())
    values, vectors = _axes(routing, placement, seed)
    spread = vectors * np.sqrt(np.maximum(values, 0.0) * tokens)
    normal = random.standard_normal((_BATCHES, len(rows)))
    return float((rows + normal @ spread.T).max(axis=1).mean())


def _ranks_of(chosen: Ints, placement: Placement, random: np.random.Generator) -> Ints:
    """INT64 [T, k] the rank that each row goes to: copies of an expert are as likely."""
    slot = np.argsort(placement.held, axis=None, kind="stable")  # by expert
    first = np.concatenate([[0], np.cumsum(placement.copies)])
    copy = placement.copies[chosen]
    which = (random.random(chosen.shape) * copy).astype(np.int64) if copy.max() > 1 else 0
    rank: Ints = slot[first[chosen] + which] // placement.held.shape[1]
    return rank
