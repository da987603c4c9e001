"""Placements of experts: every expert somewhere, copies add up, greedy packing never worse."""

from math import lcm

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.errors import UserError
from tracer.parallel.experts import balanced, contiguous, hierarchical, round_robin
from tracer.parallel.experts.placement import pack, replicate

loads = st.floats(0, 1e6, allow_nan=False, width=32)


@st.composite
def clusters(draw):
    """(load [E], groups, ranks, ranks a node, slots) that all placements can have."""
    nodes, per_node = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    ranks = nodes * per_node
    groups = nodes * draw(st.integers(1, 2))
    each = draw(st.integers(1, 3))
    experts = lcm(groups, ranks) * each
    load = draw(st.lists(loads, min_size=experts, max_size=experts))
    return np.array(load), groups, ranks, per_node, experts + ranks * draw(st.integers(0, 2))


def placements(load, groups, ranks, per_node, slots):
    experts = len(load)
    return (
        round_robin(experts, ranks, per_node), contiguous(experts, ranks, per_node),
        balanced(load, ranks, per_node, slots), hierarchical(load, groups, ranks, per_node, slots),
    )  # fmt: skip


@settings(deadline=None)
@given(clusters())
def test_every_expert_is_placed_and_copies_add_up(cluster):
    load, _, ranks, _, slots = cluster
    for placement in placements(*cluster):
        assert placement.copies.min() >= 1
        assert placement.copies.sum() == placement.held.size
        assert placement.held.size == (slots if placement.name in ("balanced", "hierarchical")
                                       else len(load))  # fmt: skip
        assert placement.share.sum(axis=1) == pytest.approx(1)
        assert placement.load(load).sum() == pytest.approx(load.sum(), rel=1e-9)
        for rank in range(ranks):
            mine = [np.sum(placement.held[rank] == e) / placement.copies[e]
                    for e in range(len(load))]  # fmt: skip
            assert placement.share[:, rank] == pytest.approx(mine)


@settings(deadline=None)
@given(clusters())
def test_never_above_the_plain_placement(cluster):
    load = cluster[0]
    robin, blocks, free, grouped = placements(*cluster)
    within = 1 + 1e-9
    assert free.load(load).max() <= robin.load(load).max() * within
    assert grouped.load(load).max() <= blocks.load(load).max() * within
    # Nobody does better than the mean, nor than the heaviest copy.
    assert free.load(load).max() >= load.sum() / cluster[2] / within
    assert free.load(load).max() >= (load / free.copies).max() / within


@settings(deadline=None)
@given(clusters())
def test_groups_stay_on_a_node(cluster):
    groups = cluster[1]
    grouped = placements(*cluster)[3]
    by_group = grouped.node_share.reshape(groups, -1, grouped.nodes)
    assert np.isin(by_group, (0, 1)).all()
    assert (by_group == by_group[:, :1]).all()


@settings(deadline=None)
@given(st.permutations(range(24)), st.integers(0, 1000))
def test_names_of_experts_do_not_matter(order, seed):
    """Permuted loads (all different, so no ties) give permuted placements: the same rank loads."""
    load = np.random.default_rng(seed).permutation(np.arange(24) ** 1.5 + 1)
    order = np.array(order)
    one, other = balanced(load, 6, 3, 30), balanced(load[order], 6, 3, 30)
    assert np.sort(one.load(load)) == pytest.approx(np.sort(other.load(load[order])))
    assert one.copies[order].tolist() == other.copies.tolist()


def test_eplbs_own_example():
    """README of github.com/deepseek-ai/EPLB: 12 experts, 16 slots, 4 groups, 2 nodes of 4 GPUs."""
    layers = (
        ([90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
         [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]),
        ([20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
         [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]),
    )  # fmt: skip
    for load, published in layers:
        placement = hierarchical(load, 4, 8, 4, 16)
        assert np.sort(placement.held, axis=1).tolist() == [
            sorted(published[i : i + 2]) for i in range(0, 16, 2)
        ]


def test_where_greedy_packing_loses():
    """3 2 3 2 0 2 on two ranks: greedily 3 3 2 2 2 0 -> 3+2+2 and 3+2+0; round-robin 6 and 6."""
    load = np.array([3.0, 2, 3, 2, 0, 2])
    where = pack(load, 2)
    assert sorted(load[where == i].sum() for i in range(2)) == [5, 7]
    placement = balanced(load, 2, 2)
    assert placement.load(load).tolist() == [6, 6]
    assert placement.name == "balanced"


def test_replicas_go_to_the_heaviest():
    """8 4 2 with three copies more: 8 -> 4+4; then 4 (the first of equals) -> 2.7 x 3; then 4."""
    assert replicate(np.array([8.0, 4, 2]), 6).tolist() == [0, 1, 2, 0, 0, 1]


def test_deepseeks_own_deployments():
    """Prefill: 32 GPUs with 32 redundant experts, 9 a GPU. Decode: 320 GPUs with one each."""
    load = np.arange(1, 257) ** -0.4
    prefill = balanced(load, 32, 8, 288)
    assert prefill.held.shape == (32, 9)
    assert prefill.load(load).max() < round_robin(256, 32, 8).load(load).max()
    decode = balanced(load, 320, 8, 320)
    assert decode.held.shape == (320, 1)
    assert decode.copies[0] == decode.copies.max() > 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: round_robin(256, 320, 8), "256 experts do not divide over 320 ranks"),
        (lambda: contiguous(256, 0, 8), "256 experts do not divide over 0 ranks"),
        (lambda: contiguous(256, 64, 7), "64 ranks do not fill nodes of 7"),
        (lambda: balanced([1] * 256, 320, 8), "256 slots for 256 experts on 320 ranks"),
        (lambda: balanced([1] * 8, 4, 4, 4), "4 slots for 8 experts on 4 ranks"),
        (lambda: balanced([1, -1], 2, 2), "one finite number, not negative"),
        (lambda: balanced([[1, 1]], 2, 2), "one finite number, not negative"),
        (lambda: hierarchical([1] * 8, 3, 4, 2), "8 experts in 3 groups on 2 nodes"),
        (lambda: hierarchical([1] * 8, 2, 8, 2), "8 experts in 2 groups on 4 nodes"),
        (lambda: hierarchical([1] * 8, 2, 8, 3), "8 ranks do not fill nodes of 3"),
    ],
)
def test_what_cannot_be_placed(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
