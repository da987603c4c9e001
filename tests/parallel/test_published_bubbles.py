"""Bubbles and activations against table 2 of arXiv 2412.19437 (also deepseek-ai/DualPipe's README).

    method      bubble                 activations   ranks
    1F1B        (PP-1)(F+B)            PP            PP
    ZB1P        (PP-1)(F+B-2W)         PP            PP
    DualPipe    (PP/2-1)(F&B+B-3W)     PP+1          PP
    DualPipeV   (PP/2-1)(F&B+B-3W)     PP+1          PP/2

F is a forward, B a full backward, W its weight part, I = B - W its input part. The table states no
ranges; the tests say in which the real lists take what it says, and what they take outside.
Durations are integers, so that every sum is exact.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.parallel.schedules import Durations, build, simulate

seconds = st.integers(1, 30)
pipelines = st.integers(2, 16)


def step(name, ranks, microbatches, f, i, w, both=None):
    schedule = build(name, ranks, microbatches)
    durations = Durations.even(schedule.stages, f, i, w, overlapped=both)
    return simulate(schedule, durations).step


@pytest.mark.parametrize("pp", range(2, 17))
@pytest.mark.parametrize("extra", [0, 1, 5, 32])
def test_unit_durations(pp, extra):
    """F = I = W = 1, B = 2, F&B = 3: the table for every PP and some numbers of micro-batches."""
    one, zero = step("1f1b", pp, pp + extra, 1, 1, 1), step("zb1p", pp, pp + extra, 1, 1, 1)
    assert one.bubble == ((pp - 1) * 3,) * pp
    assert zero.bubble == ((pp - 1) * 1,) * pp
    assert max(one.in_flight) == one.in_flight[0] == pp
    assert zero.in_flight == (pp,) * pp
    if pp % 2 == 0:
        want = (pp // 2 - 1) * (3 + 2 - 3)
        double = step("dualpipe", pp, 2 * (pp + extra), 1, 1, 1, 3)
        v = step("dualpipev", pp // 2, pp + extra, 1, 1, 1, 3)
        assert double.bubble == (want,) * pp
        assert v.bubble == (want,) * (pp // 2)
        assert double.in_flight == (pp + 1,) * pp
        assert v.in_flight == (pp + 1,) * (pp // 2)


@settings(max_examples=60, deadline=None)
@given(pipelines, st.integers(1, 40), seconds, seconds, seconds)
def test_1f1b_always(pp, microbatches, f, i, w):
    """Whatever the durations, and with fewer micro-batches than ranks too."""
    taken = step("1f1b", pp, microbatches, f, i, w)
    assert taken.bubble == ((pp - 1) * (f + i + w),) * pp
    assert taken.seconds == (microbatches + pp - 1) * (f + i + w)
    assert max(taken.in_flight) == min(pp, microbatches)


@settings(max_examples=60, deadline=None)
@given(pipelines, st.integers(1, 40), seconds, seconds, seconds)
def test_zb1p_for_weight_gradients_that_are_the_shortest(pp, extra, f, i, w):
    """W <= F and W <= I, and at least PP micro-batches: exactly the table.

    A longer W does not fit into the wait for the next F or I and delays it; then and with fewer
    micro-batches the step only gets longer than the table has it.
    """
    taken = step("zb1p", pp, extra, f, i, w)
    table = (pp - 1) * (f + i - w)
    if w <= min(f, i) and extra >= pp:
        assert taken.bubble == (table,) * pp
    else:
        assert min(taken.bubble) > table
    assert max(taken.in_flight) == min(pp, extra)


# DualPipe and DualPipeV by half, the ranks from an end to the turn (PP = 2·half).
halves, extras = st.integers(1, 8), st.integers(0, 12)


def double(name, half, extra, f, i, w, both):
    """(bubbles from the end to the turn, all of them)."""
    if name == "dualpipe":
        taken = step(name, 2 * half, 2 * (2 * half + extra), f, i, w, both)
        assert taken.bubble == taken.bubble[::-1]
        return taken.bubble[:half], taken
    taken = step(name, half, 2 * half + extra, f, i, w, both)
    return taken.bubble, taken


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev"])
@settings(max_examples=60, deadline=None)
@given(halves, extras, seconds, seconds, seconds, st.data())
def test_dualpipe_where_forward_and_input_gradient_take_the_same(
    name, half, extra, f, w, gain, data
):
    """F = I >= W, F&B from max(F, B) up (also above F + B): the table, on the ranks of the turn.

    So it does not matter how well F&B overlaps, nor how many micro-batches there are beyond 2·PP
    (PP for the V), the least that the schedule takes.
    """
    w = min(w, f)
    both = f + w + data.draw(st.integers(0, f + gain))
    bubbles, taken = double(name, half, extra, f, f, w, both)
    assert bubbles[-1] == (half - 1) * (both + (f + w) - 3 * w)
    assert taken.in_flight == (2 * half + 1,) * taken_ranks(name, half)


def taken_ranks(name, half):
    return 2 * half if name == "dualpipe" else half


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev"])
@settings(max_examples=60, deadline=None)
@given(halves, extras, seconds, seconds, seconds, st.data())
def test_dualpipe_where_they_do_not(name, half, extra, f, i, w, data):
    """W <= I and F&B >= max(F, B): the table counts an I where the list waits for a forward.

    With F != I a step takes max((PP/2-1)(F&B + F - 2W), (PP/2-1)(F&B + I - 2W) - F), the table's
    being (PP/2-1)(F&B + I - 2W): longer by (PP/2-1)(F - I) for a longer forward, shorter by as much
    but at most by F for a shorter one.
    """
    w = min(w, i)
    both = max(f, i + w) + data.draw(st.integers(0, f))
    bubbles, _ = double(name, half, extra, f, i, w, both)
    table = (half - 1) * (both + (i + w) - 3 * w)
    excess = (half - 1) * (f - i)
    assert bubbles[-1] == table + max(excess, -f)


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev"])
@settings(max_examples=60, deadline=None)
@given(halves, extras, seconds, seconds, st.data())
def test_dualpipe_off_the_turn(name, half, extra, f, w, data):
    """A rank nearer to an end runs one F&B less for each rank between, its F and B apart.

    It is as many times F + B - F&B busier and less idle. The two ranks at the turn's side have the
    same, as the one at the turn takes its first pair apart.
    """
    w = min(w, f)
    both = max(f, f + w) + data.draw(st.integers(0, f))
    bubbles, _ = double(name, half, extra, f, f, w, both)
    apart = [max(0, half - 2 - near) * (2 * f + w - both) for near in range(half)]
    assert list(bubbles) == [bubbles[-1] - less for less in apart]


def test_case_study_of_16_ranks_and_32_micro_batches():
    """1F1B idles 15/(32+15) = 31.9% of a step, DualPipe with perfect overlap far less than half.

    F = I = W = 1: 1F1B takes (32+15)·3 = 141. DualPipe: 32·3 busy and 7·(3+2-3) = 14 idle, 110;
    12.7%. (A share of (p-1)/m = 47% is of the work, not of the step.)
    """
    one, two = step("1f1b", 16, 32, 1, 1, 1), step("dualpipe", 16, 32, 1, 1, 1, 3)
    assert (one.seconds, two.seconds) == (141, 110)
    assert one.bubble_share == pytest.approx(15 / 47, rel=1e-12)
    assert two.bubble_share == pytest.approx(14 / 110, rel=1e-12)


def test_zbv_and_interleaving():
    """The bubbles of two papers.

    ZB-V, F = I = W = 1: filling alone, PP-1 (arXiv 2401.10241, figure 6). Interleaving by v divides
    1F1B's bubble by v: (PP-1)(F+B) of stages 1/v as long (arXiv 2104.04473).
    """
    for pp in range(2, 10):
        assert step("zbv", pp, 2 * pp, 1, 1, 1).bubble == (pp - 1,) * pp
        for v in (2, 3):
            schedule = build("interleaved_1f1b", pp, 3 * pp, v)
            taken = simulate(schedule, Durations.even(v * pp, 1, 1, 1)).step
            assert taken.bubble == ((pp - 1) * 3,) * pp


def test_gpipe_holds_everything():
    """The same bubble as 1F1B, but all micro-batches at once."""
    taken = step("gpipe", 6, 20, 3, 2, 4)
    assert taken.bubble == (5 * 9,) * 6
    assert taken.in_flight == (20,) * 6
