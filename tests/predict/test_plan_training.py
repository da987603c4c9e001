"""Training plans in seconds, memory and dollars, against sums by hand and the unsharded step."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from plan_programs import small

from tracer.capture.workload import Workload, record
from tracer.cost import price
from tracer.errors import UserError
from tracer.hardware import load_cluster
from tracer.machine import Timing
from tracer.parallel.groups import strided
from tracer.parallel.network import network_of
from tracer.parallel.plan import Plan
from tracer.parallel.ranks import stage_traces
from tracer.predict import predict
from tracer.predict.clocked import Clocked
from tracer.predict.expert_load import ExpertChoice
from tracer.predict.money import Money
from tracer.predict.structure import Kernels, Structure
from tracer.predict.training import Assumptions, Overlap, predict_training

PLAIN = Kernels(Timing(), casts="traced")
H100 = "h100_ib"


def step(text: str, seq: int = 128, **assumed):
    assume = Assumptions(kernels=PLAIN, **assumed)
    return predict_training(small(), Plan.parse(text), H100, seq=seq, assume=assume)


def test_one_gpu_takes_as_long_as_the_model_that_is_not_cut():
    work = Workload("training", 2, 128)
    whole = predict(work, price(record(small(), work)), load_cluster(H100).chip, Timing())
    plan = Plan(micro_batch=2)
    one = predict_training(small(), plan, H100, seq=128, assume=Assumptions(kernels=PLAIN))
    assert one.seconds == pytest.approx(whole.times.step, rel=1e-9)
    # The step of `micro_batch` 2 has twice the FLOPs of one sequence.
    assert one.flops == whole.cost.total_flops
    assert one.breakdown.communication == one.breakdown.bubble == 0


def test_the_breakdown_adds_up_to_the_step():
    for text in ("pp=4 dp=2 ep=2 zero=1 micro_batches=8", "pp=2 dp=2 schedule=zb1p micro_batches=8",
                 "pp=4 dp=8 ep=8 zero=1 micro_batches=16 schedule=dualpipe"):  # fmt: skip
        found = step(text)
        b = found.breakdown
        parts = b.compute + b.communication + b.bubble + b.optimizer
        assert parts == pytest.approx(found.seconds, rel=1e-9)
        assert b.imbalance >= 0


def test_a_pipeline_of_1f1b_is_its_slowest_stage_again_and_again():
    # By hand: with M micro-batches, (M - 1) of the slowest stage's forward and backward, and one
    # trip through all stages there and back; transfers ride along once a hop and direction.
    plan = "pp=2 dp=1 micro_batches=64"
    found, more = step(plan), step("pp=2 dp=1 micro_batches=128")
    durations = found.durations
    both = [f + b for f, b in zip(durations.forward, durations.backward, strict=True)]
    # 64 more micro-batches cost 64 more of the slowest stage.
    extra = more.pipeline.seconds - found.pipeline.seconds
    assert extra == pytest.approx(64 * max(both), rel=0.02)
    assert found.pipeline.seconds >= 64 * max(both)


@pytest.mark.parametrize("split", ["dp=4", "dp=2 cp=2"])
def test_blocks_add_up_to_stages_that_are_traced_as_a_whole(split):
    # Two routes: layers one by one, and stages of two and three layers in one trace each.
    plan = Plan.parse(f"pp=2 {split} ep=2 zero=1 micro_batches=4")
    network = network_of(H100)
    work = Workload("training", 1, 256)
    structure = Structure(small(), work, plan, network, PLAIN)
    from tracer.predict.links import Links
    from tracer.predict.structure import groups_on, routing_of

    links = Links(network, groups_on(plan, network), routing_of(small(), plan))
    for trace, stages in stage_traces(small(), work, plan):
        whole = Clocked(price(trace), links.network, Timing()).passes(links)
        for stage in stages:
            block = structure.stage(stage)
            for direction in ("forward", "backward"):
                assert block.passes.seconds(direction) == pytest.approx(
                    whole.seconds(direction), rel=0.05
                )
                assert block.passes.messages(direction) == pytest.approx(
                    whole.messages(direction), rel=1e-6
                )
            assert block.passes.cost.total_flops == whole.cost.total_flops
            # Padding of flat buckets apart, the same gradients are summed.
            assert sum(block.parameters.values()) == pytest.approx(
                sum(whole.reduced.values()) / 2,
                rel=0.01,  # BF16
            )


def test_context_parallel_ranks_pay_for_latents():
    # By hand: C + R = 128 + 16 elements of 2 B for each of 256 tokens, gathered in every layer and
    # scattered on the way back; tokens, and pairs of tokens, are those of the whole sequence.
    network, plan = network_of(H100), Plan(cp=4)
    work = Workload("training", 1, 256)
    passes = Structure(small(), work, plan, network, PLAIN).stage(0).passes
    nbytes, group = 256 * (128 + 16) * 2, strided(4, 1, network.cluster)
    gather, scatter = network.all_gather(nbytes, group), network.reduce_scatter(nbytes, group)
    assert passes.messages("forward") == pytest.approx({"cp": 5 * float(gather.seconds)})
    assert passes.messages("backward") == pytest.approx({"cp": 5 * float(scatter.seconds)})
    whole = price(record(small(), work)).total()
    again = 3 * 5 * 2 * 256 * 128 * 8 * (32 + 32)  # latents of all tokens expanded on every rank
    assert 4 * passes.cost.total_flops == whole.total_flops + 3 * again


def test_context_parallel_needs_two_chunks_a_rank():
    with pytest.raises(UserError, match="100 tokens of a sequence do not divide into the 8 chunks"):
        step("cp=4", seq=100)


def test_weight_gradients_are_a_third_of_the_products():
    # Every linear has one product forward and two backward, one of them for its weight.
    work = Workload("training", 8, 512)
    structure = Structure(small(), work, Plan(micro_batch=8, dp=2), network_of(H100), PLAIN)
    passes = structure.stage(0).passes
    weight = passes.seconds("backward", weight=True)
    assert 0.2 < weight / passes.seconds("backward") < 0.6
    assert weight + passes.seconds("backward", weight=False) == pytest.approx(
        passes.seconds("backward")
    )


def test_data_ranks_pay_for_gradients_and_parameters_by_zero_level():
    network = network_of(H100)
    found = {z: step(f"dp=8 zero={z} micro_batches=2") for z in (0, 1, 2)}
    count = sum(Structure(
        small(), Workload("training", 1, 128), found[1].plan, network, PLAIN
    ).stage(0).parameters.values())  # fmt: skip
    group = strided(8, 1, network.cluster)
    reduce = network.all_reduce(2.0 * count, group).seconds
    scatter = network.reduce_scatter(2.0 * count, group).seconds
    gather = network.all_gather(2.0 * count, group).seconds
    assert found[0].slots["data"] == pytest.approx(reduce)
    assert found[1].slots["data"] == pytest.approx(scatter + gather)
    assert found[2].slots["data"] == pytest.approx(gather)
    hidden = step("dp=8 zero=1 micro_batches=2", overlap=Overlap(data="last_backward"))
    assert hidden.seconds <= found[1].seconds
    # Optimizer state is an eighth, at 12 bytes an element (FP32 master and two moments).
    assert found[0].memory.optimizer == pytest.approx(12 * count, rel=0.01)
    assert found[1].memory.optimizer == pytest.approx(12 * count / 8, rel=0.01)


def test_overlapped_slots_hide_messages_but_not_compute():
    text = "pp=4 dp=16 ep=16 zero=1 micro_batches=16 schedule=dualpipe"
    both, apart = step(text), step(text, overlap=Overlap(pairs=False))
    assert both.seconds < apart.seconds
    assert both.durations.overlapped
    for (f, b), slot in both.durations.overlapped.items():
        ahead, back = both.stages[f], both.stages[b]
        alone = ahead["forward"] + back["input_gradient"] + back["weight_gradient"]
        messages = ahead["forward_messages"] + back["backward_messages"]
        # Compute is stretched by no more than the SMs that messages hold: 20 of 132.
        assert max(alone, messages) <= slot <= (132 / 112 * alone + messages) * 1.05


def test_uneven_experts_cost_time():
    text = "dp=16 ep=16 micro_batches=2"
    even, uneven = (step(text, experts=ExpertChoice(busiest=x)) for x in (1.0, 2.0))
    assert even.breakdown.imbalance == 0
    assert uneven.seconds > even.seconds
    assert uneven.breakdown.imbalance == pytest.approx(
        uneven.pipeline.seconds - even.pipeline.seconds
    )


def test_money_by_hand():
    found = step("dp=8 micro_batches=2")
    # 1e12 tokens at so many a second, 8 GPUs, 3,600 s an hour.
    hours = 1e12 / (found.plan.global_batch * 128 / found.seconds) * 8 / 3600
    assert found.gpu_hours_per_trillion == pytest.approx(hours)
    money = Money(2.5, 3e12)
    assert money.dollars(found.tokens_per_s, 8) == pytest.approx(3 * hours * 2.5)
    assert Money(None, 3e12).dollars(found.tokens_per_s, 8) is None
    with pytest.raises(UserError, match="price=-1"):
        Money(-1.0)


def test_a_plan_that_does_not_fit_has_no_throughput():
    found = step("dp=8 micro_batches=2", capacity=1e6)
    assert not found.feasible
    assert "does not fit" in found.reason
    record = found.as_dict()
    assert record["step_s"] is record["tokens_per_s"] is record["mfu_causal"] is None
    assert json.loads(json.dumps(record)) == record


def test_the_record_is_json_and_says_what_it_rests_on():
    record = step("pp=2 dp=2 ep=2 zero=1 micro_batches=8").as_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["feasible"] is True
    assert any("expert imbalance" in note for note in record["notes"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pp=9 dp=1 micro_batches=16", "5 layers over PP=9"),
        ("ep=7 dp=7 micro_batches=2", "48 experts do not divide by EP=7"),
        ("pp=4 micro_batches=2", "do not fill PP=4"),
        ("pp=3 micro_batches=8 schedule=dualpipe", "even number"),
        ("pp=2 micro_batches=8 schedule=2f2b", "no pipeline schedule"),
        ("tp=8 dp=8192 micro_batches=2", "goes up to"),
    ],
)
def test_plans_that_cannot_run_say_why_in_one_line(text, says):
    with pytest.raises(UserError, match=says) as caught:
        step(text)
    assert "\n" not in str(caught.value)


def test_assumptions_are_checked():
    for bad in ({"gradients": "fp16"}, {"kept": "half"}, {"exchange": "mpi"}):
        with pytest.raises(UserError, match=next(iter(bad))):
            Assumptions(**bad)
    with pytest.raises(UserError, match="data='later'"):
        Overlap(data="later")
    with pytest.raises(UserError, match="casts"):
        replace(PLAIN, casts="some")
