"""The MTP module in the programs of ranks: all of them together are the model with it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rank_programs import (
    SEARCH,
    SIZES,
    SMALL,
    held,
    ledgers,
    legal_plans,
    messages,
    over_ranks,
    repeated_flops,
    small,
    unsharded,
    v3,
)

from tracer.capture.reference import ReferenceProgram
from tracer.capture.workload import Workload
from tracer.cost import price
from tracer.errors import UserError
from tracer.parallel import Plan, Sizes, rank_trace, stage_traces
from tracer.parallel.schedules import SCHEDULES, build

WORK = Workload("training", 1, 16, 16, "none")


def trained(trace):
    """Whole parameters with a gradient; the slices of ZeRO are of the same elements."""
    return [p for p in trace.parameters if p.trainable and not p.buffer and "shard_" not in p.name]


@SEARCH
@given(legal_plans(mtp=True))
def test_ranks_sum_to_the_whole_with_its_module(plan):
    program = small()
    batch = plan.micro_batch * plan.data_ranks
    whole = price(unsharded(program.with_mtp(), replace(WORK, batch=batch))).total()
    got = over_ranks(program, replace(WORK, batch=plan.micro_batch), plan)
    again = 3 * repeated_flops(program.config, plan, 16 * batch)
    assert got.total_flops == whole.total_flops + again


@SEARCH
@given(legal_plans(mtp=True))
def test_parameters_of_all_ranks_with_its_module(plan):
    """Those of the model as often as they are held; of the embedding both ends of a pipeline."""
    assume(plan.zero < 2)  # beyond, a rank's parameters are slices
    program, got = small(), 0
    for trace, stages in stage_traces(program, replace(WORK, batch=plan.micro_batch), plan):
        local = sum(p.numel for p in trained(trace))
        got += local * len(stages) * plan.ranks_per_stage
    whole = unsharded(program.with_mtp(), WORK)
    biases = sum(p.numel for p in whole.parameters if "e_score" in p.name)
    assert got == held(program.config, plan, whole) - biases * plan.ranks_per_stage


def test_v3_with_its_module_at_full_size():
    """671,026,419,200 parameters and 11,610,068,224 of the module, embedding and head not again;
    experts on two groups of ranks, all else on 128, the embedding on both ends.
    """
    plan = Plan.parse("pp=16 ep=64 dp=128 zero=1 mtp")
    work = Workload("training", 1, 4096, 4096, "none")
    expert, embedding = 3 * 2048 * 7168, 129_280 * 7168
    experts = (58 + 1) * 256 * expert
    biases = (58 + 1) * 256
    others = 671_026_419_200 + 11_610_068_224 - experts - biases + embedding
    got = 0
    for trace, stages in stage_traces(v3(), work, plan):
        got += sum(p.numel for p in trained(trace)) * len(stages) * 128
    assert got == 2 * experts + 128 * others
    whole = price(unsharded(v3().with_mtp(), replace(work, batch=128))).total()
    assert over_ranks(v3(), work, plan).total_flops == whole.total_flops


def test_the_last_stage_has_the_module_and_two_layers_fewer():
    plan = Plan(pp=16, mtp=True)
    found = [plan.layers_of(stage, 61) for stage in range(16)]
    # 61 layers, the module and its head: 63 over 16 leave 3 for the last, two of them its own.
    assert [len(layers) for layers in found] == [4] * 15 + [2]
    assert found[-1] == range(60, 62)
    (note,) = [n for n in plan.notes(Sizes.of(SMALL | {"num_hidden_layers": 61})) if "MTP" in n]
    assert "the last has 1, the MTP module and both passes through the output head" in note


@pytest.mark.parametrize(
    ("pp", "chunks", "counts"),
    [
        (4, 1, [16] * 3 + [13]), (8, 1, [8] * 7 + [5]), (4, 2, [8] * 7 + [5]),
        (16, 1, [4] * 15 + [1]), (8, 2, [4] * 15 + [1]), (4, 4, [4] * 15 + [1]),
    ],
)  # fmt: skip
def test_layouts_of_megatron_bridge(pp, chunks, counts):
    """NVIDIA-NeMo/Megatron-Bridge@355cef4, recipes/deepseek/deepseek_v3.py: decoder layers of each
    stage of DeepSeek-V3, the last of which has the MTP module and the loss too.
    """
    plan = Plan(pp=pp, chunks=chunks, schedule="interleaved_1f1b", mtp=True)
    found = [plan.layers_of(stage, 61) for stage in range(plan.stages)]
    assert [len(layers) for layers in found] == [*counts[:-1], counts[-1] + 1]


@given(st.integers(1, 80), st.integers(1, 20), st.integers(1, 3))
def test_layers_of_a_split_with_the_module_are_each_there_once(layers, pp, chunks):
    plan = Plan(pp=pp, chunks=chunks, mtp=True)
    parts = [plan.layers_of(stage, layers) for stage in range(plan.stages)]
    assert [layer for part in parts for layer in part] == list(range(layers + 1))
    assert layers in parts[-1]
    counts = [len(part) for part in parts[:-1]]
    if counts:
        assert max(counts) - min(counts) <= 1
        # The module and its head are two of the last stage's share, or more than it.
        assert len(parts[-1]) + 1 <= max(*counts, 2)
        assert (min(counts) > 0) == (plan.stages <= layers + 1)


def test_one_gpu_runs_the_unsharded_program():
    work = replace(WORK, optimizer="adamw")
    whole = unsharded(small().with_mtp(), work)
    alone = rank_trace(small(), work, Plan(mtp=True))

    def named(path: str) -> str:
        return re.sub(r"^model\.mtp\b", "model.layers.5", path)

    assert len(whole) == len(alone)
    for a, b in zip(whole.ops, alone.ops, strict=True):
        assert (a.name, a.phase, a.times) == (b.name, b.phase, b.times)
        assert whole.module_of(a) == named(alone.module_of(b))
        assert [out.shape for out in a.outputs] == [out.shape for out in b.outputs]
    assert price(whole).total() == price(alone).total()
    assert [(named(p.name), p.shape) for p in alone.parameters] == [
        (p.name, p.shape) for p in whole.parameters
    ]


def test_folded_ranks_cost_what_full_ones_do():
    plan, work = Plan.parse("pp=2 tp=2 sp ep=4 dp=2 zero=3 mtp"), replace(WORK, optimizer="adamw")
    for rank in (0, 4):
        folded, full = (
            price(rank_trace(small(), work, plan, rank=rank, fold=fold), execution="naive").total()
            for fold in (True, False)
        )
        assert folded.flops == full.flops
        assert folded.messages == full.messages


# -- the embedding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_that_bring_both_ends_together(name):
    """Two routes: what a plan knows of its schedule, and the stages that its ranks hold."""
    chunks = {"interleaved_1f1b": 2, "zbv": 2, "dualpipev": 2}.get(name, 1)
    schedule = build(name, 4, 16)
    together = any({0, schedule.stages - 1} <= set(held) for held in schedule.stages_of_rank)
    plan = Plan(pp=4, chunks=chunks, schedule=name, micro_batches=16, mtp=True)
    assert schedule.stages == plan.stages
    assert plan.copies_embedding is not together
    assert not replace(plan, mtp=False).copies_embedding
    assert not Plan(schedule=name, mtp=True).copies_embedding


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_both_ends_sum_the_embeddings_gradients(zero):
    """V·D elements of 2 B, cut by TP, on either end; with ZeRO 2 and 3 a slice of 1 / DP."""
    plan = Plan.parse(f"pp=3 tp=2 sp dp=4 zero={zero} mtp")
    found = ledgers(small(), WORK, plan)
    nbytes = 96 * 64 * 2 // 2 // (4 if zero >= 2 else 1)
    ends = [messages(ledger, "embedding") for ledger, _ in found]
    assert ends == [{"all_reduce": nbytes}, {}, {"all_reduce": nbytes}]
    group = found[0][0].trace.header["groups"]["embedding"]
    assert group == {"size": 2, "start": 0, "stride": 2 * 8}  # over two stages of 8 ranks
    assert plan.groups(8).get("embedding") is None
    assert plan.groups(3)["embedding"] == plan.groups(19)["embedding"] == range(3, 20, 16)


def test_one_end_has_the_embedding_alone_where_the_pipeline_turns():
    plan = Plan.parse("pp=2 micro_batches=4 schedule=dualpipe mtp")
    assert all("embedding" not in plan.groups(rank) for rank in range(2))
    assert [messages(ledger, "embedding") for ledger, _ in ledgers(small(), WORK, plan)] == [{}, {}]


def test_messages_of_the_modules_layer():
    """Its experts exchange rows as those of any layer: one expert layer of V3 more in the sum."""
    work = Workload("training", 1, 4096, 4096, "none")
    plans = [Plan.parse(f"dp=8 ep=8 {mtp}") for mtp in ("", "mtp")]
    without, with_it = (messages(ledgers(v3(), work, p)[0][0], "ep") for p in plans)
    one = 2 * (2 * 4096 * 8 * 7168 * 2) + 256 * 4  # out and back, both passes; counts in one
    assert with_it["all_to_all_single"] - without["all_to_all_single"] == one


# -- errors ----------------------------------------------------------------------------------------


def test_models_without_the_module():
    sizes = replace(SIZES, mtp=0)
    (reason,) = Plan(mtp=True).illegal(sizes, training=True)
    assert reason == "the model has no module of multi-token prediction (num_nextn_predict_layers)"
    (reason,) = Plan(mtp=True).illegal(replace(SIZES, mtp=2), training=True)
    assert "2 modules of multi-token prediction, known is one" in reason
    bare = ReferenceProgram("bare", SMALL | {"num_nextn_predict_layers": 0})
    with pytest.raises(UserError, match="bare: the model has no module of multi-token"):
        bare.with_mtp()
    assert small().with_mtp() is small().with_mtp()


def test_the_module_is_not_served():
    with pytest.raises(UserError, match="speculative decoding, is not modelled"):
        rank_trace(small(), Workload("prefill", 1, 16), Plan(mtp=True))
    with pytest.raises(UserError, match="cannot run phase 'decode': it has training"):
        unsharded(small().with_mtp(), Workload("decode", 1, 1, 16))


def test_stages_that_would_be_empty():
    assert Plan(pp=6, mtp=True).illegal(SIZES, training=True) == []
    (reason,) = Plan(pp=7, mtp=True).illegal(SIZES, training=True)
    assert reason == "5 layers and the MTP module over PP=7 leaves stages empty"
