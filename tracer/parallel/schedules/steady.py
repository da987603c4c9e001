"""A step of many micro-batches from one of few: exact, because the middle of a pipeline repeats.

More micro-batches only repeat the middle part of every rank's list (`Schedule.period`). An end time
is a maximum over sums of what came before, so if all ends of a whole window of micro-batches lie a
constant later than those some periods earlier, and no slot looks back further than the window, as
many further periods add that constant, and the drain moves along with it. (Some periods, not one:
where transfers set the pace, a round trip may serve several micro-batches at once.) The window is
looked for in the simulation of a short step; where it is not there yet (a slow stage far from the
first takes long to fill the queues before it) a longer one is tried, at last the whole.
"""

from __future__ import annotations

from functools import lru_cache
from math import lcm
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from .durations import Durations, Held
from .registry import build
from .schedule import Schedule
from .simulate import Floats, PipelineStep, Timeline, rank_seconds, simulate

# Rounding of sums of some thousand terms stays below it; a difference that is real does not.
_SAME = 1e-12


class _Steady(NamedTuple):
    """What `microbatches` more add: seconds to the step; to each rank computing and sending."""

    microbatches: int
    seconds: float
    busy: Floats
    sending: Floats


def price(
    name: str, ranks: int, microbatches: int, durations: Durations,
    held: Held | None = None, stages_per_rank: int | None = None,
) -> PipelineStep:  # fmt: skip
    """`simulate(build(...)).step`, without walking through every micro-batch where they repeat.

    Raises:
        UserError: as `build` and `simulate`.
    """

    def run(count: int) -> Timeline:
        return simulate(build(name, ranks, count, stages_per_rank), durations, held)

    stride = lcm(2, ranks) if ranks > 0 else 1  # a multiple of every period
    size = 4 * stride
    while size + stride <= microbatches // 2:
        few = size + microbatches % stride
        try:
            short = build(name, ranks, few, stages_per_rank)
        except UserError:
            break  # the whole step raises it, too, with the number that was asked for
        if not short.period:
            break
        timeline = run(few)
        more = _steady(timeline, build(name, ranks, few + short.period, stages_per_rank))
        if more is not None:
            times, rest = divmod(microbatches - few, more.microbatches)
            return _extend(run(few + rest).step if rest else timeline.step, more, times)
        size *= 2
    return run(microbatches).step


def shortest(
    name: str, ranks: int, microbatches: int, stages_per_rank: int | None = None
) -> Schedule:
    """A schedule of fewer micro-batches, where one holds as much at a time in as many kinds of
    slots (its middle repeats); else the whole.

    Raises:
        UserError: as `build`.
    """
    stride = lcm(2, ranks) if ranks > 0 else 1
    if 5 * stride <= microbatches // 2:
        try:
            short = build(name, ranks, 4 * stride + microbatches % stride, stages_per_rank)
        except UserError:
            pass  # the whole step raises it, too, with the number that was asked for
        else:
            if short.period:
                return short
    return build(name, ranks, microbatches, stages_per_rank)


def _extend(step: PipelineStep, more: _Steady, times: int) -> PipelineStep:
    seconds = step.seconds + times * more.seconds
    busy = step.busy + times * more.busy
    sending = step.sending + times * more.sending
    bubble = seconds - busy - sending
    return step._replace(
        seconds=seconds, busy=tuple(busy.tolist()), sending=tuple(sending.tolist()),
        bubble=tuple(bubble.tolist()),
    )  # fmt: skip


def _steady(timeline: Timeline, longer: Schedule) -> _Steady | None:
    """The steady state, if the timeline reaches it; `longer` has one period more."""
    schedule, graph = timeline.schedule, timeline.schedule.graph
    last, window = repeated(schedule, longer), look_back(schedule)
    tables = (graph.forward, graph.backward, graph.weight)
    ends = np.stack([timeline.free[table[:, :last]] for table in tables])
    for step in range(schedule.period, last - window + 1, schedule.period):
        shift = ends[..., -window:] - ends[..., -window - step : -step]
        if np.ptp(shift) <= _SAME * timeline.step.seconds:
            break
    else:
        return None
    periods = step // schedule.period
    busy, sending = (
        periods * (after - before)
        for after, before in zip(
            rank_seconds(longer, timeline.durations),
            rank_seconds(schedule, timeline.durations), strict=True,
        )
    )  # fmt: skip
    return _Steady(step, float(np.median(shift)), busy, sending)


@lru_cache(maxsize=256)
def look_back(schedule: Schedule) -> int:
    """The most micro-batches by which a slot is ahead of one that it waits for."""
    graph = schedule.graph
    none = graph.back_microbatch < 0
    high = np.maximum(graph.microbatch, graph.back_microbatch)
    low = np.where(none, graph.microbatch, np.minimum(graph.microbatch, graph.back_microbatch))
    before = np.column_stack([graph.previous, graph.waits])
    behind = np.where(before >= 0, high[:, None] - low[before], 0)
    return int(behind.max())


@lru_cache(maxsize=256)
def repeated(schedule: Schedule, longer: Schedule) -> int:
    """Micro-batches below this number are run by both in the same places of their lists."""
    found = schedule.microbatches
    for mine, other in zip(schedule.actions, longer.actions, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), None)
        for action in mine[same:] if same is not None else ():
            found = min(found, *(part.microbatch for part in action.parts))
    return found
