"""Any plan of a transformers model: the ranks sum to the whole, and every message by hand."""

from dataclasses import replace

import pytest
from hypothesis import Phase, assume, example, given, settings
from hypothesis import strategies as st
from rank_programs import messages
from transformers_plans import (
    BATCH,
    EXPERTS,
    LAYERS,
    MODELS,
    MOE_LAYERS,
    SEQ,
    D,
    T,
    V,
    elements,
    first_slices,
    held,
    model,
    parameters,
    router_flops,
    stage_ledgers,
    whole,
    work,
)

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.huggingface.config import with_layers
from tracer.capture.huggingface.legality import illegal
from tracer.cost import Cost, price
from tracer.errors import UserError
from tracer.parallel import Plan, rank_trace
from tracer.parallel.memory import rank_memory
from tracer.parallel.ranks import sizes_of

PHASES = ("training", "prefill", "decode")


@st.composite
def drawn(draw):
    name = draw(st.sampled_from(MODELS))
    phase = draw(st.sampled_from(PHASES))
    sizes = st.sampled_from((1, 2, 4))
    plan = Plan(
        tp=draw(sizes), pp=draw(st.sampled_from((1, 2, 3))), cp=draw(st.sampled_from((1, 2))),
        dp=draw(sizes), ep=draw(st.sampled_from((1, 2, 4, 8))), micro_batch=BATCH,
        chunks=draw(st.sampled_from((1, 1, 2))),
        zero=draw(st.sampled_from((0, 3))) if phase == "training" else 0,
    )  # fmt: skip
    seq = 1 if phase == "decode" else SEQ
    reasons = plan.illegal(sizes_of(model(name)), training=phase == "training", seq=seq)
    assume(not reasons and not illegal(model(name), work(phase), plan))
    assume(name != "gpt_oss" or plan.tp == 1)  # its plan leaves attention whole on TP ranks
    # The first of TP ranks that share tokens unevenly has more than the mean.
    assume(plan.ep == 1 or BATCH * seq % plan.tp == 0)
    return name, phase, plan


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(drawn())
@example(("qwen", "training", Plan.parse(f"tp4 ep4 pp3 dp4 cp2 fsdp micro_batch={BATCH}")))
def test_ranks_sum_to_the_whole(case):
    """FLOPs of the ranks that share one batch, and parameters of those that hold the model once."""
    name, phase, plan = case
    ledgers = stage_ledgers(name, plan, phase)
    total = Cost.sum(ledger.total() for ledger in ledgers)
    expected = whole(name, phase).total_flops + (plan.tp - 1) * router_flops(name, phase)
    assert plan.tp * plan.cp * total.total_flops == expected
    if plan.zero == 3 and plan.dp * plan.cp > 1:
        uncut = stage_ledgers(name, replace(plan, zero=0), phase)
        assert held(uncut, plan) == parameters(name, plan.tp)
        assert [elements(lg) for lg in ledgers] == [first_slices(lg, plan) for lg in uncut]
    else:
        assert held(ledgers, plan) == parameters(name, plan.tp)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama", "tp2 pp2"), ("llama", "cp2 dp2 fsdp recompute=full"), ("mixtral", "tp2 ep4 dp2"),
        ("gpt_oss", "ep2 dp2 fsdp"), ("qwen", "tp4 pp2"),
    ],
)  # fmt: skip
def test_folded_is_full(name, words):
    plan = Plan.parse(words + f" micro_batch={BATCH}")
    folded, full = (stage_ledgers(name, plan, "training", fold) for fold in (True, False))
    for phase in ("forward", "backward", "recompute"):
        one, other = (Cost.sum(x.total(phase) for x in side) for side in (folded, full))
        assert one == other
    one, other = (Cost.sum(x.total() for x in side) for side in (folded, full))
    assert one.messages == other.messages


def test_stages_of_a_pipeline():
    """States of T·D in BF16 between stages, both ways; first layers, last head."""
    plan = Plan.parse(f"pp3 micro_batch={BATCH}")
    ledgers = stage_ledgers("llama", plan, "training")
    assert [x.trace.header["layers"] for x in ledgers] == [[0, 3], [3, 5], [5, 7]]
    hop = T * D * 2
    got = [messages(x, "pp") for x in ledgers]
    assert got == [
        {"isend": hop, "irecv": hop}, {"isend": 2 * hop, "irecv": 2 * hop},
        {"isend": hop, "irecv": hop},
    ]  # fmt: skip
    names = [{p.name for p in x.trace.parameters if not p.buffer} for x in ledgers]
    assert "model.embed_tokens.weight" in names[0] and "lm_head.weight" not in names[0]
    assert {"model.norm.weight", "lm_head.weight"} <= names[2]
    assert "model.embed_tokens.weight" not in names[1] | names[2]
    assert len(names[1]) == 2 * 9  # two layers of nine parameters


def test_layers_of_a_stage_keep_what_they_see():
    """GPT-OSS: every other layer sees 8·9/2 + 24·8 pairs, those between all 32·33/2."""
    pairs = []
    for ledger in stage_ledgers("gpt_oss", Plan.parse(f"pp3 micro_batch={BATCH}"), "prefill"):
        flops = sum(k.cost.total_flops for k in ledger.kernels if k.kind == "attention")
        pairs.append(flops // (2 * 2 * 8 * 8 * BATCH))  # two products of 8 heads of 8
    every, some = SEQ * (SEQ + 1) // 2, 8 * 9 // 2 + (SEQ - 8) * 8
    assert pairs == [2 * some + every, every + some, every + some]


def test_experts_by_all_to_all():
    """Training: a TP rank sends its half of T tokens, k rows each, there and back, both passes.

    The counts of rows for 8 experts, 8 B each, go ahead. Balanced, as many rows come.
    """
    plan = Plan.parse(f"tp2 ep4 dp2 micro_batch={BATCH}")
    (ledger,) = stage_ledgers("mixtral", plan, "training")
    rows = T // 2 * 2
    got = messages(ledger, "ep")
    layers = MOE_LAYERS["mixtral"]
    assert got == {
        "all_to_all_single": layers * 4 * rows * D * 2, "alltoall_base_": layers * EXPERTS * 8,
    }  # fmt: skip
    shapes = {
        next(op.inputs()).shape for op in ledger.trace.ops
        if op.name == "aten._grouped_mm.default" and op.phase == "forward"
    }  # fmt: skip
    assert shapes == {(rows, D), (rows, 96)}
    weights = {p.name: p.shape for p in ledger.trace.parameters if ".0.mlp.experts" in p.name}
    assert weights["model.layers.0.mlp.experts.gate_up_proj"] == (EXPERTS // 4, 2 * 96, D)


@pytest.mark.parametrize(("phase", "tokens"), [("prefill", T), ("decode", BATCH)])
def test_experts_of_one_batch(phase, tokens):
    """Inference, EP as wide as TP: each rank computes its share of T·k rows, one all-reduce."""
    plan = Plan.parse(f"tp4 ep4 micro_batch={BATCH}")
    (ledger,) = stage_ledgers("mixtral", plan, phase)
    layers, rows = MOE_LAYERS["mixtral"], -(-tokens * 2 // 4)
    assert messages(ledger, "ep") == {"allreduce_": layers * tokens * D * 2}
    grouped = sum(k.cost.total_flops for k in ledger.kernels if "grouped" in k.name)
    assert grouped == layers * rows * 2 * (2 * 96 * D + 96 * D)


def test_gradients_are_summed_where_parameters_are_shared():
    """Experts over the two ranks that hold the same ones, everything else over four."""
    plan = Plan.parse(f"ep2 dp4 micro_batch={BATCH}")
    (ledger,) = stage_ledgers("mixtral", plan, "training")
    names = dict(model("mixtral").module("training", "meta").named_parameters())
    experts = sum(p.numel() for n, p in names.items() if ".experts." in n)
    others = sum(p.numel() for n, p in names.items() if ".experts." not in n)
    assert messages(ledger, "edp") == {"all_reduce_": 2 * experts // 2}
    assert messages(ledger, "dp") == {"all_reduce_": 2 * others}


def test_fully_shard_and_tensor_parallel():
    """FSDP over four ranks gathers what a TP rank has of a layer: half of its matrices."""
    plan = Plan.parse(f"tp2 dp4 fsdp micro_batch={BATCH}")
    (ledger,) = stage_ledgers("llama", plan, "training")
    layer = (4 * D * D + 3 * D * 96) // 2 + 2 * D
    rest = (2 * V * D) // 2 + D
    layers = LAYERS["llama"]
    assert messages(ledger, "dp") == {
        "_allgather_base_": 2 * (2 * layers * layer + rest),
        "_reduce_scatter_base_": 2 * (layers * layer + rest),
    }


@pytest.mark.parametrize("how", ["none", "full"])
def test_gathered_layers_are_given_back(how):
    """Of gathered parameters the backward finds the root's in place, and no layer's."""
    kept = []
    for words in ("", "dp2 fsdp "):
        plan = Plan.parse(f"{words}recompute={how} micro_batch={BATCH}")
        (ledger,) = stage_ledgers("llama", plan, "training")
        kept.append(rank_memory(ledger, Plan(), 80e9).activations)
    assert kept[1] - kept[0] == 2 * (2 * V * D + D)


def test_recomputation():
    """Full: the backward runs every layer's products again, and a layer keeps its input alone."""
    found = {}
    for how in ("none", "selective", "full"):
        plan = Plan.parse(f"recompute={how} micro_batch={BATCH}")
        (found[how],) = stage_ledgers("llama", plan, "training")
    again = {how: x.total("recompute").total_flops for how, x in found.items()}
    # Nothing needs the result of a layer's last product again, nor the head's.
    last, head = LAYERS["llama"] * 2 * T * 96 * D, 2 * T * D * V
    assert again["none"] == again["selective"] == 0
    assert again["full"] == found["none"].total("forward").total_flops - last - head
    kept = {how: rank_memory(x, Plan(), 80e9).activations for how, x in found.items()}
    assert kept["full"] < kept["selective"] < kept["none"]


def test_what_a_layer_keeps_for_recomputation():
    """Of two depths, the deeper one keeps one layer's input, T·D in BF16, more."""
    kept = []
    for layers in (5, 6):
        program = HuggingFaceProgram("llama", with_layers(model("llama").config, layers))
        plan = Plan.parse(f"recompute=full micro_batch={BATCH}")
        ledger = price(rank_trace(program, work("training"), plan))
        kept.append(rank_memory(ledger, Plan(), 80e9).activations)
    assert kept[1] - kept[0] == T * D * 2


@pytest.mark.parametrize(
    ("name", "words", "phase", "reason"),
    [
        ("llama", "tp2 sp", "prefill", "no plan of transformers cuts tokens by TP"),
        ("llama", "recompute=latent", "training", "of MLA's latents"),
        ("llama", "dp2 zero=1", "training", "is traced with zero=0 .* or zero=3"),
        ("llama", "ep2 dp2", "training", "EP=2: the model has no routed experts"),
        ("llama", "pp8", "training", "7 layers over PP=8 leaves stages empty"),
        ("mixtral", "tp4 ep2", "training", "EP=2 is no multiple of TP=4"),
        ("mixtral", "ep2", "training", "EP=2 does not divide the 1 ranks of a stage"),
        ("mixtral", "ep3 dp3", "training", "8 experts do not divide by EP=3"),
        ("mixtral", "ep2 dp2 redundant_experts=2", "decode", "redundant_experts=2: traced for"),
        ("gpt_oss", "tp2", "prefill", "cuts none of its layers"),
        ("gpt_oss", "cp2", "prefill", "only a causal language model of like layers"),
    ],
)  # fmt: skip
def test_what_is_not_there_says_so(name, words, phase, reason):
    with pytest.raises(UserError, match=reason):
        rank_trace(model(name), work(phase), Plan.parse(words + f" micro_batch={BATCH}"))
