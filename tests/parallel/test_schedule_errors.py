"""Schedules that cannot run are refused in one line that says why."""

import pytest

from tracer.errors import UserError
from tracer.parallel.schedules import Action, Schedule, build

HELD = ((0,), (1,))


def two(first, second, held=HELD, stages=2):
    """Two ranks with lists like "F0 B0" (kind, micro-batch), each on its own stage."""
    lists = [
        tuple(Action(word[0], rank, int(word[1:])) for word in words.split())
        for rank, words in enumerate((first, second))
    ]
    return Schedule("mine", stages, 2, held, tuple(lists))


def test_a_good_one_passes():
    assert two("F0 F1 B0 B1", "F0 B0 F1 I1 W1").check()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (two("F0 B0 F1 B1", "F1 B1 F0 B0"),
         "deadlock: rank 0 waits in the backward of micro-batch 0 on stage 0 for the backward of "
         "micro-batch 0 on stage 1 of rank 1; rank 1 waits in the forward of micro-batch 1 on "
         "stage 1 for the forward of micro-batch 1 on stage 0 of rank 0"),
        (two("F0 F1 B0 B1", "B0 F0 F1 B1"),
         "rank 1 runs the backward of micro-batch 0 on stage 1 before its forward"),
        (two("F0 F1 B0 W1 I1", "F0 B0 F1 B1"),
         "rank 0 runs the weight gradient of micro-batch 1 on stage 0 before its backward"),
        (two("F0 F1 B0", "F0 B0 F1 B1"), "the backward of micro-batch 1 on stage 0 never runs"),
        (two("F0 F1 B0 I1", "F0 B0 F1 B1"),
         "the weight gradient of micro-batch 1 on stage 0 never runs"),
        (two("F0 F1 F0 B0 B1", "F0 B0 F1 B1"), "the forward of micro-batch 0 on stage 0 runs 2"),
        (two("F0 F1 B0 B1 W1", "F0 B0 F1 B1"), "the weight gradient of micro-batch 1 on stage 0 r"),
        (two("F0 F1 B0 B1", "F0 B0 F1 B1", held=((0,), (0,))),
         "rank 1 runs the forward of micro-batch 0 on stage 1, but holds stages 0 of 2"),
        (two("F0 F1 B0 B1 F2", "F0 B0 F1 B1"),
         "rank 0 runs the forward of micro-batch 2 on stage 0, beyond the last micro-batch, 1"),
        (Schedule("mine", 1, 1, ((0,), (0,)), ((Action("F", 0, 0),), (Action("B", 0, 0),))),
         "rank 1 runs the backward of micro-batch 0 on stage 0 on another rank than its forward"),
        (Schedule("mine", 1, 1, ((0,),), ((Action("F&B", 0, 0, (0, 0)),),)),
         "rank 0 runs the backward of micro-batch 0 on stage 0 before its forward"),
        (Schedule("mine", 1, 1, ((0,),), ((Action("X", 0, 0),),)), "no kind of action 'X'"),
        (Schedule("mine", 1, 1, ((0,), ()), ((Action("F", 0, 0), Action("B", 0, 0)), ())),
         "rank 1 has nothing to run"),
    ],
)  # fmt: skip
def test_what_cannot_run(schedule, message):
    with pytest.raises(UserError) as caught:
        schedule.check()
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine, ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("dualpip", 8, 16), "no pipeline schedule 'dualpip': did you mean dualpipe"),
        (("1f1b", 0, 8), "0 ranks, 8 micro-batches: a pipeline needs at least one of each"),
        (("zbv", 4, 0), "4 ranks, 0 micro-batches"),
        (("gpipe", 4, -1), "4 ranks, -1 micro-batches"),
        (("dualpipe", 7, 16), "7 ranks; it needs an even number"),
        (("dualpipe", 0, 16), "0 ranks; it needs an even number"),
        (("dualpipe", 8, 14), "at least 16"),
        (("dualpipe", 8, 17), "17 micro-batches on 8 ranks; it needs an even number"),
        (("dualpipev", 4, 7), "7 micro-batches on 4 ranks; it needs at least 8"),
        (("dualpipev", 0, 7), "7 micro-batches on 0 ranks"),
        (("interleaved_1f1b", 4, 9, 2), "9 micro-batches over 4 ranks make 2 rounds of unequal"),
        (("interleaved_1f1b", 4, 8, 0), "0 stages a rank"),
        (("dualpipe", 4, 8, 3), "fixed number of stages a rank, 3 were asked for; free are"),
    ],
)  # fmt: skip
def test_sizes_that_a_schedule_cannot_have(args, message):
    with pytest.raises(UserError) as caught:
        build(*args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
