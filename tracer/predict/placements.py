"""What other placements of the experts would make of a plan's routing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import UserError
from ..parallel import experts
from ..parallel.expert_exchange import NORMAL
from ..parallel.network import Network
from ..parallel.plan import Plan
from .expert_load import (
    PLACEMENTS,
    ExpertChoice,
    copies_of,
    group_tokens,
    placed,
    router_of,
    usual,
)
from .structure import groups_on

if TYPE_CHECKING:
    from ..capture.program import Program


class Placed(NamedTuple):
    """One layer's dispatch under a placement.

    Attributes:
        placement: its name.
        chosen: whether the plan has it.
        rows: of the busiest rank over the mean.
        experts: that the rank which reads most reads weights of.
        ranks, domains: that a token reaches, its own among them.
        crossing: copies of a token that go to other domains.
    """

    placement: str
    chosen: bool
    rows: float
    experts: float
    ranks: float
    domains: float
    crossing: float


def placements(
    program: Program, plan: Plan, network: Network, tokens: int, choice: ExpertChoice, exchange: str
) -> tuple[Placed, ...]:
    """Every placement that goes with the plan, under its routing; none without routed experts, or
    where the busiest rank was given.

    Arguments are those of `rank_load`, and the kernels of the exchange: "normal" ones send a token
    once a domain, others once an expert.
    """
    router = router_of(program)
    if router is None or plan.ep == 1 or choice.busiest is not None:
        return ()
    law, group = choice.law(router), groups_on(plan, network)["ep"]
    own = choice.placement or usual(router, group, plan.redundant_experts)
    found = []
    for name in PLACEMENTS:
        try:
            where = placed(law, name, group, plan.redundant_experts)
        except UserError:  # it does not go with these numbers
            continue
        load = experts.expert_load(law, where, group_tokens(plan, tokens))
        copies = copies_of(load, group)
        crossing = copies.crossing if exchange == NORMAL else copies.pairs_crossing
        found.append(Placed(
            name, name == own, load.imbalance, load.experts_read_slowest, copies.ranks,
            copies.domains, crossing,
        ))  # fmt: skip
    return tuple(found)
