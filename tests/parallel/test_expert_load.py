"""What a law and a placement come to: rows, the slowest rank, experts read, sends."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.cost.conventions import distinct_experts
from tracer.errors import UserError
from tracer.parallel.expert_traffic import spread
from tracer.parallel.experts import (
    balanced,
    contiguous,
    expert_load,
    hierarchical,
    recorded,
    round_robin,
    uniform,
    zipf,
)
from tracer.parallel.experts.routing import sample
from tracer.parallel.groups import Group

V3 = {"uniform": uniform(256, 8), "limited": uniform(256, 8, 8, 4), "zipf": zipf(256, 8, 0.5),
      "limited zipf": zipf(256, 8, 0.5, 8, 4)}  # fmt: skip
EP64 = contiguous(256, 64, 8)


def test_deepseek_v3_by_hand():
    """EP64 on 8 nodes, 4 experts a rank, 65,536 tokens without the limit.

    A rank is hit by 1 - C(252,8)/C(256,8) of the tokens, a node by 1 - C(224,8)/C(256,8).
    """
    load = expert_load(V3["uniform"], EP64, 65_536)
    rank, node = (1 - comb(256 - n, 8) / comb(256, 8) for n in (4, 32))
    assert load.mean_rows == 65_536 * 8 / 64
    assert load.rows == pytest.approx([65_536 * 8 / 64] * 64)
    assert load.hit_rank == pytest.approx([rank] * 64, rel=1e-12)
    assert load.ranks_per_token == pytest.approx(64 * rank)
    assert load.nodes_per_token == pytest.approx(8 * node)
    assert load.remote_nodes_per_token == pytest.approx(7 * node)
    each = 65_536 / 64  # tokens that start on a rank
    assert load.sent_within == pytest.approx(each * 7 * rank)
    assert load.sent_between == pytest.approx(each * 56 * rank)
    assert load.sent_between_once == pytest.approx(each * 7 * node)
    assert load.received_slowest == pytest.approx(each * 63 * rank)
    assert not load.sampled


@pytest.mark.parametrize(("ranks", "per_node"), [(64, 8), (32, 8), (16, 4), (8, 8)])
def test_even_experts_are_what_the_exchange_sends(ranks, per_node):
    """Two routes to the copies of a token: this one, and the closed forms of `expert_traffic`."""
    load = expert_load(V3["uniform"], contiguous(256, ranks, per_node), 1000)
    copies = spread(V3["uniform"].router, Group(ranks, per_node))
    assert load.ranks_per_token == pytest.approx(copies.ranks, rel=1e-12)
    assert load.nodes_per_token == pytest.approx(copies.domains, rel=1e-12)
    assert load.remote_nodes_per_token == pytest.approx(copies.crossing, rel=1e-12)


def test_the_limit_keeps_tokens_on_four_nodes():
    """At most 4 nodes a token (arXiv 2412.19437), and 8 experts nearly always hit all 4.

    Sampled through the gate; the placement by groups is what makes it so, round-robin undoes it.
    Were the kept groups drawn without a look at the scores, a token would reach only
    4(1 - C(96,8)/C(128,8)) = 3.63 of them; but they are kept for their best two experts, so that
    one or both are nearly always among the eight.
    """
    load = expert_load(V3["limited"], EP64, 65_536)
    assert load.sampled
    assert 3.9 < load.nodes_per_token <= 4
    assert load.nodes_per_token == pytest.approx(load.hit_node.sum())
    assert load.rows == pytest.approx([65_536 * 8 / 64] * 64)  # all experts alike: exact
    free = expert_load(V3["uniform"], EP64, 65_536)
    assert load.sent_between_once < 0.8 * free.sent_between_once
    spread = expert_load(V3["limited"], round_robin(256, 64, 8), 65_536)
    assert spread.nodes_per_token > 4


@pytest.mark.parametrize("name", V3)
@pytest.mark.parametrize("tokens", [1, 500])
def test_distinct_experts_read(name, tokens):
    """Ranks together read what the cost of one grouped product says that all would."""
    load = expert_load(V3[name], EP64, tokens)
    if "zipf" not in name:
        together = distinct_experts("uniform", 256, 8, tokens)
        assert load.experts_read.sum() == pytest.approx(together, rel=1e-9)
    assert (load.experts_read <= load.experts_held + 1e-9).all()
    assert load.experts_read_slowest <= 4
    assert load.rows_by_expert.sum() == pytest.approx(tokens * 8, rel=1e-9)


@pytest.mark.parametrize(
    "placement",
    [EP64, round_robin(256, 64, 8), balanced(V3["zipf"].weights, 64, 8, 320),
     hierarchical(V3["zipf"].weights, 8, 64, 8, 320)],
    ids=lambda placement: placement.name,
)  # fmt: skip
@pytest.mark.parametrize("name", V3)
def test_expectation_is_what_fresh_tokens_do(placement, name):
    """10,000 other tokens, each copy of an expert drawn with a die: 5 standard errors.

    Where the expectation is itself sampled, its 65,536 tokens add their error.
    """
    tokens, random = 10_000, np.random.default_rng(5)
    load = expert_load(V3[name], placement, tokens)
    chosen = sample(V3[name], tokens, seed=99)
    where = placed(chosen, placement, random)
    scale = np.sqrt(1 + (tokens / 65_536 if load.sampled else 0))
    for hit, at in ((load.hit_rank, where), (load.hit_node, where // 8)):
        found = np.stack([(at == x).any(axis=1) for x in range(len(hit))]).mean(axis=1)
        error = scale * np.sqrt(np.maximum(hit * (1 - hit), 1e-6) / tokens)
        assert (np.abs(found - hit) <= 5 * error).all()
    rows = np.bincount(where.ravel(), minlength=64)
    error = scale * np.sqrt(np.bincount(where.ravel(), minlength=64)) * np.sqrt(8)  # at the most
    assert (np.abs(rows - load.rows) <= 5 * error).all()


def placed(chosen, placement, random):
    """[T, k] ranks: for every choice one of the slots that hold its expert."""
    slots = [np.argwhere(placement.held == e)[:, 0] for e in range(placement.experts)]
    where = np.empty(chosen.shape, np.int64)
    for e, ranks in enumerate(slots):
        mine = chosen == e
        where[mine] = random.choice(ranks, size=mine.sum())
    return where


@pytest.mark.parametrize("name", ["uniform", "limited zipf"])
@pytest.mark.parametrize(("tokens", "batches"), [(64, 800), (1024, 60), (12_000, 8)])
def test_the_slowest_rank_is_what_fresh_batches_have(name, tokens, batches):
    """Small batches and, beyond 8,192 tokens, the normal law: 5 standard errors of both.

    The normal law's covariance comes from 16,384 tokens: 1 % of the excess over the largest mean.
    """
    placement = round_robin(256, 64, 8)
    load = expert_load(V3[name], placement, tokens)
    chosen = sample(V3[name], tokens * batches, seed=123) % 64  # expert e is on rank e mod 64
    chosen = chosen.reshape(batches, -1)
    most = np.array([np.bincount(batch, minlength=64).max() for batch in chosen])
    error = most.std(ddof=1) * np.sqrt(1 / batches + 1 / 512)
    drift = 0.01 * (load.slowest_rows - load.rows.max())
    if load.sampled and "zipf" in name:  # its largest mean is itself known from 65,536 tokens
        drift += 5 * np.sqrt(load.rows.max() * tokens / 65_536)
    assert abs(most.mean() - load.slowest_rows) <= 5 * error + drift
    assert load.imbalance >= load.rows.max() / load.mean_rows >= 1


def test_more_tokens_even_out_and_skew_stays():
    """Chance averages out as 1/sqrt(T); what the law prefers does not."""
    excess = [expert_load(V3["uniform"], EP64, t).imbalance - 1 for t in (16_384, 65_536, 262_144)]
    assert excess[0] / excess[1] == pytest.approx(2, rel=1e-6)
    assert excess[1] / excess[2] == pytest.approx(2, rel=1e-6)
    skewed = expert_load(V3["zipf"], EP64, 10**9)
    assert skewed.imbalance == pytest.approx(skewed.rows.max() / skewed.mean_rows, rel=1e-3)
    even = expert_load(V3["zipf"], balanced(skewed.rows_by_expert, 64, 8, 320), 10**9)
    assert even.imbalance < 1.05
    assert skewed.imbalance > 5


def test_redundant_experts_cost_reads_and_save_waiting():
    """320 ranks of one expert each: 64 hot experts halved, the others whole.

    Of equal experts the unreplicated ranks have 1/256 of the rows, the mean is 1/320: 1.25.
    """
    placement = balanced(np.ones(256), 320, 8, 320)
    load = expert_load(V3["uniform"], placement, 10**9)
    assert load.rows.max() / load.mean_rows == pytest.approx(1.25)
    assert sorted(set(placement.copies)) == [1, 2]
    assert load.experts_held.tolist() == [1] * 320
    assert load.rows.sum() == pytest.approx(8e9)


def test_two_copies_on_a_rank_are_read_once():
    held = balanced([1.0], 1, 1, 3)
    load = expert_load(uniform(1, 1), held, 10)
    assert held.held.tolist() == [[0, 0, 0]]
    assert load.experts_held.tolist() == [1]
    assert load.experts_read == pytest.approx([1])
    assert (load.imbalance, load.sent_within, load.sent_between) == (1, 0, 0)


@settings(max_examples=6, deadline=None)
@given(st.permutations(range(16)), st.sampled_from([50, 20_000]))
def test_permuting_experts_with_their_places_changes_nothing(order, tokens):
    """The law's expert e becomes expert order[e], and so does what the ranks hold."""
    order = np.array(order)
    routing = zipf(16, 3, 0.8)
    plain = round_robin(16, 4, 2)
    weights = np.empty(16)
    weights[order] = routing.weights
    moved = type(routing)("moved", 3, tuple(weights))
    there = type(plain)("moved", 16, order[plain.held], 2)
    one, other = expert_load(routing, plain, tokens), expert_load(moved, there, tokens)
    assert other.rows == pytest.approx(one.rows, rel=1e-9)
    assert other.hit_node == pytest.approx(one.hit_node, rel=1e-9)
    assert other.experts_read == pytest.approx(one.experts_read, rel=1e-9)
    assert other.imbalance == pytest.approx(one.imbalance, rel=0.05)  # drawn, other tokens


@pytest.mark.parametrize("name", V3)
def test_what_is_sent_adds_up(name):
    load = expert_load(V3[name], EP64, 1000)
    sent = load.sent
    assert sent.sum() == pytest.approx(1000 * load.ranks_per_token)
    assert load.sent_to_node.sum() == pytest.approx(1000 * load.nodes_per_token)
    off = sent.sum() - np.trace(sent)
    assert 64 * (load.sent_within + load.sent_between) == pytest.approx(off)
    assert load.sent_between_once <= load.sent_between
    assert load.nodes_per_token <= load.ranks_per_token <= 8


def test_a_recording_is_taken_as_it_is():
    """Loads are the histogram's, limited or not; also for an expert in four of five tokens."""
    counts = np.array([80, 40, 40, 40, 50, 50, 50, 50])
    for groups, kept in ((1, 1), (4, 2)):
        routing = recorded(counts, 4, groups, kept)
        load = expert_load(routing, contiguous(8, 4, 2), 100)
        assert load.rows_by_expert == pytest.approx(counts)
        assert load.rows == pytest.approx([120, 80, 100, 100])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: expert_load(uniform(8, 2), EP64, 1),
            "has 8 experts, the contiguous placement 256",
        ),
        (lambda: expert_load(V3["uniform"], EP64, 0), "0 tokens: expert load needs at least one"),
    ],
)
def test_what_does_not_go_together(make, message):
    with pytest.raises(UserError, match=message):
        make()
