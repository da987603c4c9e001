"""Plans that train an MTP module, by hand, against whole traces, and against the unsharded step."""

from __future__ import annotations

import functools

import pytest
from plan_programs import small

from tracer.capture.reference import ReferenceProgram
from tracer.capture.workload import Workload, record
from tracer.cost import price
from tracer.errors import UserError
from tracer.hardware import load_cluster
from tracer.machine import Timing
from tracer.parallel.groups import strided
from tracer.parallel.memory import plan_memory
from tracer.parallel.network import network_of
from tracer.parallel.plan import Plan
from tracer.parallel.ranks import stage_traces
from tracer.predict import predict
from tracer.predict.clocked import Clocked
from tracer.predict.detail import training_detail
from tracer.predict.links import Links
from tracer.predict.structure import (
    EXPERTS,
    HEAD,
    MTP,
    Kernels,
    Structure,
    groups_on,
    routing_of,
)
from tracer.predict.training import Assumptions, predict_training, training_memory
from tracer.study.plans import parameters_of, search

PLAIN = Kernels(Timing(), casts="traced")
H100, SEQ = "h100_ib", 128
# D 256, V 512; MLA of 8 heads over latents of 128 and 128 + 16; experts of width 128, 4 of 48 and
# a shared one a token; the projection of two states.
D, V = 256, 512
ATTENTION = D * 128 + 128 * 8 * (32 + 16) + D * (128 + 16) + 128 * 8 * (32 + 32) + 8 * 32 * D
LAYER = ATTENTION + D * 48 + (4 + 1) * 3 * D * 128
MODULE = LAYER + 2 * D * D
PLANS = (
    "pp=4 dp=8 ep=8 zero=1 micro_batches=16 schedule=dualpipe mtp",
    "pp=2 dp=4 tp=2 sp ep=4 zero=2 micro_batches=8 mtp",
    "pp=3 dp=2 ep=2 micro_batches=8 recompute=full mtp",
    "pp=2 dp=1 micro_batches=8 schedule=zbv mtp",
    "dp=8 zero=3 micro_batches=2 mtp",
    "cp=2 dp=4 ep=8 zero=1 mtp",
)


@functools.cache
def trained(text: str):
    given = Assumptions(kernels=PLAIN)
    step = predict_training(small(), Plan.parse(text), H100, seq=SEQ, assume=given)
    return step, training_detail(small(), step, given)


def structure(text: str, dtype: str = "bf16", **more) -> Structure:
    work = Workload("training", 1, SEQ)
    return Structure(small(dtype), work, Plan.parse(text), network_of(H100), PLAIN, **more)


def test_one_gpu_takes_as_long_as_the_model_that_is_not_cut():
    work, program = Workload("training", 2, SEQ), small().with_mtp()
    whole = predict(work, price(record(program, work)), load_cluster(H100).chip, Timing())
    one, _ = trained("micro_batch=2 mtp")
    assert one.seconds == pytest.approx(whole.times.step, rel=1e-9)
    assert one.flops + one.flops_mtp == whole.cost.total_flops


def test_flops_of_the_module_by_hand():
    step, _ = trained(PLANS[0])
    pairs = SEQ * (SEQ + 1) // 2
    once = 2 * SEQ * (MODULE + V * D) + 2 * pairs * 8 * (32 + 16 + 32)
    assert step.flops_mtp == 3 * once * step.plan.global_batch
    alone, _ = trained(PLANS[0].removesuffix(" mtp"))
    assert step.flops == alone.flops  # published ones are those of the model without it
    assert alone.flops_mtp == 0
    assert step.mfu_with_mtp == pytest.approx(step.mfu * (1 + step.flops_mtp / step.flops))
    record = step.as_dict()
    assert (record["mtp"], record["flops_mtp"]) == (True, step.flops_mtp)
    assert record["mfu_causal_with_mtp"] > record["mfu_causal"]
    assert alone.as_dict()["mfu_causal_with_mtp"] is None
    assert any("MFU counts the FLOPs of the model without its MTP module" in n for n in step.notes)


@pytest.mark.parametrize("text", PLANS)
def test_parts_add_up_and_kernels_do_all_flops(text):
    step, d = trained(text)
    assert sum(d.parts.values()) == pytest.approx(step.seconds, rel=1e-9)
    assert sum(d.compute.values()) == pytest.approx(d.parts["compute"], rel=1e-9)
    alone = sum(c.seconds for c in d.kernels.values())
    assert alone == pytest.approx(d.compute["kernels"], rel=1e-9)
    assert sum(s.exposed for s in d.sent) == pytest.approx(
        d.parts["exposed communication"], rel=1e-9, abs=1e-15
    )
    assert max(m.total for m in d.memories) == step.memory.total
    if step.plan.tp == step.plan.cp == 1 and step.plan.recompute == "none":
        whole = sum(cost.flops for cost in d.kernels.values()) * step.plan.world
        assert whole == pytest.approx(step.flops + step.flops_mtp, rel=1e-9)
    assert sum(s.layers for s in d.stages) == 5 + 1
    assert 0 < d.mtp.compute < d.compute["kernels"]


@pytest.mark.parametrize("split", ["dp=4", "dp=2 cp=2", "tp=2 sp dp=2"])
def test_blocks_add_up_to_stages_that_are_traced_as_a_whole(split):
    """Two routes: layers one by one and a tail, and stages in one trace each."""
    text = f"pp=2 {split} ep=2 zero=1 micro_batches=4 mtp"
    blocks, plan, network = structure(text), Plan.parse(text), network_of(H100)
    links = Links(network, groups_on(plan, network), routing_of(small(), plan))
    for trace, (stage,) in stage_traces(small(), Workload("training", 1, SEQ), plan):
        whole, block = Clocked(price(trace), network, Timing()).passes(links), blocks.stage(stage)
        for direction in ("forward", "backward"):
            both = (passes.seconds(direction) for passes in (block.passes, whole))
            assert next(both) == pytest.approx(next(both), rel=0.05)
            assert block.passes.messages(direction) == pytest.approx(
                whole.messages(direction), rel=1e-6
            )
        assert block.passes.cost.total_flops == whole.cost.total_flops
        assert sum(block.parameters.values()) == pytest.approx(
            sum(whole.reduced.values()) / 2, rel=0.01
        )


@pytest.mark.parametrize(
    ("words", "twice"),
    [("schedule=1f1b", True), ("schedule=zb1p", True), ("schedule=dualpipe", False),
     ("schedule=dualpipev chunks=2", False), ("schedule=interleaved_1f1b chunks=2", True)],
)  # fmt: skip
def test_the_embedding_is_held_where_it_has_to_be(words, twice):
    """All stages' parameters are the model's with its module, the embedding again where its last
    stage has none beside it: then either end sums the gradients.
    """
    whole = sum(p.numel() for p in small().with_mtp().module("training").parameters()
                if p.requires_grad)  # fmt: skip
    blocks = structure(f"pp=2 micro_batches=8 {words} mtp")
    stages = [blocks.stage(stage) for stage in range(blocks.plan.stages)]
    held = sum(sum(block.parameters.values()) for block in stages)
    assert held == whole + V * D * twice
    frozen = 5 * 48 * 4 + 8 * 4 * len(stages)  # gates' biases; inverse frequencies
    weights = sum(block.weights for block in stages)
    assert weights == pytest.approx(2 * held + frozen, abs=8 * 4 * 8)
    assert [block.copied for block in stages] == (
        [V * D, *[0] * (len(stages) - 2), V * D] if twice else [0] * len(stages)
    )
    assert [block.borrowed for block in stages] == [0] * (len(stages) - 1) + [V * D * (not twice)]


@pytest.mark.parametrize("dense", [0, 1])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_what_is_used_twice_is_held_once(zero, dense):
    """Embedding and head are gathered, and their gradients summed, for each of their two uses."""
    config = {**small().raw, "first_k_dense_replace": dense}
    program = ReferenceProgram(f"{dense} dense", config)
    whole = sum(p.numel() for p in program.with_mtp().module("training").parameters()
                if p.requires_grad)  # fmt: skip
    plan = Plan.parse(f"dp=4 zero={zero} mtp")
    work, network = Workload("training", 1, SEQ), network_of(H100)
    block = Structure(program, work, plan, network, PLAIN).stage(0)
    assert sum(block.parameters.values()) == pytest.approx(whole, rel=1e-4)  # padding
    assert block.borrowed == V * D


def test_both_ends_wait_for_the_embeddings_gradients():
    _, d = trained("pp=3 dp=2 ep=2 micro_batches=8 recompute=full mtp")
    (row,) = [s for s in d.sent if s.axis == "embedding"]
    network = network_of(H100)
    pair = strided(2, 4, network.cluster)  # two stages of two ranks on
    assert (row.part, row.collective, row.group) == ("end of the step", "all_reduce", pair)
    assert row.bytes == V * D * 2
    assert row.seconds == row.exposed == float(network.all_reduce(V * D * 2, pair).seconds)
    assert d.mtp.embedding == V * D
    turned, its = trained(PLANS[3])
    assert not [s for s in its.sent if s.axis == "embedding"]
    assert its.mtp.embedding == 0
    assert turned.slots["data"] == 0  # one data rank: nothing else is summed


def test_what_the_module_adds_by_hand():
    """Of a layer with experts, a head, and a projection: those without it, traced alone."""
    text = PLANS[2].replace("recompute=full ", "")
    step, d = trained(text)
    blocks = structure(text, load=step.load)
    layer, head = blocks.block(EXPERTS).passes, blocks.block(HEAD).passes
    for direction, own in (("forward", d.mtp.forward), ("backward", d.mtp.input + d.mtp.weight)):
        least = layer.seconds(direction) + head.seconds(direction)
        assert least < own < 1.6 * least  # kernels of such sizes are launches: norms, projection
    assert d.mtp.forward_messages == pytest.approx(sum(layer.messages("forward").values()))
    experts = 48 // 2 * 3 * D * 128
    norms = 2 * D + 128 + 128 + 3 * D
    own = ATTENTION + D * 48 + 3 * D * 128 + 2 * D * D + norms
    assert d.mtp.parameters == own + experts + V * D


def test_weight_gradients_of_a_head_that_is_used_twice():
    """Every product of a weight, the head's two passes among them, has one for its weight."""
    launches = structure("pp=2 dp=2 mtp").block(MTP).passes.made_of[0].clocked.launches
    made = sum(op.flops for item in launches if item.weight for op in item.ops)
    assert made == 2 * SEQ * (MODULE + 2 * V * D)


@pytest.mark.parametrize(
    "text",
    ["pp=2 dp=8 ep=2 zero=1 micro_batches=8 recompute=full mtp",
     "pp=2 dp=8 ep=4 zero=3 micro_batches=8 recompute=full mtp",
     "pp=2 tp=2 sequence_parallel dp=4 ep=8 zero=2 micro_batches=8 recompute=full mtp"],
)  # fmt: skip
def test_a_rank_holds_what_its_whole_stage_holds(text):
    plan = Plan.parse(text)
    whole = plan_memory(small(), Workload("training", 1, SEQ), plan, 80e9)
    found = training_memory(small(), plan, H100, seq=SEQ, assume=Assumptions(kernels=PLAIN))
    for part in ("weights", "gradients", "optimizer"):  # padding of slices apart
        assert getattr(found, part) == pytest.approx(getattr(whole, part), rel=1e-3), part
    assert found.total == pytest.approx(whole.total, rel=0.05)


def test_what_is_kept_in_fp8_by_hand():
    """A layer in FP8; in BF16 what `enorm` reads and [T, 2D]; and of both heads, as traced, FP32
    probabilities, logits in BF16 and the states around the norm before them.
    """
    blocks = structure("pp=2 dp=2 recompute=latent mtp", "fp8", kept="fp8")
    head = blocks.block(HEAD).saved
    own = blocks.block(MTP).saved - blocks.block(EXPERTS).saved
    assert own == pytest.approx(SEQ * 2 * 3 * D + 2 * head)
    assert SEQ * 4 * V < head < SEQ * (4 * V + 2 * V + 2 * 2 * D)


def test_searches_count_the_module():
    plan = Plan(mtp=True)
    more = sum(parameters_of(small(), plan)) - sum(parameters_of(small(), Plan()))
    module = small().with_mtp().module("training").model.layers[5]
    assert more == sum(p.numel() for p in module.parameters())
    found = search(small(), 4, H100, global_batch=16, seq=64, like=plan, schedules=("1f1b",))
    assert found.ranked
    assert all(step.plan.mtp and step.flops_mtp for step in found.ranked)
    assert not [item for item in found.dropped if item.kind == "cannot run"]


def test_the_module_is_not_served():
    from tracer.predict.serving import predict_serving

    for text in ("mtp", "dp=2 mtp"):
        with pytest.raises(UserError, match="speculative decoding, is not modelled"):
            predict_serving(small(), Plan.parse(text), H100, "decode", batch=2)
