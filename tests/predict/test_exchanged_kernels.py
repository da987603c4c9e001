"""A rank's training program around DeepEP's normal kernels: what these do, and what stays."""

from __future__ import annotations

import functools

import pytest
from plan_programs import small
from transformers import MixtralConfig

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.records import BACKWARD, FORWARD, RECOMPUTE
from tracer.capture.reference import ReferenceProgram
from tracer.capture.workload import Workload
from tracer.cost import price
from tracer.cost.exchanged import in_tokens
from tracer.cost.onepass import CAST, one_pass
from tracer.cost.work import COLLECTIVE, GATHER, GROUPED_GEMM, SORT
from tracer.errors import UserError
from tracer.parallel.plan import Plan
from tracer.parallel.ranks import rank_trace
from tracer.predict.assumptions import trained
from tracer.predict.detail import training_detail
from tracer.predict.training import Assumptions, predict_training
from tracer.predict.weight_ops import weight_gradients

T, K, D, F = 64, 4, 256, 128  # tokens of a rank, experts a token, hidden, width of an expert
N = T * K  # rows
TILES = D // 128
LAYERS = 1  # with experts, of two
EP = "dp=16 ep=16"
NAMES = [("bf16", "none", "one_pass"), ("bf16", "full", "one_pass"), ("fp8", "none", "one_pass"),
          ("fp8", "latent", "traced"), ("fp8", "full", "one_pass")]  # fmt: skip


def two_layers(dtype):
    raw = {**small(dtype).raw, "num_hidden_layers": 2}
    return ReferenceProgram("two layers", raw, dtype)


@functools.cache
def plain(dtype, recompute="none", casts="one_pass", text=EP):
    plan = Plan.parse(f"{text} recompute={recompute}")
    trace = rank_trace(two_layers(dtype), Workload("training", 1, T), plan, rank=0, fold=False)
    ledger = price(trace)
    return one_pass(ledger) if casts == "one_pass" else ledger


@functools.cache
def lean(*names):
    return in_tokens(plain(*names))


def of_experts(ledger, phase):
    """Kernels of one layer's routed experts in a pass."""
    return [
        k for k in ledger.kernels
        if k.phase == phase and k.kind != COLLECTIVE
        and any(p.module.endswith("layers.1.mlp.experts") for p in k.parts)
    ]  # fmt: skip


def gathered(ledger, phase):
    """Rows that are gathered, by their type and width, in order."""
    outs = [
        ledger.trace.ops[k.parts[-1].op].outputs[0]
        for k in of_experts(ledger, phase) if k.kind == GATHER
    ]  # fmt: skip
    return [(out.dtype.split("_")[0], out.shape[1]) for out in outs if out.shape[0] == N
            and len(out.shape) == 2]  # fmt: skip


VALUES, SCALES, ROWS = ("float8", D), ("float32", TILES), ("bfloat16", D)


def test_rows_are_sorted_by_expert_and_nothing_else_in_the_forward():
    # To the exchange, by expert; back, and by token.
    assert gathered(plain("bf16"), FORWARD) == [ROWS] * 4
    assert gathered(lean("bf16"), FORWARD) == [ROWS] * 2
    assert sorted(gathered(plain("fp8"), FORWARD)) == sorted([VALUES, SCALES] * 2 + [ROWS] * 2)
    assert gathered(lean("fp8"), FORWARD) == [VALUES, SCALES, ROWS]


def test_the_backward_sorts_gradients_as_they_come_and_back():
    # FP8 rows that arrived are sorted as such; in front of the exchange they were gathered in BF16.
    assert gathered(plain("fp8"), BACKWARD) == [ROWS, VALUES, SCALES, ROWS, ROWS]
    assert gathered(lean("fp8"), BACKWARD) == [VALUES, SCALES, ROWS]
    assert gathered(plain("bf16"), BACKWARD) == [ROWS] * 4
    assert gathered(lean("bf16"), BACKWARD) == [ROWS] * 2


def test_what_is_computed_again_loses_what_the_forward_does():
    for dtype in ("bf16", "fp8"):
        again = gathered(lean(dtype, "full"), RECOMPUTE)
        assert again == gathered(lean(dtype, "full"), FORWARD)
        assert len(again) < len(gathered(plain(dtype, "full"), RECOMPUTE))


@pytest.mark.parametrize("names", NAMES)
def test_a_tokens_results_are_weighted_and_summed_on_their_way(names):
    def rows_of_tokens(ledger):
        """Ops on [tokens, k, hidden]: weights, sums, and gradients of both."""
        ops = ledger.trace.ops
        return [
            p.op for k in ledger.kernels for p in k.parts
            if any(r.shape == (T, K, D) for r in (*ops[p.op].inputs(), *ops[p.op].outputs))
        ]  # fmt: skip

    # Product and sum forward, and twice more if computed again; the gradient times the weights;
    # the sum of input gradients; product and sum for the gradients of weights.
    forwards = 2 if names[1] == "full" else 1
    assert len(rows_of_tokens(plain(*names))) == LAYERS * (2 * forwards + 4)
    assert rows_of_tokens(lean(*names)) == []


def test_gradients_are_rounded_once_a_token():
    def written(ledger):
        """Casts of the backward that read BF16 rows or tokens of hidden size, in order."""
        ops = ledger.trace.ops
        return [
            k.cost for k in of_experts(ledger, BACKWARD)
            if k.name == CAST and k.parts[-1].op not in weight_gradients(ledger)
            and next(ops[k.parts[0].op].inputs()).numel == N * D
        ]  # fmt: skip

    (rows,), (tokens,) = written(plain("fp8")), written(lean("fp8"))
    # BF16 in, E4M3 and an FP32 scale for 128 out.
    assert rows.total_bytes == N * (2 * D + D + 4 * TILES)
    assert tokens.total_bytes == T * (2 * D + D + 4 * TILES)


@pytest.mark.parametrize("names", NAMES)
def test_products_messages_and_weight_gradients_stay_as_they_are(names):
    before, after = plain(*names), lean(*names)
    assert after.total().flops == before.total().flops
    assert after.total().recompute_flops == before.total().recompute_flops
    assert after.total().messages == before.total().messages
    weights = weight_gradients(before)
    kept = {id(k) for k in after.kernels}
    for kernel in before.kernels:
        alike = kernel.kind in (GROUPED_GEMM, SORT)
        if alike or all(p.op in weights for p in kernel.parts):
            assert id(kernel) in kept
    assert weight_gradients(after) == weights


@pytest.mark.parametrize("names", NAMES)
def test_what_stays_has_the_bytes_that_it_had(names):
    before, after = plain(*names), lean(*names)
    cost = {p.op: p.cost for p in before.parts()}
    tokens = 0
    for part in after.parts():
        if part.cost != cost[part.op]:  # rounded once a token
            tokens += 1
            assert K * part.cost.total_bytes == cost[part.op].total_bytes
    assert (tokens > 0) == (names[0] == "fp8")
    assert all(k.cost.total_bytes == sum(p.cost.total_bytes for p in k.parts)
               for k in after.kernels)  # fmt: skip


def test_bytes_that_go_are_those_of_the_formula():
    by = {
        phase: plain("fp8").total(phase).total_bytes - lean("fp8").total(phase).total_bytes
        for phase in (FORWARD, BACKWARD)
    }
    small_ones = 64 * N  # indices, weights and their gradients
    # Values and scales gathered from tokens; results gathered; weighted and summed.
    forward = (T + N) * (D + 4 * TILES) + 4 * N * D + 2 * (N * D + T * D)
    assert 0 <= by[FORWARD] / LAYERS - forward < small_ones
    # Gradients times weights, gathered, rounded N - T times too often (and their scales turned
    # round twice); input gradients gathered and summed; results times gradients, summed.
    backward = (
        2 * (T * D + N * D) + 4 * N * D + (N - T) * (3 * D + 4 * TILES + 8 * TILES)
        + 4 * N * D + 2 * (N * D + T * D) + 2 * (N * D + T * D)
    )  # fmt: skip
    assert 0 <= by[BACKWARD] / LAYERS - backward < small_ones


def test_without_an_exchange_nothing_changes():
    for text in ("dp=1", "dp=16", "tp=2 sp dp=2"):
        ledger = plain("fp8", "none", "one_pass", text)
        assert in_tokens(ledger) is ledger


def step(text, dtype="fp8", program=None, **assume):
    plan = Plan.parse(f"{text} micro_batches=8")
    return predict_training(
        program or two_layers(dtype), plan, "h100_ib", seq=T, assume=Assumptions(**assume)
    )


def test_an_engine_has_a_shorter_step_in_the_same_memory():
    fused, traced = (step("pp=2 " + EP, engine=name) for name in ("fused", "traced"))
    assert fused.seconds < traced.seconds
    for slot in ("F", "I"):
        assert fused.slots[slot] < traced.slots[slot]
    assert fused.slots["W"] == pytest.approx(traced.slots["W"], rel=1e-12)
    assert (fused.memory, fused.flops) == (traced.memory, traced.flops)
    note = "DeepEP's normal kernels gather and sum rows themselves"
    assert note in fused.notes and note not in traced.notes
    seconds = {
        name: sum(cost.seconds for cost in training_detail(
            two_layers("fp8"), found, Assumptions(engine=name)).kernels.values())
        for name, found in (("fused", fused), ("traced", traced))
    }  # fmt: skip
    assert seconds["fused"] < seconds["traced"]


@pytest.mark.parametrize("text", ["dp=1", "dp=4", "pp=2 dp=2 tp=2 sp"])
def test_a_plan_without_expert_ranks_has_no_engine(text):
    fused, traced = (step(text, engine=name) for name in ("fused", "traced"))
    assert (fused.seconds, fused.notes) == (traced.seconds, traced.notes)


def test_rows_in_one_all_to_all_are_not_tokens():
    # The collective moves what it is given; so it does for models of transformers.
    rows = Assumptions(exchange="nccl")
    assert trained(rows, small(), Plan.parse(EP)) == rows
    config = MixtralConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, vocab_size=512,
        num_attention_heads=8, num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    mixtral = HuggingFaceProgram("mixtral", config)
    fused, traced = (step("dp=4 ep=4", program=mixtral, engine=name)
                     for name in ("fused", "traced"))  # fmt: skip
    assert (fused.seconds, fused.notes) == (traced.seconds, traced.notes)


def test_an_engine_nobody_knows_is_refused():
    with pytest.raises(UserError, match="engine='megatron': choose fused or traced"):
        Assumptions(engine="megatron")
