"""Prefill and decode instances: sums by hand, what two micro-batches hide, what fits."""

from __future__ import annotations

import json

import pytest
from plan_programs import small

from tracer.capture.workload import Workload, record
from tracer.cost import price
from tracer.errors import UserError
from tracer.hardware import load_cluster
from tracer.machine import Timing
from tracer.parallel.memory import Headroom
from tracer.parallel.plan import Plan
from tracer.predict import predict
from tracer.predict.detail import serving_detail
from tracer.predict.passes import Segment
from tracer.predict.pipeline import two_streams
from tracer.predict.serving import Serving, _two, predict_serving
from tracer.predict.structure import Kernels

PLAIN = Kernels(Timing(), casts="traced")
H100 = "h100_ib"


def serve(text: str, phase: str, batch: int, **assumed):
    kernels = assumed.pop("kernels", PLAIN)
    solve, context = assumed.pop("solve", False), assumed.pop("context", 512)
    return predict_serving(
        small(), Plan.parse(text), H100, phase, batch=batch, seq=256, context=context,
        assume=Serving(kernels=kernels, **assumed), solve=solve,
    )  # fmt: skip


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_one_gpu_serves_as_the_model_that_is_not_cut(phase):
    work = Workload(phase, 4, 256, 512)
    whole = predict(work, price(record(small(), work)), load_cluster(H100).chip, Timing())
    one = serve("tp=1", phase, 4, engine="traced")
    assert one.seconds == pytest.approx(whole.times.step, rel=1e-9)
    assert one.tokens_per_s == pytest.approx(whole.tokens_per_s)
    assert one.kv == whole.memory.kv
    assert one.memory.weights == whole.memory.weights


def test_messages_are_exposed_with_one_micro_batch_and_hidden_with_two():
    one = serve("dp=16 ep=16", "prefill", 8)
    assert one.seconds == pytest.approx(one.compute + one.communication)
    assert one.exposed == pytest.approx(one.communication)
    assert one.exposed > 0
    two = serve("dp=16 ep=16", "prefill", 8, micro_batches=2)
    assert two.exposed < two.communication
    assert two.seconds >= max(two.compute, two.communication)


def test_an_engine_runs_fewer_kernels_than_the_program():
    for phase in ("prefill", "decode"):
        traced = serve("dp=16 ep=16", phase, 8, engine="traced")
        fused = serve("dp=16 ep=16", phase, 8)
        assert fused.compute < traced.compute
        assert fused.communication == traced.communication
        assert fused.memory == traced.memory
        assert any("DeepEP's" in note for note in fused.notes)
    everything = serve("dp=16 ep=16", "decode", 8, exchange="nccl")
    assert not any("rows themselves" in note for note in everything.notes)


@pytest.mark.parametrize(
    ("words", "few"),
    [("tp=1", 1), ("dp=16 ep=16", 1), ("pp=2", 1), ("tp=2", 1), ("tp=2 sequence_parallel", 2),
     ("cp=2", 2), ("dp=2 tp=2 ep=2 cp=2 sequence_parallel", 4)],
)  # fmt: skip
def test_an_engine_makes_logits_of_the_last_token_alone(words, few):
    """Or of as few as TP ranks and chunks can cut, of a rank's tokens."""
    plan, flops = Plan.parse(words), {}
    for engine in ("fused", "traced"):
        assume = Serving(PLAIN, engine=engine)
        step = serve(words, "prefill", 4, engine=engine)
        detail = serving_detail(small(), step, assume)
        flops[engine] = sum(cost.flops for cost in detail.kernels.values())
    tokens = 4 * (256 - few * plan.cp) / plan.cp if few > 1 else 4 * (256 - 1)
    assert flops["traced"] - flops["fused"] == 2 * tokens * 256 * 512 / plan.tp


def test_five_stages_hide_what_turns_do_not():
    # A layer: attention 8, dispatch 2, experts 1, combine 4. In turns the combine of one batch has
    # the experts of the other to hide behind, 1 of 4; in five stages half an attention, all of it.
    layer = [
        Segment("", 8.0, 8.0), Segment("ep", 2.0), Segment("", 1.0, 1.0), Segment("ep", 4.0),
    ]  # fmt: skip
    chain = tuple(layer * 10)
    turns, staged = two_streams(chain, chain), _two(chain, "decode")
    assert _two(chain, "prefill") == turns
    assert staged.compute == turns.compute == 2 * 10 * 9
    # At the end the second batch has nobody to hide behind: its dispatch less the first's experts
    # is in the open, and its combine.
    assert staged.total == pytest.approx(180 + 2 + 4)
    # In turns: experts of the second wait 1 for their rows; the first's combine, behind that
    # dispatch, keeps the next layer waiting 3, and both combines the end of the step 7.
    assert turns.total == pytest.approx(180 + 10 * 1 + 9 * 3 + 7)


def test_messages_of_tensor_parallel_ranks_keep_their_turns():
    chain = (Segment("", 6.0, 6.0), Segment("tp", 1.0), Segment("", 1.0, 1.0), Segment("ep", 4.0))
    assert _two(chain, "decode") == two_streams(chain, chain)


def test_eager_launches_bound_a_small_decode():
    eager = serve("dp=2", "decode", 1, kernels=Kernels(Timing(host=1e-4), casts="traced"))
    graph = serve("dp=2", "decode", 1)
    assert eager.host > graph.seconds
    assert eager.seconds == pytest.approx(eager.host)
    assert graph.host == 0


def test_the_exchange_bounds_decode():
    # arXiv 2505.09343, 2.3.2: (1 + 2) bytes x tokens x copies x hidden / bandwidth, twice a layer,
    # for half of the sequences. 16 ranks span two nodes of 8: half of the 4 copies take the NIC,
    # with 50 GB/s; 4 layers of MoE. Of 8 ranks, 7 are reached over links of 450 GB/s.
    found = serve("dp=16 ep=16", "decode", 8)
    by_hand = 2 * 4 * 3 * 4 * (4 / 2) * 256 / 50e9
    assert found.ep_limit == pytest.approx(by_hand)
    near = serve("dp=8 ep=8", "decode", 8)
    assert near.ep_limit == pytest.approx(2 * 4 * 3 * 4 * (4 * 7 / 8) * 256 / 450e9)
    assert serve("dp=16", "decode", 8).ep_limit is None


def test_no_exchange_is_quicker_than_its_bound():
    """Large batches, where start-up times do not hide what is left out of the bound."""
    for words in ("dp=8 ep=8", "dp=16 ep=16", "dp=48 ep=48"):
        found = serve(words, "decode", 4096)
        assert found.communication > found.ep_limit


def test_the_parts_of_a_step_add_up():
    for words, phase, more in (
        ("dp=16 ep=16", "prefill", {"micro_batches": 2}), ("dp=16 ep=16 pp=2", "decode", {}),
        ("tp=2 pp=5", "prefill", {}), ("dp=16 ep=16", "decode", {"micro_batches": 2}),
    ):  # fmt: skip
        step = serve(words, phase, 8, **more)
        parts = step.compute + step.slowed + step.exposed + step.hops
        assert parts == pytest.approx(step.seconds)
    slowed = serve("dp=16 ep=16", "prefill", 8, micro_batches=2).slowed
    assert slowed > 0  # DeepEP's normal kernels hold SMs
    assert serve("dp=16 ep=16", "decode", 8, micro_batches=2).slowed == 0  # these hold none


def test_a_pipeline_holds_the_caches_of_all_its_batches():
    """Tokens a second are those of a batch in every stage: so are the caches."""
    one, five = serve("tp=1", "decode", 4), serve("pp=5", "decode", 4)
    # A layer a stage: a fifth of a batch's cache, of five batches.
    assert five.kv == pytest.approx(one.kv)
    assert five.memory.activations == pytest.approx(one.memory.activations)
    assert five.tokens_per_s == pytest.approx(4 / five.interval)
    room = Headroom(0.999)
    found = serve("pp=5", "decode", 1, solve=True, headroom=room)
    free = found.memory.capacity - found.memory.reserve - found.memory.weights
    each = found.kv  # of one sequence in each of five batches
    assert found.largest_batch <= free / each


def test_the_largest_batch_is_the_last_that_fits():
    room = Headroom(0.999)  # 80 MB of 80 GB
    found = serve("dp=2", "decode", 1, solve=True, headroom=room)
    assert found.largest_batch and found.largest_batch > 1
    assert serve("dp=2", "decode", found.largest_batch, headroom=room).feasible
    over = serve("dp=2", "decode", found.largest_batch + 1, headroom=room)
    assert not over.feasible
    assert over.as_dict()["tokens_per_s"] is None
    assert "does not fit" in over.reason


def test_batches_of_ranks_that_cut_tokens_divide_by_them():
    found = serve("tp=2 sequence_parallel", "decode", 4, solve=True, headroom=Headroom(0.999))
    assert found.largest_batch and found.largest_batch % 2 == 0
    room = Headroom(0.999)
    batch, cut = found.largest_batch, "tp=2 sequence_parallel"
    assert serve(cut, "decode", batch, headroom=room).feasible
    assert not serve(cut, "decode", batch + 2, headroom=room).feasible


def test_the_longest_context_is_the_last_that_fits():
    room = Headroom(0.999)
    found = serve("dp=2", "decode", 2, solve=True, headroom=room)
    assert found.longest_context and found.longest_context > 64
    assert serve("dp=2", "decode", 2, headroom=room, context=found.longest_context).feasible
    over = serve("dp=2", "decode", 2, headroom=room, context=found.longest_context + 1)
    assert not over.feasible
    assert serve("dp=2", "prefill", 2, solve=True, headroom=room).longest_context is None


def test_the_record_is_json():
    made = serve("dp=2", "decode", 2).as_dict()
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["tpot_s"] and made["ttft_s"] is None


def test_what_cannot_be_served_is_refused_in_one_line():
    with pytest.raises(UserError, match="equal micro-batches"):
        serve("dp=2", "decode", 3, micro_batches=2)
    with pytest.raises(UserError, match="choose prefill or decode"):
        serve("dp=2", "training", 2)
    with pytest.raises(UserError, match="do not divide by EP=7"):
        serve("dp=7 ep=7", "decode", 2)
    with pytest.raises(UserError, match="goes up to"):
        serve("dp=99999", "decode", 2)
    with pytest.raises(UserError, match="weights"):
        Serving(weights="int4")
    with pytest.raises(UserError, match="engine='vllm': choose fused or traced"):
        Serving(engine="vllm")


def test_the_reserve_holds_at_least_the_buffers_of_the_exchange():
    """48 experts of the small model, 4 tokens of 256 elements: a row is 512 B, with 16 of control
    on its way there, with two pairs of BF16 on its way back; buffers are two for sends, two for
    receives.
    """
    found = serve("dp=8 ep=8", "decode", 4)
    assert found.memory.buffers == 2 * 48 * 4 * ((512 + 16) + (512 + 2 * 4))
    assert found.memory.reserve == 0.1 * found.memory.capacity
    none_kept = serve("dp=8 ep=8", "decode", 4, headroom=Headroom(0.0))
    assert none_kept.memory.reserve == none_kept.memory.buffers
    assert serve("dp=8", "decode", 4).memory.buffers == 0
