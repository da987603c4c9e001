"""The law by which tokens choose experts, and DeepSeek's gate that limits them to some groups.

A token chooses k different experts: the k largest of log w_e + noise, the noise Gumbel. That is
drawing without replacement with weights w (Plackett-Luce), and it is what a gate does whose logits
are an expert's popularity and the token's taste. Equal weights make every set of k as likely.
What it leaves out: experts that go together, and tokens of one sequence that resemble each other.

With groups (experts e·G/E = g), a token first keeps the `kept` groups whose two best experts have
the largest scores together, score = sigmoid(logit), as DeepSeek-V3 does (arXiv 2412.19437, section
2.1.2); one group is one node of an expert-parallel deployment.

Shapes: T tokens, E experts, k chosen, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UserError
from ..expert_traffic import Routing

Ints = NDArray[np.int64]
Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class RoutingLaw:
    """weights: [E], any scale; 0 for experts never chosen. groups, kept: 1 and 1 for no limit.

    shares: [E] the part of tokens that choose each expert, where it is known by other means than
    the weights (a recording); sums to k.
    """

    name: str
    top_k: int
    weights: tuple[float, ...]
    groups: int = 1
    kept: int = 1
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        weight = np.array(self.weights, float)
        if not np.isfinite(weight).all() or weight.min(initial=0) < 0:
            raise UserError(f"{self}: weights are finite and not negative")
        if self.groups < 1 or not 1 <= self.kept <= self.groups or self.experts % self.groups:
            raise UserError(
                f"{self}: {self.kept} of {self.groups} groups, which divide the experts"
            )
        if self.limited and self.experts < 2 * self.groups:
            raise UserError(f"{self}: groups are ranked by their two best experts and have one")
        per_group = np.sort((weight > 0).reshape(self.groups, -1).sum(axis=1))
        if not 1 <= self.top_k <= per_group[: self.kept].sum():
            raise UserError(
                f"{self}: a token cannot choose {self.top_k} different experts that are ever chosen"
                + (f" in any {self.kept} of {self.groups} groups" if self.limited else "")
            )

    @property
    def experts(self) -> int:
        return len(self.weights)

    @property
    def router(self) -> Routing:
        """Its sizes without its law, as the exchange wants them."""
        return Routing(self.experts, self.top_k, self.groups, self.kept)

    @property
    def limited(self) -> bool:
        """Whether groups limit the choice."""
        return self.kept < self.groups

    @property
    def even(self) -> bool:
        """Whether all experts are alike."""
        return self.shares is None and min(self.weights) == max(self.weights)

    def __str__(self) -> str:
        limit = f", {self.kept} of {self.groups} groups" if self.limited else ""
        return f"{self.name} routing, top {self.top_k} of {self.experts} experts{limit}"


def uniform(experts: int, top_k: int, groups: int = 1, kept: int = 1) -> RoutingLaw:
    """All experts alike."""
    return RoutingLaw("uniform", top_k, (1.0,) * experts, groups, kept)


def zipf(experts: int, top_k: int, s: float, groups: int = 1, kept: int = 1,
         seed: int | None = None) -> RoutingLaw:  # fmt: skip
    """Weights 1/rank^s; experts in the order of their popularity, or shuffled with `seed`.

    The weights are Zipf's, the loads are flatter: no token chooses the first expert twice.
    """
    weight = np.arange(1, experts + 1) ** -float(s)
    if seed is not None:
        weight = np.random.default_rng(seed).permutation(weight)
    return RoutingLaw(f"zipf({s:g})", top_k, tuple(weight.tolist()), groups, kept)


def recorded(counts: ArrayLike, top_k: int, groups: int = 1, kept: int = 1) -> RoutingLaw:
    """A histogram [E] of tokens by expert, as a server or a training run logs it.

    Loads are those of the histogram. It does not say which experts go together, so pairs follow
    the weights that lead to these loads without a group limit.

    Raises:
        UserError: an expert with more than one k-th of the counts, which no token can choose twice.
    """
    from .expectation import fit_weights

    count = np.asarray(counts, float)
    if count.ndim != 1 or not len(count) or not np.isfinite(count).all() or count.min() < 0:
        raise UserError("recorded: one finite count, not negative, for every expert")
    if not count.sum():
        raise UserError("recorded: all counts are 0")
    share = count * (top_k / count.sum())
    if share.max() > 1 + 1e-9:
        raise UserError(
            f"recorded: expert {np.argmax(share)} has {share.max() / top_k:.1%} of the counts; "
            f"with top {top_k} it has at most {1 / top_k:.1%}, one choice of every token"
        )
    weight = fit_weights(share, top_k)
    return RoutingLaw(
        "recorded", top_k, tuple(weight.tolist()), groups, kept, tuple(share.tolist())
    )


def gate(score_TE: Scores, top_k: int, groups: int = 1, kept: int = 1) -> Ints:
    """INT64 [T, k] the experts that DeepSeek-V3's gate takes for these scores, in no order."""
    if kept < groups:
        score_TGe = score_TE.reshape(len(score_TE), groups, -1)
        group_TG = np.partition(score_TGe, -2, axis=2)[..., -2:].sum(axis=2)
        out_TG = np.argpartition(-group_TG, kept - 1, axis=1)[:, kept:]
        mask_TG = np.zeros_like(group_TG)
        np.put_along_axis(mask_TG, out_TG, -np.inf, axis=1)
        score_TE = (score_TGe + mask_TG[..., None]).reshape(score_TE.shape)
    return np.argpartition(-score_TE, top_k - 1, axis=1)[:, :top_k].astype(np.int64)


@lru_cache(maxsize=16)
def sample(routing: RoutingLaw, tokens: int, seed: int = 0) -> Ints:
    """INT64 [T, k] experts of `tokens` tokens; the same seed gives the same tokens. Read-only.

    Gumbel noise is -log X with X exponential, so the sigmoid of log w - log X is w / (w + X).
    """
    random = np.random.default_rng(seed)
    weight = (np.array(routing.weights) / max(routing.weights)).astype(np.float32)
    chosen = np.empty((tokens, routing.top_k), np.int64)
    step = max(1, 2**19 // routing.experts)  # scores of a few MB at a time stay in the cache
    for first in range(0, tokens, step):
        part = slice(first, min(first + step, tokens))
        size = part.stop - part.start, routing.experts
        score = weight / (weight + random.standard_exponential(size, np.float32))
        chosen[part] = gate(score, routing.top_k, routing.groups, routing.kept)
    chosen.flags.writeable = False
    return chosen
