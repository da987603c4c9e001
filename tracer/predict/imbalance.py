"""What uneven experts cost: rows of the busiest expert-parallel rank over the mean."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tracer.hardware import Cluster

from ..parallel import experts
from ..parallel.plan import Plan
from ..parallel.ranks import sizes_of

if TYPE_CHECKING:
    from ..capture.program import Program


def expert_skew(program: Program, plan: Plan, cluster: Cluster, tokens: int) -> float:
    """What chance makes of even routing: all ranks wait for the busiest.

    Args:
        program: the model; one without routed experts has no skew.
        plan: its `ep` ranks dispatch together.
        cluster: its domains limit how far the hand of a token's groups reaches.
        tokens: of one sequence or decode batch; a rank dispatches `micro_batch` times as many.
    """
    config = getattr(program, "config", None)
    if config is None or plan.ep == 1:
        return 1.0
    sizes = sizes_of(program)
    if not sizes.experts:
        return 1.0
    count, some = getattr(config, "n_group", None) or 1, getattr(config, "topk_group", None) or 1
    limited = getattr(config, "topk_method", "") != "greedy" and some < count
    groups = (count, some) if limited else (1, 1)
    here = tokens * plan.micro_batch // (plan.cp * (1 if plan.attention_dp else plan.tp))
    return _skew(
        sizes.experts, sizes.top_k, groups, plan.ep, plan.redundant_experts,
        max(here, 1) * plan.ep, cluster.domain,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _skew(
    count: int, top_k: int, groups: tuple[int, int], ranks: int, redundant: int, tokens: int,
    domain: int,
) -> float:  # fmt: skip
    routing = experts.uniform(count, top_k, *groups)
    node = domain if ranks % domain == 0 else ranks
    placement = _placement(count, ranks, node, redundant)
    return experts.slowest_rows(routing, placement, tokens) / (tokens * top_k / ranks)


@functools.lru_cache(maxsize=64)
def _placement(count: int, ranks: int, node: int, redundant: int) -> experts.Placement:
    if redundant:
        return experts.balanced([1.0] * count, ranks, node, count + redundant)
    return experts.contiguous(count, ranks, node)
