"""What routing makes of a plan: the rank that all others wait for, and what tokens send."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError
from ..parallel import experts
from ..parallel.expert_traffic import Spread
from ..parallel.groups import Group
from ..parallel.network import Network
from ..parallel.plan import Plan
from ..parallel.ranks import sizes_of
from .links import EVEN_LOAD, RankLoad
from .structure import groups_on

if TYPE_CHECKING:
    from ..capture.program import Program

UNIFORM, ZIPF = "uniform", "zipf"
IN_ORDER, ROUND_ROBIN, BALANCED, HIERARCHICAL = (
    "contiguous", "round_robin", "balanced", "hierarchical",
)  # fmt: skip
PLACEMENTS = (IN_ORDER, ROUND_ROBIN, BALANCED, HIERARCHICAL)
_SEED = 0  # of the order in which Zipf's popular experts stand


@dataclass(frozen=True)
class ExpertChoice:
    """How tokens choose experts and where these stand, as inputs of a plan.

    Attributes:
        zipf: exponent of a law whose experts are as popular as 1/rank^s, in a shuffled order;
            0 is even routing.
        counts: tokens by expert as they were recorded, in place of a law.
        placement: which rank holds which expert, see `parallel.experts`; None: in order, and with
            redundant experts as EPLB places them over the law's loads: `hierarchical` where the
            gate's groups divide over the domains, else `balanced`.
        busiest: rows of the busiest rank over the mean, in place of all that.
    """

    zipf: float = 0.0
    counts: tuple[float, ...] = ()
    placement: str | None = None
    busiest: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.zipf <= 10:
            raise UserError(f"routing=zipf:{self.zipf:g}: give an exponent between 0 and 10")
        if self.placement is not None and self.placement not in PLACEMENTS:
            raise UserError(f"placement={self.placement!r}: choose {', '.join(PLACEMENTS)}")
        if self.busiest is None:
            return
        if not 1 <= self.busiest < float("inf"):
            raise UserError(f"imbalance={self.busiest}: the busiest over the mean is at least 1")
        if self.zipf or self.counts or self.placement:
            raise UserError(
                f"imbalance={self.busiest:g} says what routing and placement make of the busiest "
                "rank: give it, or these"
            )

    @property
    def plain(self) -> bool:
        """Whether routing is even and experts stand in order."""
        return not self.zipf and not self.counts and self.placement is None

    def __str__(self) -> str:
        """The law, as options name it."""
        if self.counts:
            return "recorded"
        return f"{ZIPF}:{self.zipf:g}" if self.zipf else UNIFORM

    def notes(self, load: RankLoad) -> list[str]:
        """A line of what routing makes of a plan's ranks; none where it makes nothing."""
        if load == EVEN_LOAD:
            return []
        if load.copies is None:
            return [f"expert imbalance: busiest rank {load.rows:.3f} of the mean"]
        where = self.placement or "the usual"
        return [
            f"experts: {self} routing, {where} placement: the busiest rank has {load.rows:.3f} "
            f"times the mean's rows and reads {load.read:.2f} times the experts that it would read "
            f"under even routing; a token reaches {load.copies.ranks:.2f} ranks in "
            f"{load.copies.domains:.2f} domains"
        ]

    def law(self, router: Router) -> experts.RoutingLaw:
        """The law over the experts of a model.

        Raises:
            UserError: counts of another number of experts.
        """
        sizes = router.top_k, router.groups, router.kept
        if self.counts:
            if len(self.counts) != router.experts:
                raise UserError(
                    f"routing: counts of {len(self.counts)} experts; the model has {router.experts}"
                )
            return experts.recorded(self.counts, *sizes)
        if self.zipf:
            return experts.zipf(
                router.experts, router.top_k, self.zipf, router.groups, router.kept, _SEED
            )
        return experts.uniform(router.experts, *sizes)


class Router(NamedTuple):
    """A model's routed experts; `groups` of which a token keeps `kept`, 1 and 1 without a limit."""

    experts: int
    top_k: int
    groups: int
    kept: int


def router_of(program: Program) -> Router | None:
    """The router of a model; None without routed experts, or without a config to read."""
    config: Any = getattr(program, "config", None)
    if config is None:
        return None
    sizes = sizes_of(program)
    if not sizes.experts:
        return None
    groups = getattr(config, "n_group", None) or 1
    kept = getattr(config, "topk_group", None) or 1
    limited = getattr(config, "topk_method", "") != "greedy" and kept < groups
    return Router(sizes.experts, sizes.top_k, *((groups, kept) if limited else (1, 1)))


def rank_load(
    program: Program, plan: Plan, network: Network, tokens: int, choice: ExpertChoice
) -> RankLoad:
    """The load of the rank that all others of an expert-parallel group wait for.

    Even routing of experts in order leaves what chance makes of it. The rank with most rows and the
    one that reads most experts may be two; all wait for both, and are taken for one.

    Args:
        program: the model; one without routed experts has no skew.
        plan: its `ep` ranks dispatch together.
        network: its domains are the nodes that tokens reach.
        tokens: of one sequence or decode batch; a rank dispatches `micro_batch` times as many.
        choice: how tokens choose.

    Raises:
        UserError: a placement that does not go with the plan, counts of other experts, a law for
            a model without.
    """
    if plan.ep == 1 and choice.plain:
        return EVEN_LOAD
    router = router_of(program)
    if router is None and not choice.plain:
        raise UserError(
            f"{program.name} has no routed experts: routing={choice} and placement go "
            "with a model that has"
        )
    if router is None or plan.ep == 1:
        return EVEN_LOAD
    if choice.busiest is not None:
        return RankLoad(choice.busiest, 1.0, choice.busiest)
    number = group_tokens(plan, tokens)
    group = groups_on(plan, network)["ep"]
    if choice.plain and not (plan.redundant_experts and _full(group)):
        skew = _even_skew(router, plan.ep, plan.redundant_experts, number)
        return RankLoad(skew, 1.0, skew)
    return _uneven(choice, router, group, plan.redundant_experts, number)


def group_tokens(plan: Plan, tokens: int) -> int:
    """Tokens that all ranks of an expert-parallel group dispatch at once."""
    here = tokens * plan.micro_batch // (plan.cp * (1 if plan.attention_dp else plan.tp))
    return max(here, 1) * plan.ep


def usual(router: Router, group: Group, redundant: int) -> str:
    """The placement of a plan that names none, see `ExpertChoice`."""
    if not redundant:
        return IN_ORDER
    whole = router.groups > 1 and router.groups % group.domains == 0
    return HIERARCHICAL if whole else BALANCED


def _full(group: Group) -> bool:
    """Whether the group fills each of its domains alike."""
    return group.domains * group.per_domain == group.ranks


@functools.lru_cache(maxsize=64)
def placed(law: experts.RoutingLaw, name: str, group: Group, redundant: int) -> experts.Placement:
    """The placement `name` of a law's experts over a group.

    Raises:
        UserError: it does not go with these numbers; redundant experts in a placement without.
    """
    ranks, node = group.ranks, group.per_domain
    if not _full(group):
        raise UserError(
            f"experts over {ranks} ranks, {node} a domain: routing and placement are known for "
            "domains that are full"
        )
    count = law.experts
    if redundant and name in (IN_ORDER, ROUND_ROBIN):
        raise UserError(
            f"placement={name} has no copies for redundant={redundant}: choose {BALANCED} or "
            f"{HIERARCHICAL}"
        )
    if name == IN_ORDER:
        return experts.contiguous(count, ranks, node)
    if name == ROUND_ROBIN:
        return experts.round_robin(count, ranks, node)
    loads = experts.expert_shares(law)
    if name == BALANCED:
        return experts.balanced(loads, ranks, node, count + redundant)
    return experts.hierarchical(loads, law.groups, ranks, node, count + redundant)


def copies_of(load: experts.ExpertLoad, group: Group) -> Spread:
    """What a token of this load sends, as the exchange's kernels count it."""
    m, ranks, top_k = group.per_domain, group.ranks, load.routing.top_k
    return Spread(
        load.ranks_per_token, load.nodes_per_token, load.ranks_per_token * (1 - 1 / m),
        load.remote_nodes_per_token, top_k * (m - 1) / ranks, top_k * (1 - m / ranks),
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _uneven(
    choice: ExpertChoice, router: Router, group: Group, redundant: int, tokens: int
) -> RankLoad:
    law, name = choice.law(router), choice.placement or usual(router, group, redundant)
    load = experts.expert_load(law, placed(law, name, group, redundant), tokens)
    chance = load.slowest_rows / float(load.rows.max())
    sent = float(load.hit_rank.max() / load.hit_rank.mean())
    return RankLoad(
        load.imbalance, load.experts_read_slowest / _read_evenly(load), sent * chance,
        copies_of(load, group),
    )  # fmt: skip


def _read_evenly(load: experts.ExpertLoad) -> float:
    """Experts that a rank of this placement reads under even routing, in the mean."""
    each = load.routing.top_k / load.routing.experts * load.placement.share
    return float((1 - (1 - each) ** load.tokens).sum() / load.placement.ranks)


@functools.lru_cache(maxsize=256)
def _even_skew(router: Router, ranks: int, redundant: int, tokens: int) -> float:
    law = experts.uniform(*router)
    # Where domains end does not change how many rows a rank gets.
    one = Group(ranks, ranks)
    placement = placed(law, BALANCED if redundant else IN_ORDER, one, redundant)
    return experts.slowest_rows(law, placement, tokens) / (tokens * router.top_k / ranks)
