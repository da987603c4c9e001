"""Routing laws and placements as inputs of a plan: the busiest rank, its kernels, its messages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_programs import small

from tracer.capture.workload import Workload
from tracer.errors import UserError
from tracer.hardware import load_cluster
from tracer.parallel.experts.copies import copies_of as copies_of_the_gate
from tracer.parallel.network import network_of
from tracer.parallel.plan import Plan
from tracer.parallel.ranks import stage_traces
from tracer.predict.expert_load import PLACEMENTS, ExpertChoice, rank_load
from tracer.predict.links import EVEN_LOAD
from tracer.predict.placements import placements
from tracer.predict.routed import routed_kernels
from tracer.predict.serving import Serving, predict_serving
from tracer.predict.structure import Kernels, groups_on, routing_of
from tracer.predict.training import Assumptions, predict_training

NETWORK = network_of(load_cluster("h100_ib"))
PLAN = Plan.parse("dp=16 ep=16 micro_batches=2")  # two domains of 8, 3 of 48 experts a rank


def load(tokens=4096, plan=PLAN, **choice):
    return rank_load(small(), plan, NETWORK, tokens, ExpertChoice(**choice))


def test_experts_in_order_under_even_routing_are_the_default():
    """By name it takes the road of any other law: the gate's tokens, drawn."""
    default, named = load(), load(placement="contiguous")
    assert named.rows == pytest.approx(default.rows, rel=2e-3)
    assert default.read == 1
    assert named.read == pytest.approx(1, abs=1e-6)
    own = copies_of_the_gate(routing_of(small(), PLAN), groups_on(PLAN, NETWORK)["ep"])
    # Drawn with another seed or not, 65,536 tokens have a standard error of 0.002 a chance.
    assert named.copies == pytest.approx(own, rel=0.01)


def test_a_hand_made_histogram():
    """Experts 0 to 2, those of rank 0, are in half of all tokens, the other 45 share the rest."""
    top_k, tokens = 4, 16 * 4096
    others = (top_k - 3 * 0.5) / 45
    counts = (0.5,) * 3 + (others,) * 45
    found = load(counts=counts, placement="contiguous")
    # Rank 0 has 1.5 rows a token, the mean 4/16: 6 times; chance adds next to nothing to it.
    assert found.rows == pytest.approx(6.0, rel=0.01)
    assert tokens * 1.5 / (tokens * 4 / 16) == 6.0
    # One on each of three ranks, with two others beside it: 0.5 + 2 x 0.0556 of 0.25.
    spread = load(counts=counts, placement="balanced")
    assert spread.rows == pytest.approx((0.5 + 2 * others) / 0.25, rel=0.01)
    # A token that has one of three on rank 0 still goes there once: fewer messages than rows.
    assert found.sent < found.rows


def test_what_a_few_tokens_read():
    """2 tokens a rank, 32 in all: an expert in most tokens is surely read, others perhaps."""
    few = load(tokens=2, counts=(0.9, 0.9, 0.9) + (1.3 / 45,) * 45, placement="contiguous")
    even = 1 - (1 - 4 / 48) ** 32
    assert few.read == pytest.approx(1 / even, rel=1e-3)


def test_placements_of_popular_experts():
    rows = {name: load(zipf=0.5, placement=name).rows for name in ("contiguous", "round_robin")}
    rows |= {name: load(zipf=0.5, placement=name).rows for name in ("balanced", "hierarchical")}
    assert rows["balanced"] <= min(rows.values()) * 1.001
    assert rows["hierarchical"] <= rows["contiguous"] * 1.001
    assert rows["contiguous"] > load().rows
    copies = replace(PLAN, redundant_experts=16)
    assert load(plan=copies, zipf=0.5).rows < rows["balanced"]


def test_groups_of_the_gate_that_lie_on_one_node_send_less():
    """Two groups a node in order: a third of the pairs that a token keeps are on one node. Dealt
    out, every node has experts of every group.
    """
    in_order, dealt = load(placement="contiguous"), load(placement="round_robin")
    assert in_order.copies.domains <= 2 - 1 / 3 + 0.01
    assert dealt.copies.domains > in_order.copies.domains + 0.1


def test_uneven_routing_costs_what_its_kernels_take():
    def step(**choice):
        assume = Assumptions(experts=ExpertChoice(**choice))
        return predict_training(small(), PLAN, "h100_ib", seq=4096, assume=assume)

    even, order, balanced = step(), step(zipf=0.5), step(zipf=0.5, placement="balanced")
    assert even.seconds < balanced.seconds < order.seconds
    assert order.breakdown.imbalance > balanced.breakdown.imbalance > even.breakdown.imbalance > 0
    assert any("zipf:0.5 routing, balanced placement" in note for note in balanced.notes)
    assert order.as_dict()["expert_skew"] == order.load.rows


def test_a_decode_step_that_reads_weights_does_not_wait_for_rows():
    """The even step's experts take the time of their weights: 3 times the rows are not 3 times."""

    def step(busiest):
        assume = Serving(experts=ExpertChoice(busiest=busiest))
        return predict_serving(small(), Plan.parse("dp=16 ep=16"), "h100_ib", "decode", batch=4,
                               context=256, assume=assume)  # fmt: skip

    even, uneven = step(1.0), step(3.0)
    assert even.imbalance == 0
    assert uneven.imbalance == pytest.approx(uneven.seconds - even.seconds)
    assert uneven.compute < 1.1 * even.compute


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_which_kernels_have_routed_rows(recompute):
    """Products of experts and what is between dispatch and combine; no casts of weights.

    Twice the tokens are twice the rows: of all that is no product, bytes double.
    """
    plan = replace(PLAN, recompute=recompute)

    def ledger(seq):
        work = Workload("training", 1, seq)
        return Kernels().ledger(stage_traces(small("fp8"), work, plan)[0].trace)

    short, long = ledger(128), ledger(256)
    found = {id(k) for k in routed_kernels(short)}
    assert found
    pairs = list(zip(short.kernels, long.kernels, strict=True))
    for one, two in pairs:
        if id(one) in found and one.kind != "grouped_gemm":
            assert two.cost.total_bytes == pytest.approx(2 * one.cost.total_bytes, rel=1e-3)
            assert all(".experts" in part.module for part in one.parts)
    casts = [k for k in short.kernels if set(k.cost.read) == {"weights"}]
    assert casts
    assert not {id(k) for k in casts} & found
    assert {id(k) for k in short.kernels if k.kind == "grouped_gemm"} <= found


def test_the_table_of_placements():
    found = placements(small(), PLAN, NETWORK, 4096, ExpertChoice(zipf=0.5), "normal")
    assert [row.placement for row in found] == list(PLACEMENTS)
    assert [row.placement for row in found if row.chosen] == ["contiguous"]
    for row in found:
        same = load(zipf=0.5, placement=row.placement)
        assert (row.rows, row.crossing) == (same.rows, same.copies.crossing)
        assert row.experts == 3
    choice = ExpertChoice(busiest=2.0)
    assert placements(small(), PLAN, NETWORK, 4096, choice, "normal") == ()


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(UserError, match="counts of 3 experts; the model has 48"):
        load(counts=(1.0, 1.0, 1.0))
    with pytest.raises(UserError, match="placement=contiguous has no copies for redundant=16"):
        load(plan=replace(PLAN, redundant_experts=16), placement="contiguous")
    with pytest.raises(UserError, match=r"12 ranks, 8 a domain: .* domains that are full"):
        load(plan=Plan.parse("dp=12 ep=12"), zipf=0.5)
    with pytest.raises(UserError, match=r"imbalance=0\.5"):
        ExpertChoice(busiest=0.5)
    assert load(plan=Plan.parse("dp=16"), zipf=0.5) == EVEN_LOAD  # every rank has all experts
