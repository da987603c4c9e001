"""The shortcut from the steady state: equal to the whole simulation, for the reason it gives."""

import pytest
from drawn_pipelines import size, unequal
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_checker import parts_of

from tracer.errors import UserError
from tracer.parallel.schedules import SCHEDULES, Durations, Held, build, price, simulate, steady

REPEATING = [name for name in SCHEDULES if name != "gpipe"]


def same(one, other):
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-10, abs=1e-10 * one.seconds)


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(20, 60), st.integers(0, 9), st.data())
def test_equal_to_the_whole_simulation(name, ranks, rounds, more, data):
    """Unequal stages, transfers, blocking or not, any overlap; rounds·ranks+more micro-batches."""
    ranks += ranks % 2 if name == "dualpipe" else 0
    microbatches = size(name, ranks, rounds, more)
    schedule = build(name, ranks, microbatches)
    durations = data.draw(unequal(schedule.stages, schedule.pairs))
    held = Held([3.0] * schedule.stages, [1.0] * schedule.stages)
    whole = simulate(schedule, durations, held).step
    short = price(name, ranks, microbatches, durations, held)
    assert (short.in_flight, short.bytes) == (whole.in_flight, whole.bytes)
    same(whole, short)


@pytest.mark.parametrize("name", REPEATING)
def test_it_does_not_walk_through_the_whole_step(name, monkeypatch):
    seen = []
    monkeypatch.setattr(
        steady,
        "simulate",
        lambda schedule, *rest: (seen.append(schedule), simulate(schedule, *rest))[1],
    )
    stages = build(name, 8, 16).stages
    durations = Durations.even(stages, 1.0, 1.25, 0.75, overlapped=2.5, transfer=0.125)
    step = price(name, 8, 1024, durations)
    assert sum(schedule.microbatches for schedule in seen) <= 120
    same(simulate(build(name, 8, 1024), durations).step, step)


@pytest.mark.parametrize("name", REPEATING)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_more_micro_batches_only_repeat_the_middle(name, ranks):
    """What the shortcut rests on, for one period more and for many.

    Beyond the micro-batches that two lengths have in the same places, every slot of the longer one
    is a slot of the shorter, one period on, and so is the slot before it on its rank.
    """
    few = size(name, ranks, 8, 0)
    for microbatches in (few, few + 2 * ranks, few + 6 * ranks):
        short = build(name, ranks, microbatches)
        long = build(name, ranks, microbatches + short.period)
        assert short.period in (1, 2, ranks)
        known = steady.repeated(short, long)
        assert known > steady.look_back(short)
        assert (
            steady.look_back(short)
            == steady.look_back(long)
            == steady.look_back(build(name, ranks, few))
        )
        for mine, other in zip(short.actions, long.actions, strict=True):
            before = predecessors(mine, 0)
            after = predecessors(other, short.period)
            for slot in after:
                if min(microbatch for _, _, microbatch in slot) >= known - short.period:
                    assert after[slot] == before[slot]


def predecessors(actions, back):
    """Slot -> the slot before it, both as parts with micro-batches `back` lower."""
    moved = [
        tuple((kind, stage, microbatch - back) for kind, stage, microbatch in parts_of(action))
        for action in actions
    ]
    return dict(zip(moved[1:], moved, strict=False))


def test_a_slow_transient_is_walked_until_it_is_over():
    """A last stage slower by a hair fills the queues before it over hundreds of micro-batches."""
    ranks = 4
    forward = [1.0, 1.0, 1.0, 1.001]
    durations = Durations(forward, forward, forward, transfer=[0.4] * 3)
    same(
        simulate(build("1f1b", ranks, 2000), durations).step, price("1f1b", ranks, 2000, durations)
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("1f1b", 0, 100), "0 ranks, 100 micro-batches"),
        (("dualpipe", 4, 1001), "1001 micro-batches on 4 ranks; it needs an even number"),
        (("interleaved_1f1b", 4, 1002), "1002 micro-batches over 4 ranks make 250 rounds"),
        (("1F1B", 4, 1002), "no pipeline schedule '1F1B': did you mean 1f1b"),
    ],
)
def test_errors_name_what_was_asked_for(args, message):
    with pytest.raises(UserError) as caught:
        price(*args, Durations.even(4, 1, 1, 1))
    assert message in str(caught.value)
