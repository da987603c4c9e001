"""Prices of plans of transformers models: what the stages compute and send, held by hand."""

import pickle

import pytest
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlamaConfig,
    MixtralConfig,
    ResNetConfig,
)

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.workload import Workload, record
from tracer.cost import Cost, price
from tracer.errors import UserError
from tracer.parallel.network import network_of
from tracer.parallel.plan import Plan
from tracer.parallel.schedules import SCHEDULES
from tracer.predict.detail import serving_detail
from tracer.predict.program import WholeStages, stages_of
from tracer.predict.serving import Serving, predict_serving
from tracer.predict.structure import Kernels, groups_on
from tracer.predict.training import predict_training
from tracer.study.plans import search

SEQ, LAYERS, D, F, V, HEADS, KV, WIDTH = 256, 7, 256, 512, 512, 8, 4, 32
SIZES = {
    "hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS, "vocab_size": V,
    "num_attention_heads": HEADS, "num_key_value_heads": KV,
}  # fmt: skip
LAYER = 2 * D * D + 2 * D * KV * WIDTH + 3 * D * F + 2 * D
CLUSTER = "h100_ib"


@pytest.fixture(scope="module")
def llama():
    return HuggingFaceProgram("llama", LlamaConfig(**SIZES))


@pytest.fixture(scope="module")
def mixtral():
    config = MixtralConfig(
        **{**SIZES, "num_hidden_layers": 3}, num_local_experts=8, num_experts_per_tok=2
    )
    return HuggingFaceProgram("mixtral", config)


def stages(program, words, phase="training", **more):
    plan = Plan.parse(words)
    found = stages_of(
        program, plan, network_of(CLUSTER), Kernels(), phase=phase, seq=SEQ, context=SEQ, **more
    )
    assert isinstance(found, WholeStages)
    assert found.illegal(plan) == []
    return found


def test_a_plan_of_one_gpu_is_the_unsharded_trace(llama):
    (block,) = stages(llama, "tp1").blocks()
    ledger = price(record(llama, Workload("training", 1, SEQ)))
    assert block.passes.cost == Cost.sum(k.cost for k in ledger.kernels if k.phase != "optimizer")
    assert block.weights == sum(p.nbytes for p in ledger.trace.parameters)
    assert block.parameters == {"dp": LAYERS * LAYER + 2 * V * D + D}


@pytest.mark.parametrize("words", ["pp3", "pp7", "tp2 pp2", "pp2 cp2", "pp2 chunks=2", "tp4 cp2"])
def test_stages_sum_to_the_whole(llama, words):
    """FLOPs and parameters; norms, 2·7+1 of D elements, are on every TP rank."""
    found = stages(llama, words)
    plan, blocks = found.plan, found.blocks()
    assert len(blocks) == plan.stages
    whole = price(record(llama, Workload("training", 1, SEQ))).total()
    total = sum(b.passes.cost.total_flops for b in blocks)
    assert plan.tp * plan.cp * total == whole.total_flops
    norms = (2 * LAYERS + 1) * D
    parameters = plan.tp * sum(sum(b.parameters.values()) for b in blocks)
    assert parameters == LAYERS * LAYER + 2 * V * D + D + (plan.tp - 1) * norms


def test_stages_that_are_alike_are_one_block(llama):
    """7 layers over 5 stages: 2, 2, 1, 1, 1. The ends are of their own kind."""
    blocks = stages(llama, "pp5").blocks()
    assert blocks[2] is blocks[3]
    assert len({id(b) for b in blocks}) == 4
    assert [b.parameters["dp"] // LAYER for b in blocks] == [2, 2, 1, 1, 1]


def test_keys_of_all_ranks_cross_the_network(llama):
    """CP: keys and values of a layer, 2·KV·WIDTH of SEQ tokens in BF16; their gradients back."""
    found = stages(llama, "cp4")
    (block,) = found.blocks()
    network = network_of(CLUSTER)
    group = groups_on(found.plan, network)["cp"]
    nbytes = 2 * KV * WIDTH * SEQ * 2
    gather = LAYERS * float(network.all_gather(nbytes, group).seconds)
    scatter = LAYERS * float(network.reduce_scatter(nbytes, group).seconds)
    assert block.passes.messages("forward") == pytest.approx({"cp": gather})
    assert block.passes.messages("backward") == pytest.approx({"cp": scatter})


def test_parameters_are_gathered_layer_by_layer(llama):
    """FSDP over 8: a layer before both passes; what is beside the layers once, before both."""
    found = stages(llama, "dp8 fsdp")
    (block,) = found.blocks()
    network = network_of(CLUSTER)
    group = groups_on(found.plan, network)["dp"]

    def seconds(op, elements):
        return float(network.time(op, 2 * elements, group).seconds)

    rest = 2 * V * D + D
    gather = LAYERS * seconds("all_gather", LAYER)
    forward = gather + seconds("all_gather", rest)
    backward = gather + LAYERS * seconds("reduce_scatter", LAYER) + seconds("reduce_scatter", rest)
    assert block.passes.messages("forward") == pytest.approx({"dp": forward})
    assert block.passes.messages("backward") == pytest.approx({"dp": backward})
    assert block.parameters == {"dp": LAYERS * LAYER + rest}
    assert block.weights == pytest.approx(2 * (LAYERS * LAYER + rest) / 8, rel=0.01)  # and buffers


def test_experts_and_what_is_beside_them(mixtral):
    """EP 4 of DP 8: experts are summed over 2 ranks, everything else over 8."""
    (block,) = stages(mixtral, "ep4 dp8 zero=1").blocks()
    attention = 2 * D * D + 2 * D * KV * WIDTH + 2 * D
    assert block.parameters == {
        "edp": 3 * 2 * 3 * D * F, "dp": 3 * (attention + 8 * D) + 2 * V * D + D,
    }  # fmt: skip
    assert set(block.passes.messages("forward")) == {"ep"}


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_every_schedule_runs(llama, schedule):
    plan = Plan(pp=2, micro_batches=4, schedule=schedule)
    step = predict_training(llama, plan, CLUSTER, seq=SEQ)
    one = predict_training(llama, Plan(micro_batches=4), CLUSTER, seq=SEQ)
    assert step.feasible
    assert step.flops == one.flops
    assert one.seconds / 2 < step.seconds < 2 * one.seconds
    rows = step.stages
    assert sum(r["forward"] for r in rows) == pytest.approx(one.stages[0]["forward"], rel=0.05)


def test_recomputation_is_paid_and_spares_memory(llama):
    none, full = (
        predict_training(llama, Plan(recompute=how, micro_batch=4), CLUSTER, seq=SEQ)
        for how in ("none", "full")
    )
    assert full.memory.activations < none.memory.activations / 2
    assert full.stages[0]["input_gradient"] > none.stages[0]["input_gradient"]
    assert full.flops == none.flops  # published FLOPs count nothing twice


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_serving_in_stages(llama, phase):
    """The kernels of two stages take what those of one GPU take, and a hop; of caches each holds
    its layers', of the batch that it runs and of the one in the other stage.
    """
    one, two = (
        predict_serving(
            llama, Plan(pp=pp), CLUSTER, phase, batch=4, seq=SEQ, context=SEQ
        )
        for pp in (1, 2)
    )  # fmt: skip
    assert two.compute == pytest.approx(one.compute, rel=0.05)
    assert one.seconds < two.seconds
    assert two.interval < one.seconds
    assert one.kv == LAYERS * 2 * KV * WIDTH * 4 * SEQ * 2
    assert two.kv == 2 * one.kv * 4 / 7  # the longer stage has four of seven layers


@pytest.mark.parametrize("words", ["tp1", "tp2", "pp2", "tp2 pp2", "cp2"])
def test_an_engine_makes_logits_of_the_last_token_alone(llama, words):
    plan, batch, flops = Plan.parse(words), 4, {}
    for engine in ("fused", "traced"):
        assume = Serving(engine=engine)
        step = predict_serving(
            llama, plan, CLUSTER, "prefill", batch=batch, seq=SEQ, assume=assume
        )  # fmt: skip
        detail = serving_detail(llama, step, assume)
        flops[engine] = sum(cost.flops for cost in detail.kernels.values())
        assert any("last token" in note for note in step.notes) == (engine == "fused")
    # All of a rank's tokens but one, of every sequence, by its part of the vocabulary.
    tokens = batch * (SEQ // plan.cp - 1)
    assert flops["traced"] - flops["fused"] == 2 * tokens * D * V / plan.tp


def test_a_long_prompt_needs_no_room_for_its_logits():
    program = HuggingFaceProgram("wide", LlamaConfig(**{**SIZES, "vocab_size": 8192}))
    working = {
        engine: predict_serving(
            program, Plan(), CLUSTER, "prefill", batch=4, seq=SEQ, assume=Serving(engine=engine)
        ).memory.working
        for engine in ("fused", "traced")
    }
    logits = 4 * SEQ * 8192 * 2
    assert working["fused"] < logits <= working["traced"]


def test_search_takes_what_is_legal(mixtral):
    found = search(
        mixtral, 4, CLUSTER, global_batch=8, seq=SEQ, schedules=("1f1b",), like=Plan(zero=1)
    )
    axes = {(s.plan.tp > 1, s.plan.ep > 1, s.plan.pp > 1) for s in found.ranked}
    assert {(True, True, False), (False, True, True), (False, False, True)} <= axes
    assert not any(s.plan.sequence_parallel for s in found.ranked)
    assert any("EP=2 is no multiple of TP=4" in d.reason for d in found.dropped)


def test_a_program_works_in_another_process(llama, monkeypatch):
    """Where nothing has been built, transformers has not heard of our attention."""
    sent = pickle.dumps(llama)
    for registry in (AttentionInterface, AttentionMaskInterface):
        monkeypatch.delitem(registry._global_mapping, "tracer")
    there = pickle.loads(sent)
    steps = [predict_training(p, Plan(tp=2), CLUSTER, seq=SEQ).seconds for p in (llama, there)]
    assert steps[0] == steps[1]


def test_what_cannot_be_priced_says_so(llama):
    with pytest.raises(UserError, match="no plan of transformers cuts tokens by TP"):
        predict_training(llama, Plan(tp=2, sequence_parallel=True), CLUSTER, seq=SEQ)
    tied = HuggingFaceProgram("tied", LlamaConfig(**SIZES, tie_word_embeddings=True))
    with pytest.raises(UserError, match="the embedding is the output head, which PP=2 puts on"):
        predict_training(tied, Plan(pp=2, micro_batches=2), CLUSTER, seq=SEQ)


def test_models_of_other_kinds_run_on_data_ranks():
    """A convolutional net has no heads and no layers that a plan could cut."""
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    net = HuggingFaceProgram("resnet", config)
    one, four = (predict_training(net, Plan(dp=dp), CLUSTER) for dp in (1, 4))
    assert one.stages[0]["forward"] == four.stages[0]["forward"]
    assert four.stages[0]["reduction"] > one.stages[0]["reduction"] == 0
    with pytest.raises(UserError, match="the config has none of"):
        predict_training(net, Plan(tp=2), CLUSTER)


def test_a_tied_embedding_is_cut_once():
    tied = HuggingFaceProgram("tied", LlamaConfig(**SIZES, tie_word_embeddings=True))
    (block,) = stages(tied, "tp2").blocks()
    norms = (2 * LAYERS + 1) * D
    assert 2 * block.parameters["dp"] == LAYERS * LAYER + V * D + D + norms
