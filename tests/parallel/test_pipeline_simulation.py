"""The simulator: hand arithmetic, an independent longest path, and the bounds that always hold."""

import time

import pytest
from drawn_pipelines import schedules, unequal
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_checker import check_timeline, critical_path, parts_of, seconds_of

from tracer.errors import UserError
from tracer.parallel.schedules import Durations, Held, build, simulate


@st.composite
def timelines(draw):
    schedule = draw(schedules())
    return simulate(schedule, draw(unequal(schedule.stages, schedule.pairs)))


@settings(max_examples=60, deadline=None)
@given(timelines())
def test_every_timeline_keeps_the_rules(timeline):
    check_timeline(timeline)


@settings(max_examples=60, deadline=None)
@given(timelines())
def test_the_step_is_the_critical_path(timeline):
    step = timeline.step
    path = critical_path(timeline.schedule, timeline.durations)
    assert step.seconds == pytest.approx(path, rel=1e-12)
    for rank, mine in enumerate(timeline.schedule.actions):
        busy = sum(seconds_of(action, timeline.durations) for action in mine)
        assert step.busy[rank] == pytest.approx(busy, rel=1e-12)
        assert step.seconds >= (busy + step.sending[rank]) * (1 - 1e-12)
        parts = step.busy[rank] + step.sending[rank] + step.bubble[rank]
        assert parts == pytest.approx(step.seconds, rel=1e-12)
    assert timeline.durations.blocking or not any(step.sending)


def test_two_unequal_stages_by_hand():
    """1F1B, 2 ranks, 2 micro-batches; F 1 and 2, B 3 and 5 seconds, transfers take 0.5.

    rank 0: F0 0-1, F1 1-2;                         B0 9-12,        B1 16-19
    rank 1:        F0 1.5-3.5, B0 3.5-8.5, F1 8.5-10.5, B1 10.5-15.5
    """
    durations = Durations((1, 2), (1, 3), (2, 2), transfer=(0.5,))
    timeline = simulate(build("1f1b", 2, 2), durations)
    spans = [[(s.start, s.end) for s in timeline.of_rank(rank)] for rank in range(2)]
    assert spans[0] == [(0, 1), (1, 2), (9, 12), (16, 19)]
    assert spans[1] == [(1.5, 3.5), (3.5, 8.5), (8.5, 10.5), (10.5, 15.5)]
    assert timeline.step.seconds == 19
    assert timeline.step.busy == (8, 14)
    assert timeline.step.bubble == (11, 5)


def test_blocking_transfers_by_hand():
    """The same where a rank that sends does nothing else.

    rank 0: F0 0-1 (1.5), F1 1.5-2.5 (3);                          B0 9-12,        B1 16.5-19.5
    rank 1:        F0 1.5-3.5, B0 3.5-8.5 (9), F1 9-11, B1 11-16 (16.5)
    """
    durations = Durations((1, 2), (1, 3), (2, 2), transfer=(0.5,), blocking=True)
    timeline = simulate(build("1f1b", 2, 2), durations)
    spans = [[(s.start, s.end, s.free) for s in timeline.of_rank(rank)] for rank in range(2)]
    assert spans[0] == [(0, 1, 1.5), (1.5, 2.5, 3), (9, 12, 12), (16.5, 19.5, 19.5)]
    assert spans[1] == [(1.5, 3.5, 3.5), (3.5, 8.5, 9), (9, 11, 11), (11, 16, 16.5)]
    assert timeline.step.sending == (1, 1)
    assert timeline.step.bubble == (10.5, 4.5)


def test_a_split_backward_lets_the_next_stage_start_sooner():
    """Zero bubble, 2 ranks, 1 micro-batch: rank 0 waits for I of rank 1, not for its W.

    rank 0: F 0-1, I 4-6, W 6-9; rank 1: F 1-2, I 2-4, W 4-7.
    """
    timeline = simulate(build("zb1p", 2, 1), Durations.even(2, 1, 2, 3))
    spans = [[(s.action.kind, s.start, s.end) for s in timeline.of_rank(r)] for r in range(2)]
    assert spans == [
        [("F", 0, 1), ("I", 4, 6), ("W", 6, 9)],
        [("F", 1, 2), ("I", 2, 4), ("W", 4, 7)],
    ]


def test_nothing_is_sent_between_stages_of_one_rank():
    """At the turn of a V: one rank alone, so transfers of any length change nothing."""
    for name in ("zbv", "dualpipev"):
        slow = simulate(build(name, 1, 4), Durations.even(2, 1, 1, 1, transfer=100)).step
        assert slow.seconds == 4 * 6
        assert slow.bubble == (0,)


def test_a_slow_stage_sets_the_pace():
    """With one stage twice as slow as the others, a step of M micro-batches nears M times it."""
    durations = Durations((1, 1, 2, 1), (1, 1, 2, 1), (1, 1, 2, 1))
    step = simulate(build("1f1b", 4, 100), durations).step
    assert step.busy == (300, 300, 600, 300)
    # F of stages 0 and 1 before, B of them after; and once stage 2 has done F1 at 6 and waits for
    # its first backward, whose F0 it gave away at 4 and stage 3 had for 1 + 2: until 7.
    assert step.seconds == (1 + 1) + 600 + (7 - 6) + (2 + 2)


@settings(max_examples=40, deadline=None)
@given(schedules(), st.data())
def test_bytes_are_counted_slot_by_slot(schedule, data):
    """A walk over each rank's list with a dictionary of what it holds."""
    sizes = st.lists(st.integers(0, 1000), min_size=schedule.stages, max_size=schedule.stages)
    whole = data.draw(sizes)
    part = [min(one, other) for one, other in zip(whole, data.draw(sizes), strict=True)]
    step = simulate(schedule, Durations.even(schedule.stages, 1, 1, 1), Held(whole, part)).step
    for rank, mine in enumerate(schedule.actions):
        holding, peak, most = {}, 0, 0
        for action in mine:
            for kind, stage, microbatch in parts_of(action):
                if kind == "F":
                    holding[stage, microbatch] = whole[stage]
            peak, most = max(peak, sum(holding.values())), max(most, len(holding))
            for kind, stage, microbatch in parts_of(action):
                if kind == "I":
                    holding[stage, microbatch] = part[stage]
                elif kind in "BW":
                    del holding[stage, microbatch]
        assert not holding
        assert step.bytes[rank] == peak
        assert step.in_flight[rank] == most


def test_activations_of_16_ranks_by_hand():
    """1F1B's rank r holds PP-r micro-batches, ZB-H1's as many and r that only wait for W."""
    held = Held([100.0] * 16, [10.0] * 16)
    durations = Durations.even(16, 1, 1, 1)
    one = simulate(build("1f1b", 16, 32), durations, held).step
    zero = simulate(build("zb1p", 16, 32), durations, held).step
    assert one.bytes == tuple(100.0 * (16 - rank) for rank in range(16))
    assert zero.bytes == tuple(100.0 * (16 - rank) + 10.0 * rank for rank in range(16))


def test_deepseeks_step_takes_well_under_a_second():
    build.cache_clear()
    start = time.process_time()
    step = simulate(build("dualpipe", 16, 480), Durations.even(16, 1, 1, 1, overlapped=3)).step
    assert step.seconds == 480 * 3 + 7 * 2
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Durations((1, 1), (1,), (1, 1)), "input_gradient: 1 values for 2 stages, not 2"),
        (lambda: Durations((1, -1), (1, 1), (1, 1)), "forward: -1 seconds"),
        (lambda: Durations.even(2, float("nan"), 1, 1), "forward: nan seconds"),
        (lambda: Durations((1, 1), (1, 1), (1, 1), transfer=(1, 1)), "transfer: 2 values for 2 st"),
        (lambda: Held([1], [2]), "stage 0 keeps 2 of 1 bytes"),
        (lambda: Held([1, 1], [1]), "activations of 2 stages"),
        (lambda: simulate(build("1f1b", 2, 4), Durations.even(3, 1, 1, 1)), "given for 3"),
        (
            lambda: simulate(build("1f1b", 2, 4), Durations.even(2, 1, 1, 1), Held([1], [1])),
            "bytes are given for 1",
        ),
        (
            lambda: simulate(
                build("dualpipe", 2, 4), Durations((1,) * 2, (1,) * 2, (1,) * 2, overlapped={})
            ),
            "no seconds for the forward of stage 1 with the backward of stage 0",
        ),
    ],
)
def test_bad_durations_say_what_is_wrong(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
