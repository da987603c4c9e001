"""Two streams against timelines drawn by hand, and what must hold of any schedule."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tracer
from tracer.capture import Capture
from tracer.cost import price
from tracer.errors import UserError
from tracer.hardware import load_chip
from tracer.parallel.network import NetTime
from tracer.parallel.overlap import (
    Span,
    StreamOp,
    communication,
    compute,
    interleave,
    priced,
    schedule,
)


def comm(name, seconds, *after, sms=0.0):
    return StreamOp(name, "comm", seconds, after, sms=sms)


def test_one_after_the_other():
    # compute |a a a|     |c|
    # comm          |b b|
    found = schedule([compute("a", 3), comm("b", 2, "a"), compute("c", 1, "b")])
    assert (found.total, found.compute, found.comm) == (6, 4, 2)
    assert (found.exposed, found.hidden) == (2, 0)


def test_a_gradient_bucket_behind_the_backward():
    # compute |b2 b2|b1 b1 b1|
    # comm          |r2|      |r1 r1|
    found = schedule([compute("b2", 2), compute("b1", 3), comm("r2", 1, "b2"), comm("r1", 2, "b1")])
    assert (found.total, found.exposed, found.hidden) == (7, 2, 1)
    assert found.spans == (
        Span("b2", "compute", 0, 2), Span("r2", "comm", 2, 3), Span("b1", "compute", 2, 5),
        Span("r1", "comm", 5, 7),
    )  # fmt: skip


def test_a_chain_that_is_ahead():
    # compute |a1 a1|b1 b1|a2|    the second chain starts a turn later:
    # comm          |m a  m a|    its message queues behind the first chain's
    first = [compute("a1", 2), comm("ma", 2), compute("a2", 1)]
    second = [compute("b1", 2), comm("mb", 2)]
    names = [op.name for op in interleave(first, second, lead=1)]
    assert names == ["a1", "ma", "b1", "a2", "mb"]
    assert [op.name for op in interleave(first, second)] == ["a1", "b1", "ma", "mb", "a2"]
    found = schedule(interleave(first, second, lead=1))
    assert (found.total, found.exposed) == (6, 1)


def layer(batch, attention, dispatch, experts, combine):
    return [
        compute(f"attention {batch}", attention), comm(f"dispatch {batch}", dispatch),
        compute(f"experts {batch}", experts), comm(f"combine {batch}", combine),
    ]  # fmt: skip


def test_two_micro_batches_hide_each_others_exchange():
    # compute |A1 A1|A2 A2|E1 E1|E2 E2|
    # comm          |d1 d1|d2 d2|c1 c1|c2 c2|      only the last combine has nothing to hide behind
    found = schedule(interleave(layer(1, 2, 2, 2, 2), layer(2, 2, 2, 2, 2)))
    assert (found.total, found.compute, found.comm) == (10, 8, 8)
    assert (found.exposed, found.hidden) == (2, 6)
    # One batch of twice the size: compute, exchange, compute, exchange.
    assert schedule(interleave(layer(1, 4, 4, 4, 4))).total == 16


def test_many_layers_approach_the_longer_stream():
    # Steady state: two layers cost two exchanges each of two batches, as in 2 x 120.96 us a layer
    # of arXiv 2505.09343 section 2.3.2, when compute takes no time.
    def batch(n):
        return [op for i in range(61) for op in layer(f"{n} {i}", 0, 1 / 2, 0, 1 / 2)]

    assert schedule(interleave(batch(1), batch(2))).total == pytest.approx(2 * 61)


def test_dual_pipe_forward_and_backward_in_turn():
    # compute |F.attn 1|B.experts 3    |F.experts 2|B.attn 2|
    # comm             |F.dispatch 1|  |B.combine 2|F.combine 1|
    forward = [compute("Fa", 1), comm("Fd", 1), compute("Fe", 2), comm("Fc", 1)]
    backward = [compute("Be", 3), comm("Bc", 2), compute("Ba", 2)]
    found = schedule(interleave(forward, backward))
    assert [(s.name, s.start, s.end) for s in found.spans] == [
        ("Fa", 0, 1), ("Fd", 1, 2), ("Be", 1, 4), ("Fe", 4, 6), ("Bc", 4, 6), ("Fc", 6, 7),
        ("Ba", 6, 8),
    ]  # fmt: skip
    assert (found.total, found.exposed, found.hidden) == (8, 0, 4)


def test_sms_given_away_slow_the_compute_beside_them():
    # 132 SMs less 22: 6/5 of the time while the exchange runs. 6 s of it do 5 s of work, and the
    # other 5 s follow alone.
    ops = [compute("a", 10, slowed=12), comm("x", 6, sms=22)]
    found = schedule(ops)
    assert (found.total, found.compute, found.comm) == (11, 11, 6)
    assert (found.exposed, found.hidden, found.stretched) == (0, 6, 1)
    # Copies by NICs and copy engines hold none.
    assert schedule([compute("a", 10, slowed=12), comm("x", 6)]).total == 10
    # Communication that outlasts it: 12 s of compute, 8 s exposed.
    long = schedule([compute("a", 10, slowed=12), comm("x", 20, sms=22)])
    assert (long.total, long.compute, long.exposed, long.stretched) == (20, 12, 8, 2)


def test_from_a_time_on_the_network():
    time = NetTime(2.5, 0.5, 1e9, 0.0, "ring", sms=20.0)
    assert communication("x", time, "a") == StreamOp("x", "comm", 2.5, ("a",), sms=20.0)


@st.composite
def plans(draw):
    """Operations that each wait for some before them."""
    ops = []
    for i in range(draw(st.integers(0, 12))):
        after = draw(st.lists(st.sampled_from(ops), max_size=3)) if ops else []
        seconds = draw(st.floats(0, 100))
        names = tuple({op.name for op in after})
        if draw(st.booleans()):
            slow = seconds * draw(st.floats(1, 3))
            ops.append(compute(str(i), seconds, *names, slowed=slow))
        else:
            ops.append(comm(str(i), seconds, *names, sms=draw(st.sampled_from([0.0, 20.0]))))
    return ops


@settings(max_examples=150, deadline=None)
@given(plans())
def test_what_holds_of_any_schedule(ops):
    found = schedule(ops)
    work = sum(op.seconds for op in ops if op.stream == "compute")
    wire = sum(op.seconds for op in ops if op.stream == "comm")
    assert found.comm == pytest.approx(wire)
    assert found.compute == pytest.approx(work + found.stretched, abs=1e-9)
    assert found.exposed + found.hidden == pytest.approx(wire)
    assert max(work, wire) <= found.total * (1 + 1e-9) + 1e-9
    assert found.total <= (work + wire) * (1 + 1e-9) + 1e-9
    assert found.total == pytest.approx(found.compute + found.exposed)
    spans = {span.name: span for span in found.spans}
    assert len(spans) == len(ops)
    for op in ops:
        # No earlier than what it waits for, and no two of one stream at once.
        assert all(spans[name].end <= spans[op.name].start for name in op.after)
    for stream in ("compute", "comm"):
        row = [spans[op.name] for op in ops if op.stream == stream]
        assert all(a.end <= b.start for a, b in itertools.pairwise(row))


def test_a_ledger_with_fewer_sms():
    """`Timing.reserved_sms` prices the compute: 20 of 132 SMs less cost up to 132/112."""
    model = nn.Linear(8192, 8192, bias=False, device="meta", dtype=torch.bfloat16)
    with torch.no_grad(), Capture(model) as capture:
        model(torch.empty(8192, 8192, device="meta", dtype=torch.bfloat16))
    chip, ledger = load_chip("h800_sxm"), price(capture.trace)
    alone, slowed = priced(ledger, chip, sms=20)
    assert 1.1 < slowed / alone < 132 / 112 * 1.01
    kept, more = priced(ledger, chip, tracer.Timing(reserved_sms=20), sms=0)
    assert kept == more == pytest.approx(slowed)
    with pytest.raises(UserError, match="132 SMs for communication"):
        priced(ledger, chip, sms=132)


def test_what_a_schedule_is_refused_for():
    for ops, fault in (
        ([compute("a", 1), compute("a", 1)], "'a' is there 2 times"),
        ([compute("a", 1, "b")], "'a' waits for 'b', which is not there"),
        ([StreamOp("a", "copy", 1)], "stream 'copy'"),
        ([compute("a", -1)], "-1 seconds"),
        ([compute("a", float("nan"))], "nan seconds"),
        ([compute("a", 2, slowed=1)], "quicker than 2 s"),
        ([compute("a", 1, "b"), comm("b", 1, "a")], "a, b: never start"),
        ([comm("x", 1, "a"), comm("y", 1), compute("a", 1, "y")], "a, x: never start"),
    ):
        with pytest.raises(UserError, match=fault):
            schedule(ops)
    assert schedule([]).total == 0
