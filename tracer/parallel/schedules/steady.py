"""A step of many micro-batches from one of few: exact, because the middle of a pipeline repeats.

More micro-batches only repeat the middle part of every rank's list (`Schedule.period`). An end time
is a maximum over sums of what came before, so if all ends of a whole window of micro-batches lie a
constant later than those one period earlier, and no slot looks back further than the window, every
further period adds that constant, and the drain moves along with it. The window is looked for in
the simulation of a short step; where it is not there yet (a slow stage far from the first takes
long to fill the queues before it) a longer one is tried, at last the whole.
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
from .simulate import PipelineStep, Timeline, rank_seconds, simulate

# Rounding of sums of some thousand terms stays below it; a difference that is real does not.
_SAME = 1e-12


class _Period(NamedTuple):
    """What one more period adds: seconds to the step, computing and sending to every rank."""

    seconds: float
    busy: tuple[float, ...]
    sending: tuple[float, ...]


def price(
    name: str, ranks: int, microbatches: int, durations: Durations,
    held: Held | None = None, stages_per_rank: int | None = None,
) -> PipelineStep:  # fmt: skip
    """`simulate(build(...)).step`, without walking through every micro-batch where they repeat.

    Raises:
        UserError: as `build` and `simulate`.
    """
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
        timeline = simulate(short, durations, held)
        more = _steady(timeline, build(name, ranks, few + short.period, stages_per_rank))
        if more is not None:
            return _extend(timeline.step, more, (microbatches - few) // short.period)
        size *= 2
    return simulate(build(name, ranks, microbatches, stages_per_rank), durations, held).step


def _extend(step: PipelineStep, more: _Period, periods: int) -> PipelineStep:
    seconds = step.seconds + periods * more.seconds
    busy = tuple(b + periods * m for b, m in zip(step.busy, more.busy, strict=True))
    sending = tuple(s + periods * m for s, m in zip(step.sending, more.sending, strict=True))
    bubble = tuple(seconds - b - s for b, s in zip(busy, sending, strict=True))
    return step._replace(seconds=seconds, busy=busy, sending=sending, bubble=bubble)


def _steady(timeline: Timeline, longer: Schedule) -> _Period | None:
    """What a period adds, if the timeline shows a steady window; `longer` has one period more."""
    schedule, graph = timeline.schedule, timeline.schedule.graph
    period = schedule.period
    last = repeated(schedule, longer)
    first = last - look_back(schedule) - period
    if first < 0:
        return None
    tables = (graph.forward, graph.backward, graph.weight)
    ends = np.stack([timeline.free[table[:, first:last]] for table in tables])
    shift = ends[..., period:] - ends[..., :-period]
    if np.ptp(shift) > _SAME * timeline.step.seconds:
        return None
    busy, sending = rank_seconds(longer, timeline.durations)
    less_busy, less_sending = rank_seconds(schedule, timeline.durations)
    return _Period(
        float(np.median(shift)),
        tuple((busy - less_busy).tolist()),
        tuple((sending - less_sending).tolist()),
    )


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
