"""The programs of ranks: together they are the whole model, alone one rank is the whole model."""

import os
import re
import sys

import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given
from hypothesis import strategies as st
from rank_programs import (
    SEARCH,
    held,
    ledgers,
    legal_plans,
    over_ranks,
    repeated_flops,
    small,
    unsharded,
    v3,
)

from tracer.capture.records import TensorRef
from tracer.capture.sharded import record_rank
from tracer.capture.workload import Workload
from tracer.cost import price
from tracer.errors import UserError
from tracer.parallel import Plan, rank_trace, stage_traces


@SEARCH
@given(legal_plans(), st.sampled_from(("prefill", "training")))
def test_ranks_sum_to_the_whole(plan, phase):
    """FLOPs of all ranks are those of one device on the global batch; nobody does nothing."""
    assume(phase == "prefill" or not plan.redundant_experts)
    program, config = small(), small().config
    batch = plan.micro_batch * plan.data_ranks
    whole = unsharded(program, Workload(phase, batch, 16, 16, "none"))
    expected = price(whole).total()
    repeated = repeated_flops(config, plan, 16 * batch) * (3 if phase == "training" else 1)
    got = over_ranks(program, Workload(phase, plan.micro_batch, 16, 16, "none"), plan)
    assert got.total_flops == expected.total_flops + repeated


@SEARCH
@given(legal_plans())
def test_parameters_of_all_ranks(plan):
    program = small()
    work = Workload("prefill", plan.micro_batch, 16, 16)
    got = 0
    for trace, stages in stage_traces(program, work, plan):
        local = sum(p.numel for p in trace.parameters if not p.buffer)
        got += local * len(stages) * plan.ranks_per_stage
    whole = unsharded(program, Workload("prefill", 1, 16, 16))
    assert got == held(program.config, plan, whole)


@SEARCH
@given(legal_plans())
def test_optimizer_state_is_held_once_where_zero_says_so(plan):
    """Elements that a step updates: with ZeRO each once over the ranks, but for the padding."""
    assume(not plan.redundant_experts)
    program = small()
    work = Workload("training", plan.micro_batch, 16, 16)
    updated = padding = 0
    for trace, stages in stage_traces(program, work, plan):
        state = sum(s.nbytes for s in trace.storages if s.role == "optimizer")
        ranks = len(stages) * plan.ranks_per_stage
        updated += state // 12 * ranks  # FP32 master and two moments; steps are a few bytes
        padding += ranks * 4 * (len(trace.parameters) + 8)
    whole = unsharded(program, Workload("prefill", 1, 16, 16))
    trained = [p for p in whole.parameters if "e_score" not in p.name]
    once = sum(p.numel for p in trained if not p.buffer)
    if plan.zero:
        # TP ranks without tokens of their own hold alike what they do not cut.
        alike = sum(
            p.numel
            for p in trained
            if re.search("layernorm|model.norm|q_a_proj|kv_a_proj", p.name)
            and plan.tp > 1
            and not (plan.sequence_parallel or plan.attention_dp)
        )
        assert once + alike * (plan.tp - 1) <= updated <= once + alike * (plan.tp - 1) + padding
    else:
        frozen = [p for p in whole.parameters if "e_score" in p.name and not p.buffer]
        biases = sum(p.numel for p in frozen) * plan.ranks_per_stage
        elements = held(program.config, plan, whole) - biases
        assert elements <= updated <= elements + padding


def shape(value):
    """An argument without its storage, which is only a number."""
    if type(value) is TensorRef:
        return value.shape, value.stride, value.dtype, value.offset
    if type(value) is tuple:
        return tuple(map(shape, value))
    return value


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("phase", ["training", "prefill", "decode"])
def test_a_plan_of_one_gpu_is_the_unsharded_trace(phase, dtype):
    work = Workload(phase, 1, 32, 32)
    whole, alone = unsharded(small(dtype), work), rank_trace(small(dtype), work, Plan())
    assert len(whole) == len(alone)
    for a, b in zip(whole.ops, alone.ops, strict=True):
        assert (a.name, a.phase, a.times) == (b.name, b.phase, b.times)
        assert whole.module_of(a) == alone.module_of(b)
        assert shape(a.args) == shape(b.args)
        assert shape(a.outputs) == shape(b.outputs)
    assert price(whole).total() == price(alone).total()
    assert [p[:3] for p in whole.parameters] == [p[:3] for p in alone.parameters]


@pytest.mark.parametrize(
    ("words", "phase", "batch", "seq"),
    [
        ("pp16 ep64 dp128 zero=1", "training", 1, 4096),
        ("tp8 sp dp16 ep128 pp4", "training", 1, 4096),
        ("tp4 sp dp8 ep32 redundant=32", "prefill", 2, 2048),
        ("cp4 tp2 sp dp8 ep64 pp4", "training", 1, 8192),
        ("cp8 ep8", "prefill", 1, 32768),
        ("dp320 ep320 redundant=64", "decode", 128, 1),
        ("tp16", "decode", 16, 1),
    ],
)
def test_v3_sums_to_the_whole(words, phase, batch, seq):
    """At full size, for plans that people run; the published ones among them."""
    plan = Plan.parse(f"{words} micro_batch={batch}")
    every = batch * plan.data_ranks
    expected = price(unsharded(v3(), Workload(phase, every, seq, 4096, "none"))).total()
    got = over_ranks(v3(), Workload(phase, batch, seq, 4096, "none"), plan)
    repeated = repeated_flops(v3().config, plan, every * seq)
    assert got.total_flops == expected.total_flops + repeated * (3 if phase == "training" else 1)


def test_attention_of_a_context_parallel_rank():
    """S 4096, 4 ranks, chunks of c = 512: (2·4 - 1)·c² + (c + 1)·c pairs, whatever the rank."""
    plan, work = Plan(cp=4), Workload("prefill", 1, 4096)
    pairs = 7 * 512**2 + 513 * 512
    assert 4 * pairs == 4096 * 4097 // 2
    flops, nbytes = set(), set()
    for rank in range(4):
        kernels = price(rank_trace(v3(), work, plan, rank=rank)).kernels
        found = [k.cost for k in kernels if k.kind == "attention"]
        flops.add(sum(cost.total_flops for cost in found))
        nbytes.add(sum(cost.total_bytes for cost in found))
    assert flops == {61 * 128 * pairs * 2 * (192 + 128)}
    # Keys and values of r + 1 and of 2·4 - r chunks: 9 chunks on every rank.
    assert len(nbytes) == 1


def test_folded_ranks_cost_what_full_ones_do():
    plan = Plan.parse("tp2 sp ep4 dp2 zero=3")
    work = Workload("training", 1, 16, 16)
    folded, full = (
        price(rank_trace(small(), work, plan, fold=fold), execution="naive").total()
        for fold in (True, False)
    )
    assert folded.flops == full.flops
    assert folded.messages == full.messages
    assert folded.total_bytes == full.total_bytes


def test_stages_that_are_alike_are_traced_once():
    plan = Plan.parse("pp16 dp128 ep64")
    found = stage_traces(v3(), Workload("training", 1, 4096, 4096, "none"), plan)
    # 61 layers: the first stage has the dense ones, 13 stages have 4 layers, the last the head.
    assert [stages for _, stages in found] == [(0,), tuple(range(1, 13)), (13, 14), (15,)]
    assert found[1].trace.header["layers"] == [4, 8]
    again = stage_traces(v3(), Workload("training", 1, 4096, 4096, "none"), plan)
    assert again[1].trace.ops is found[1].trace.ops


def test_experts_of_a_rank():
    plan = Plan.parse("dp32 ep32 redundant=32")  # (256 + 32) / 32 = 9
    trace = rank_trace(v3(), Workload("prefill", 1, 64, 64), plan)
    shapes = {p.shape for p in trace.parameters if p.name.endswith("experts.gate_proj")}
    assert shapes == {(9, 2048, 7168)}
    assert trace.header["groups"]["ep"] == {
        "size": 32, "start": 0, "stride": 1, "experts_per_token": 8, "expert_groups_per_token": 4,
    }  # fmt: skip


def test_rows_from_elsewhere_choose_one_expert_each():
    """8 rows reach a rank with 8 of the experts: 8·(1 - (7/8)^8) = 5.25 of them are hit."""
    trace = rank_trace(v3(), Workload("decode", 1, 1, 64), Plan(dp=32, ep=32))
    priced = price(trace, execution="naive")
    one = next(p.cost for p in priced.parts() if "grouped" in trace.ops[p.op].name)
    assert one.read["weights"] == pytest.approx(8 * (1 - (7 / 8) ** 8) * 2048 * 7168 * 2, rel=1e-6)


def test_the_last_rank_of_2048():
    plan = Plan.parse("pp16 ep64 dp128")
    trace = rank_trace(v3(), Workload("prefill", 1, 64, 64), plan, rank=2047)
    assert (trace.header["stage"], trace.header["layers"]) == (15, [58, 61])
    assert trace.header["groups"]["pp"] == {"size": 16, "start": 127, "stride": 128}
    assert trace.header["groups"]["ep"]["start"] == 1984


# -- errors and global state -----------------------------------------------------------------------


def test_impossible_plans_say_why():
    with pytest.raises(UserError, match="256 experts do not divide by EP=48") as error:
        rank_trace(v3(), Workload("prefill", 1, 64, 64), Plan(dp=48, ep=48, tp=3))
    assert "128 heads do not divide by TP=3" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("plan", "work", "reason"),
    [
        (Plan(tp=4, sequence_parallel=True), Workload("prefill", 1, 18), "18 tokens of a data"),
        (Plan(micro_batch=2), Workload("prefill", 1, 16), "micro_batch=2"),
        (Plan(pp=2), Workload("forward", 1, 16), "cannot run phase 'forward'"),
        (Plan(cp=2), Workload("prefill", 1, 18), "18 tokens of a sequence .* 4 chunks of CP=2"),
        (Plan(cp=2), Workload("decode", 1, 1, 64), "CP=2 cuts the tokens of a sequence, decode"),
        (Plan(tp=4, cp=2, sequence_parallel=True), Workload("prefill", 1, 20), "10 tokens of a"),
    ],
)  # fmt: skip
def test_workloads_that_do_not_divide(plan, work, reason):
    with pytest.raises(UserError, match=reason):
        rank_trace(small(), work, plan)


def test_a_stage_of_another_rank():
    with pytest.raises(UserError, match="stage 1 is on pipeline rank 1, rank 0 is not"):
        rank_trace(small(), Workload("prefill", 1, 16), Plan(pp=2), rank=0, stage=1)


def test_groups_are_gone_also_after_an_error(monkeypatch):
    from tracer.models import parallel

    before = dict(os.environ)
    monkeypatch.setattr(parallel.ParallelLayer, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record_rank(small(), Workload("prefill", 1, 16), Plan(tp=2))
    assert not dist.is_initialized()
    assert dict(os.environ) == before


def test_tracing_a_rank_leaves_tracebacks_as_they_were():
    before = sys.excepthook
    record_rank(small(), Workload("prefill", 1, 16), Plan(tp=2))
    assert sys.excepthook is before


def test_a_process_group_in_force_is_left_alone():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    try:
        with pytest.raises(UserError, match="initialised already"):
            record_rank(small(), Workload("prefill", 1, 16), Plan(tp=2))
        assert dist.get_world_size() == 3
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_repeats_what_it_should(recompute):
    """Full: one more forward of every layer. Selective: no product runs twice."""
    work = Workload("training", 1, 16, 16, "none")
    plain = ledgers(small(), work, Plan())[0][0]
    again = ledgers(small(), work, Plan(recompute=recompute))[0][0]
    more = again.total().total_flops - plain.total().total_flops
    head = 2 * 16 * 64 * 96
    # Torch stops when it has what it saved: not the last product of a layer, whose result nobody
    # saves, here that of the dense feed-forward and four shared experts.
    last = 2 * 16 * 64 * (96 + 4 * 32)
    forward = plain.total("forward").total_flops - head - last
    assert more == (forward if recompute == "full" else 0)
    kept = [
        sum(s.nbytes for s in ledger.trace.storages if _survives(s, ledger.trace))
        for ledger in (again, plain)
    ]
    assert kept[0] < kept[1]


def test_latent_recomputation_repeats_the_up_projections():
    """q_b [32 -> 8 heads of 32] and kv_b [32 -> 8 heads of 16 + 16] of 16 tokens in 5 layers."""
    work = Workload("training", 1, 16, 16, "none")
    plain = ledgers(small(), work, Plan())[0][0]
    again = ledgers(small(), work, Plan(recompute="latent"))[0][0]
    more = again.total().total_flops - plain.total().total_flops
    assert more == 5 * (2 * 16 * 32 * 256 + 2 * 16 * 32 * 256)
    kept = [
        sum(s.nbytes for s in ledger.trace.storages if _survives(s, ledger.trace))
        for ledger in (again, plain)
    ]
    assert kept[0] < kept[1]


def _survives(storage, trace) -> bool:
    end = next(i for i, op in enumerate(trace.ops) if op.phase == "backward")
    return 0 <= storage.born < end and (storage.died is None or storage.died > end)


def test_torch_is_what_it_was():
    rank_trace(small(), Workload("prefill", 1, 16), Plan(tp=2))
    assert torch.ones(2).relu().sum() == 2
    assert not dist.is_initialized()


def test_the_moments_type_is_said_where_the_trace_does_not_show_it():
    work = Workload("training", 1, 16, 16)
    (wide,) = stage_traces(small(), work, Plan())
    (narrow,) = stage_traces(small(), work, Plan(moments="bf16"))
    assert narrow.trace.ops is wide.trace.ops
    assert [n for n in narrow.trace.header["notes"] if "FP32 moments" in n]
    assert not [n for n in wide.trace.header["notes"] if "FP32 moments" in n]
