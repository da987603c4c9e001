"""Expected copies of a routed token against enumeration, sampling and closed forms."""

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.errors import UserError
from tracer.parallel.expert_traffic import Routing, spread, token_bytes
from tracer.parallel.groups import Group

V3 = Routing(256, 8, groups=8, groups_kept=4)


def enumerated(routing, group):
    """Every choice of groups and experts and every own rank, equally likely: the definition."""
    size = routing.experts // routing.groups
    rank_of = [
        next(r for r in range(group.ranks) if e < (r + 1) * routing.experts // group.ranks)
        for e in range(routing.experts)
    ]
    domain_of = [rank // group.per_domain for rank in range(group.ranks)]
    total, count = np.zeros(6), 0
    for kept in itertools.combinations(range(routing.groups), routing.groups_kept):
        pool = [g * size + i for g in kept for i in range(size)]
        for chosen in itertools.combinations(pool, routing.top_k):
            ranks = {rank_of[e] for e in chosen}
            domains = {domain_of[r] for r in ranks}
            for own in range(group.ranks):
                home = domain_of[own]
                # Rails of an even group: the rank of the same number receives and forwards.
                entry = {d: d * group.per_domain + own % group.per_domain for d in domains}
                forwarded = sum(r != entry[domain_of[r]] for r in ranks)
                beyond = sum(domain_of[rank_of[e]] != home for e in chosen)
                near = sum(domain_of[rank_of[e]] == home and rank_of[e] != own for e in chosen)
                total += (len(ranks), len(domains), forwarded, len(domains - {home}), near, beyond)
                count += 1
    return total / count


@pytest.mark.parametrize(
    ("routing", "group"),
    [
        (Routing(8, 2), Group(4, 2)),
        (Routing(8, 2), Group(8, 4)),
        (Routing(12, 3), Group(4, 2)),
        (Routing(12, 3, 4, 2), Group(4, 2)),  # a routing group a rank, two a domain
        (Routing(12, 3, 3, 2), Group(6, 1)),  # half a routing group a rank
        (Routing(12, 2, 3, 2), Group(4, 2)),  # groups of 4 over domains of 6: parts
        (Routing(12, 4, 2, 1), Group(4, 1)),
        (Routing(6, 2), Group(4, 2)),  # 1, 2, 1, 2 experts a rank
    ],
)
def test_spread_is_the_enumeration(routing, group):
    assert tuple(spread(routing, group)) == pytest.approx(tuple(enumerated(routing, group)))


def test_without_groups_it_is_the_hypergeometric():
    # 64 ranks of 4 of 256 experts: 64 (1 - C(252,8)/C(256,8)).
    found = spread(Routing(256, 8), Group(64, 8))
    assert found.ranks == pytest.approx(64 * (1 - comb(252, 8) / comb(256, 8)))
    assert found.domains == pytest.approx(8 * (1 - comb(224, 8) / comb(256, 8)))
    # One copy an expert: seven of eight domains are others; of the rest, 7 of 8 ranks.
    assert found.pairs_crossing == pytest.approx(8 * 7 / 8)
    assert found.pairs_forwarded == pytest.approx(8 * 7 / 64)


def test_node_limited_routing_crosses_to_four_nodes_at_most():
    # DeepSeek-V3, EP 64 on 8 nodes: 4 nodes of 32 experts, of which 8 choices miss one with
    # C(96,8)/C(128,8); seven of eight times it is another node than the token's own.
    limited, free = spread(V3, Group(64, 8)), spread(Routing(256, 8), Group(64, 8))
    assert limited.domains == pytest.approx(4 * (1 - comb(96, 8) / comb(128, 8)))
    assert limited.crossing == pytest.approx(limited.domains * 7 / 8)
    assert limited.domains <= 4 < free.domains
    # The limit binds nodes, not ranks: nearly as many of those as without it.
    assert limited.ranks == pytest.approx(free.ranks, rel=0.05)


def test_sampled_tokens_agree():
    rng = np.random.default_rng(1)
    group = Group(64, 8)
    nodes, ranks = [], []
    for _ in range(4000):
        kept = rng.choice(8, 4, replace=False)
        pool = np.concatenate([np.arange(32) + 32 * g for g in kept])
        chosen = rng.choice(pool, 8, replace=False)
        nodes.append(len(set(chosen // 32)))
        ranks.append(len(set(chosen // 4)))
    found = spread(V3, group)
    assert found.domains == pytest.approx(np.mean(nodes), abs=4 * np.std(nodes) / 4000**0.5)
    assert found.ranks == pytest.approx(np.mean(ranks), abs=4 * np.std(ranks) / 4000**0.5)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_bounds_of_any_routing(data):
    per, domains = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 12))
    groups = data.draw(st.integers(1, 8))
    kept = data.draw(st.integers(1, groups))
    size = data.draw(st.integers(1, 40))
    routing = Routing(groups * size, data.draw(st.integers(1, min(8, size * kept))), groups, kept)
    group = Group(per * domains, per)
    found = spread(routing, group)
    k = routing.top_k
    eps = 1e-9
    assert 1 - eps <= found.domains <= min(k, domains) + eps
    assert found.domains - eps <= found.ranks <= min(k, group.ranks) + eps
    assert found.crossing <= found.domains + eps
    assert found.forwarded <= found.ranks + eps
    assert found.pairs_forwarded + found.pairs_crossing == pytest.approx(k * (1 - 1 / group.ranks))
    # To send once a domain is never more than once an expert.
    assert found.crossing <= found.pairs_crossing + eps
    if domains % groups == 0 and size % (group.ranks // groups) == 0:
        assert found.domains <= kept * domains / groups + eps


def test_what_is_refused():
    for bad, fault in (
        ((0, 1), "at least 1"), ((8, 9), "top_k=9 of 8"), ((9, 1, 2, 1), "9 experts in 2 equal"),
        ((8, 1, 2, 3), "groups_kept=3"), ((8, 5, 2, 1), "top_k=5 of 4 experts in 1 of 2"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=fault):
            Routing(*bad)
    # 7168 bytes and 56 scales of 4.
    assert token_bytes(7168, "fp8") == 7168 + 56 * 4
    assert token_bytes(7168, "bf16") == 2 * 7168
    with pytest.raises(UserError, match="token in 'fp3'"):
        token_bytes(7168, "fp3")
