"""The lists of actions: against torch's own, by an independent checker, and two written out."""

import pytest
from schedule_checker import check_by_hand, parts_of
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from tracer.parallel.schedules import SCHEDULES, build


def torchs(name, ranks, microbatches, stages_per_rank=None):
    """Torch's order in our words: [ranks][(kind, stage, micro-batch), ...]."""
    ranks_ops = []
    for mine in get_schedule_ops(name, ranks, microbatches, stages_per_rank):
        order = []
        for action in mine:
            if action is None or action.computation_type.value == "REDUCE_GRAD":
                continue
            parts = action.sub_actions or (action,)
            order.append(
                [(p.computation_type.value, p.stage_index, p.microbatch_index) for p in parts]
            )
        ranks_ops.append(order)
    return ranks_ops


def ours(*args):
    return [[parts_of(action) for action in mine] for mine in build(*args).actions]


@pytest.mark.parametrize(
    ("torch_name", "name", "stages_per_rank"),
    [("GPipe", "gpipe", None), ("Interleaved1F1B", "interleaved_1f1b", 2),
     ("Interleaved1F1B", "interleaved_1f1b", 3), ("InterleavedZeroBubble", "zb1p", 2),
     ("InterleavedZeroBubble", "zb1p", 3), ("ZBVZeroBubble", "zbv", None),
     ("DualPipeV", "dualpipev", None)],
)  # fmt: skip
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 10), (4, 20), (8, 16)])
def test_same_order_as_torch(torch_name, name, stages_per_rank, ranks, microbatches):
    theirs = torchs(torch_name, ranks, microbatches, stages_per_rank)
    args = (name, ranks, microbatches, *([stages_per_rank] if stages_per_rank else []))
    assert ours(*args) == theirs


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 21), (8, 16)])
def test_1f1b_is_torchs_but_for_the_numbers_of_its_last_rank(ranks, microbatches):
    """Torch's list counts the last rank's forwards from 1; what it runs starts at micro-batch 0."""
    theirs, mine = torchs("1F1B", ranks, microbatches), ours("1f1b", ranks, microbatches)
    assert mine[:-1] == theirs[:-1]
    assert [[kind for kind, *_ in slot] for slot in mine[-1]] == [
        [kind for kind, *_ in slot] for slot in theirs[-1]
    ]
    assert theirs[-1][0] == [("F", ranks - 1, 1)]  # when torch mends it, compare the whole list
    assert mine[-1][0] == [("F", ranks - 1, 0)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (6, 12), (8, 16), (16, 32)])
def test_every_schedule_can_run(name, ranks, microbatches):
    schedule = build(name, ranks, microbatches)
    assert (schedule.ranks, schedule.microbatches) == (ranks, microbatches)
    check_by_hand(schedule)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb1p", "zbv"])
@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 1), (1, 5), (4, 1), (4, 3), (7, 9)])
def test_odd_and_small_sizes(name, ranks, microbatches):
    check_by_hand(build(name, ranks, microbatches))


def test_who_holds_what():
    assert build("1f1b", 4, 8).stages_of_rank == ((0,), (1,), (2,), (3,))
    assert build("interleaved_1f1b", 2, 4, 3).stages_of_rank == ((0, 2, 4), (1, 3, 5))
    v = ((0, 7), (1, 6), (2, 5), (3, 4))
    assert build("zbv", 4, 8).stages_of_rank == v
    assert build("dualpipev", 4, 8).stages_of_rank == v
    assert build("dualpipe", 4, 8).stages_of_rank == ((0, 3), (1, 2), (2, 1), (3, 0))
    assert build("dualpipe", 4, 8).copies == 2
    assert build("zbv", 4, 8).copies == 1


def test_dualpipe_is_its_own_mirror():
    """Turn the ranks around and swap even with odd micro-batches: the same schedule."""
    schedule = build("dualpipe", 8, 20)
    for rank, mine in enumerate(schedule.actions):
        turned = [
            [(kind, stage, microbatch ^ 1) for kind, stage, microbatch in parts_of(action)]
            for action in schedule.actions[7 - rank]
        ]
        assert [parts_of(action) for action in mine] == turned


def word(schedule, rank):
    """A rank's list in one line: micro-batches that enter at its end of the pipeline plain, the
    others in brackets, each counted within its direction (as figure 5 of arXiv 2412.19437).
    """
    texts = []
    for action in schedule.actions[rank]:
        pair = [
            f"{kind}{microbatch // 2}" if (microbatch % 2 == 0) == (rank < schedule.ranks // 2)
            else f"{kind}({microbatch // 2})"
            for kind, _, microbatch in parts_of(action)
        ]  # fmt: skip
        texts.append("&".join(pair))
    return " ".join(texts)


def test_dualpipe_written_out_by_hand():
    """8 ranks and 20 micro-batches, as in figure 5, from the eight steps of deepseek-ai's code.

    Rank 0 (half_rank 0): 6 F0; 1 F0F1; 3 I1W1F1; 10-8+1 = 3 F0&B1 F1&B0; 3 B1 F1&B0; B1 I0; 3 W I0;
    1 W. Rank 3 (half_rank 3, at the turn): 4 F0F1; 10-8+4 = 6 pairs, the first F apart from its B;
    4 B1B0 of which the second half puts W off; 4 W.
    """
    schedule = build("dualpipe", 8, 20)
    assert word(schedule, 0) == (
        "F0 F1 F2 F3 F4 F5 F6 F(0) I(0) W(0) F(1) I(1) W(1) F(2) I(2) W(2) F(3) "
        "F7&B(3) F(4)&B0 F8&B(4) F(5)&B1 F9&B(5) F(6)&B2 "
        "B(6) F(7)&B3 B(7) F(8)&B4 B(8) F(9)&B5 B(9) I6 W6 I7 W7 I8 W8 I9 W9"
    )
    assert word(schedule, 3) == (
        "F0 F(0) F1 F(1) F2 F(2) F3 F(3) F4 B(0) F(4)&B0 F5&B(1) F(5)&B1 F6&B(2) F(6)&B2 "
        "F7&B(3) F(7)&B3 F8&B(4) F(8)&B4 F9&B(5) F(9)&B5 "
        "B(6) B6 B(7) B7 I(8) I8 I(9) I9 W(8) W8 W(9) W9"
    )
