"""The parts of a priced step: every sum comes out as the step's own, and some by hand."""

from __future__ import annotations

import functools

import pytest
from plan_programs import small

from tracer.parallel import overlap
from tracer.parallel.plan import Plan
from tracer.predict.assumptions import Assumptions, Overlap
from tracer.predict.detail import serving_detail, training_detail
from tracer.predict.messages import BETWEEN, END, exposed_alone, exposed_together
from tracer.predict.passes import Passes, Segment
from tracer.predict.pipeline import two_streams
from tracer.predict.serving import Serving, predict_serving
from tracer.predict.training import predict_training

SEQ = 128
PLANS = (
    "pp=4 dp=8 ep=8 zero=1 micro_batches=16 schedule=dualpipe",
    "pp=2 dp=4 tp=2 sp zero=2 micro_batches=8",
    "dp=8 zero=3 micro_batches=2",
    "cp=4 dp=2 ep=2 micro_batches=2",
    "pp=2 dp=1 micro_batches=8 schedule=zbv",
    "pp=2 dp=4 ep=2 chunks=2 schedule=interleaved_1f1b micro_batches=8 recompute=full",
)  # fmt: skip


@functools.cache
def trained(text, dtype="bf16", **assume):
    given = Assumptions(**assume)
    step = predict_training(small(dtype), Plan.parse(text), "h100_ib", seq=SEQ, assume=given)
    return step, training_detail(small(dtype), step, given)


@pytest.mark.parametrize(
    ("text", "dtype"), [*((text, "bf16") for text in PLANS), (PLANS[0], "fp8")]
)
def test_parts_of_a_training_step_add_up_to_it(text, dtype):
    step, d = trained(text, dtype)
    assert sum(d.parts.values()) == pytest.approx(step.seconds, rel=1e-9)
    assert sum(d.compute.values()) == pytest.approx(d.parts["compute"], rel=1e-9)
    kernels = d.compute["kernels"]
    assert sum(c.seconds for c in d.kernels.values()) == pytest.approx(kernels, rel=1e-9)
    assert sum(d.shares.waits.values()) == pytest.approx(kernels, rel=1e-9)
    assert sum(d.shares.sure.values()) == pytest.approx(kernels, rel=1e-9)
    assert d.shares.peak <= d.shares.waits["compute"] + d.shares.waits["latency"]
    assert sum(s.exposed for s in d.sent) == pytest.approx(
        d.parts["exposed communication"], rel=1e-9, abs=1e-15
    )
    for s in d.sent:
        assert -1e-15 <= s.exposed <= s.seconds * (1 + 1e-9), s
    assert max(m.total for m in d.memories) == step.memory.total
    # Output heads are the difference of two traced stages: nothing may be left over.
    assert all(min(cost) >= 0 for cost in d.kernels.values())


@pytest.mark.parametrize("text", PLANS[:1] + PLANS[4:])
def test_stages_are_those_of_the_step(text):
    """Two routes: kernels by op, and seconds of the stages' chains, one micro-batch at a time."""
    step, d = trained(text)
    each = step.plan.micro_batches / step.plan.pp
    passes = each * sum(s.forward + s.input + s.weight for s in d.stages)
    assert passes == pytest.approx(d.compute["kernels"] + d.compute["gradients added up"], rel=1e-9)
    messages = each * sum(s.forward_messages + s.backward_messages for s in d.stages)
    inside = sum(s.seconds for s in d.sent if s.part in ("forward", "backward"))
    assert inside == pytest.approx(messages, rel=1e-9, abs=1e-15)
    assert sum(s.layers for s in d.stages) == 5
    assert d.stages[d.pace].total == max(s.total for s in d.stages)


@pytest.mark.parametrize("text", [PLANS[0], PLANS[4]])
def test_kernels_do_the_published_flops(text):
    """Without cuts that repeat work, FLOPs of all GPUs are those of the model, counted apart."""
    step, d = trained(text)
    whole = sum(cost.flops for cost in d.kernels.values()) * step.plan.world
    assert whole == pytest.approx(step.flops, rel=1e-9)


def test_messages_of_the_expert_exchange_by_hand():
    # 4 expert layers over 4 stages, 16 micro-batches: 4 a GPU in the mean, each sent there and
    # back in both passes. 128 tokens to 4 experts each, rows of 256 elements of 2 B.
    _, d = trained("pp=4 dp=8 ep=8 zero=1 micro_batches=16 schedule=dualpipe")
    rows = [s for s in d.sent if s.axis == "ep"]
    layers = 4 * 16 / 4
    for direction in ("forward", "backward"):
        (found,) = [s for s in rows if s.part == direction]
        assert found.calls == pytest.approx(2 * layers)
        assert found.bytes == pytest.approx(2 * layers * SEQ * 4 * 256 * 2)
        assert found.algorithm == "DeepEP normal"
    # Activations of a micro-batch, on 3 of 4 boundaries there and 3 back: 128 x 256 x 2 B.
    (between,) = [s for s in d.sent if s.part == BETWEEN]
    assert between.calls == pytest.approx(2 * 3 * 16 / 4)
    assert between.bytes == pytest.approx(2 * 3 * 16 / 4 * SEQ * 256 * 2)


def test_gradients_at_the_end_by_hand():
    step, d = trained("dp=8 zero=1 micro_batches=2")
    reduce, gather = (s for s in d.sent if s.part == END)
    assert (reduce.collective, gather.collective) == ("reduce_scatter", "all_gather")
    parameters = sum(p.numel() for p in small().module("training").parameters())
    for s in (reduce, gather):
        assert s.bytes == pytest.approx(2 * parameters, rel=1e-3)  # BF16, padding apart
        assert s.exposed == s.seconds
    assert reduce.seconds + gather.seconds == pytest.approx(step.slots["data"])
    _, hidden = trained("dp=8 zero=1 micro_batches=2", overlap=Overlap(data="last_backward"))
    ends = [s for s in hidden.sent if s.part == END]
    assert sum(s.exposed for s in ends) < sum(s.seconds for s in ends)


@pytest.mark.parametrize("text", ["dp=4 ep=4 pp=2", "tp=2 dp=2"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("count", [1, 2])
def test_parts_of_a_serving_step_add_up_to_it(text, phase, count):
    given = Serving(micro_batches=count)
    step = predict_serving(
        small(), Plan.parse(text), "h100_ib", phase, batch=8, seq=64, context=256, assume=given
    )
    d = serving_detail(small(), step, given)
    assert sum(d.parts.values()) == pytest.approx(step.seconds, rel=1e-9)
    assert d.compute["kernels"] == pytest.approx(step.compute, rel=1e-9)
    assert sum(d.compute.values()) == pytest.approx(d.parts["compute"], rel=1e-9)
    within = [s for s in d.sent if s.part != BETWEEN]
    assert sum(s.seconds for s in within) == pytest.approx(step.communication, rel=1e-9)
    assert sum(s.exposed for s in within) == pytest.approx(step.exposed, rel=1e-9, abs=1e-15)
    hops = sum(s.seconds for s in d.sent if s.part == BETWEEN)
    assert hops == pytest.approx(d.parts["between stages"], rel=1e-9)
    assert (hops > 0) == (step.plan.pp > 1)


def test_a_server_that_waits_for_its_host_says_so():
    from dataclasses import replace

    from tracer.machine import Timing
    from tracer.predict.structure import Kernels

    slow = Serving(Kernels(replace(Timing(), host=1e-3)))
    step = predict_serving(small(), Plan(dp=2), "h100_ib", "decode", batch=2, assume=slow)
    d = serving_detail(small(), step, slow)
    assert d.parts["waiting for the host"] == pytest.approx(
        step.seconds - step.compute - step.exposed
    )
    assert d.parts["waiting for the host"] > 0.5 * step.seconds


def test_exposed_messages_on_two_streams_by_hand():
    # f computes 3 s and sends 2 s; b sends 4 s and computes 1 s. Streams take turns: the message
    # of b runs from 0 to 4 beside f's compute until 3, that of f from 4 to 6 beside b's, 4 to 5.
    forward = (Segment("", 3.0), Segment("ep", 2.0))
    backward = (Segment("tp", 4.0), Segment("", 1.0))
    run = two_streams(forward, backward)
    found = exposed_together(run, {"f": forward, "b": backward})
    assert found == pytest.approx({("b", "tp"): 1.0, ("f", "ep"): 1.0})
    assert sum(found.values()) == pytest.approx(run.exposed)
    assert isinstance(run, overlap.Overlap)


@pytest.mark.parametrize(
    ("message", "sms", "left", "longer"),
    [
        # 10 s of compute are 12 with its SMs given away. 6 s of messages: 6 x 10/12 = 5 are done
        # meanwhile, the other 5 alone: 11 s.
        (6.0, 20.0, 0.0, 1.0),
        (12.0, 20.0, 0.0, 2.0),
        (15.0, 20.0, 3.0, 2.0),
        (6.0, 0.0, 0.0, 0.0),  # copy engines or NICs do the work
        (15.0, 0.0, 5.0, 0.0),
        (0.0, 20.0, 0.0, 0.0),
    ],
)  # fmt: skip
def test_messages_behind_their_own_pass_hold_sms(message, sms, left, longer):
    passes = Passes(forward=(
        Segment("dp", message, sms=sms), Segment("", 4.0, 5.0), Segment("tp", 1.0, sms=20.0),
        Segment("", 6.0, 7.0),
    ))  # fmt: skip
    assert passes.beside("forward", ("dp",)) == pytest.approx((left, longer, message))
    # Two streams that start together are another way to the same seconds.
    run = overlap.schedule([
        overlap.StreamOp("c", overlap.COMPUTE, 10.0, slowed=12.0),
        overlap.StreamOp("m", overlap.COMM, message, sms=sms),
    ])  # fmt: skip
    assert run.total == pytest.approx(10.0 + left + longer)


def test_gathers_of_sliced_parameters_slow_the_compute_that_hides_them():
    step, detail = trained("dp=8 zero=3 micro_batches=2")
    none, _ = trained("dp=8 zero=3 micro_batches=2", overlap=Overlap(beside=()))
    assert detail.compute["slower beside messages"] > 0
    # Seconds that hide nothing, and give nothing away.
    assert none.breakdown.compute + detail.compute["slower beside messages"] == pytest.approx(
        step.breakdown.compute
    )
    assert step.seconds < none.seconds


def test_exposed_messages_of_one_pass_by_hand():
    passes = Passes(forward=(Segment("", 2.0), Segment("ep", 1.0), Segment("dp", 3.0)))
    # 3 s over data ranks hide behind 2 s of compute, the exchange behind nothing.
    assert exposed_alone(passes, "forward", ("dp",)) == pytest.approx({"ep": 1.0, "dp": 1.0})
    assert exposed_alone(passes, "forward", ()) == pytest.approx({"ep": 1.0, "dp": 3.0})
