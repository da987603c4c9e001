"""One event simulator for every schedule: start and end of each slot, and what it adds up to.

A slot starts when its rank is free and all that it waits for has arrived. Nothing is reordered: the
lists are what a runtime would run. Memory needs no times: a rank runs its list in order, so what it
holds follows from the list alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .durations import Durations, Held
from .graph import FB, B, F, Graph, I, W
from .schedule import Action, Schedule

Floats = NDArray[np.float64]


class PipelineStep(NamedTuple):
    """What a step comes to. Tuples have an entry for every rank.

    seconds: from the first start to the last end. busy: computing. sending: kept from computing by
    its own transfers (blocking ones only). bubble: the rest. in_flight: the most micro-batches
    whose activations it holds at a time, counted once for each of its stages, from the start of
    the forward to the end of B or W. bytes: the most that they take, 0 without Held.
    """

    seconds: float
    busy: tuple[float, ...]
    sending: tuple[float, ...]
    bubble: tuple[float, ...]
    in_flight: tuple[int, ...]
    bytes: tuple[float, ...]

    @property
    def bubble_share(self) -> float:
        """Idle share of all ranks' time, 0 to 1."""
        return sum(self.bubble) / (self.seconds * len(self.bubble)) if self.seconds else 0.0


class Slot(NamedTuple):
    """An action with its seconds from the start of the step; `free` is `end` and its sending."""

    action: Action
    start: float
    end: float
    free: float


@dataclass(frozen=True, eq=False)
class Timeline:
    """When everything runs. start, end, free: [slots] seconds, in the order of `schedule.graph`."""

    schedule: Schedule
    durations: Durations
    start: Floats
    end: Floats
    free: Floats
    held: Held | None = None

    def of_rank(self, rank: int) -> Iterator[Slot]:
        """What `rank` runs, in order."""
        graph = self.schedule.graph
        slots = graph.place[graph.first[rank] : graph.first[rank + 1]]
        columns = (values[slots].tolist() for values in (self.start, self.end, self.free))
        return map(Slot, self.schedule.actions[rank], *columns)

    @cached_property
    def step(self) -> PipelineStep:
        seconds = float(self.free.max())
        busy, sending = rank_seconds(self.schedule, self.durations)
        bubble = seconds - busy - sending
        return PipelineStep(
            seconds, tuple(busy.tolist()), tuple(sending.tolist()), tuple(bubble.tolist()),
            in_flight(self.schedule), peak_bytes(self.schedule, self.held),
        )  # fmt: skip


def simulate(schedule: Schedule, durations: Durations, held: Held | None = None) -> Timeline:
    """Run the lists of `schedule` with these seconds.

    Raises:
        UserError: a schedule that cannot run (see Schedule.check), durations or bytes for another
            number of stages.
    """
    durations.check(schedule)
    if held is not None:
        held.check(schedule)
    graph = schedule.graph
    run = slot_seconds(graph, durations)
    lag, send = _transfers(graph, durations)
    start, free = _spans(graph, run + send, lag)
    return Timeline(schedule, durations, start, np.minimum(start + run, free), free, held)


def rank_seconds(schedule: Schedule, durations: Durations) -> tuple[Floats, Floats]:
    """[ranks] seconds that each computes, and that its own transfers keep it from computing."""
    graph, ranks = schedule.graph, schedule.ranks
    _, send = _transfers(graph, durations)
    busy, sending = np.zeros(ranks), np.zeros(ranks)
    np.add.at(busy, graph.rank, slot_seconds(graph, durations))
    np.add.at(sending, graph.rank, send)
    return busy, sending


def slot_seconds(graph: Graph, durations: Durations) -> Floats:
    """[slots] seconds that each slot computes."""
    by_kind = np.zeros((4, durations.stages))
    by_kind[F], by_kind[B] = durations.forward, durations.backward
    by_kind[I], by_kind[W] = durations.input_gradient, durations.weight_gradient
    both = graph.kind == FB
    seconds = np.where(both, 0.0, by_kind[np.where(both, 0, graph.kind), graph.stage])
    if both.any():
        pair = graph.stage * durations.stages + graph.back_stage
        pairs, which = np.unique(pair[both], return_inverse=True)
        known = [durations.overlap(*divmod(int(p), durations.stages)) for p in pairs]
        seconds[both] = np.array(known)[which]
    return seconds


def _transfers(graph: Graph, durations: Durations) -> tuple[Floats, Floats]:
    """[slots, 2] seconds that each result is under way, [slots] that sending keeps a rank busy."""
    lag = np.zeros(graph.hop.shape)
    send = np.zeros(len(graph.kind))
    for column, seconds in enumerate((durations.transfer, durations.gradient_transfer)):
        sent = graph.hop[:, column] >= 0
        lag[sent, column] = np.array(seconds, float)[graph.hop[sent, column]]
        if durations.blocking:
            np.add.at(send, graph.waits[sent, column], lag[sent, column])
    return (np.zeros_like(lag) if durations.blocking else lag), send


def _spans(graph: Graph, run: Floats, lag: Floats) -> tuple[Floats, Floats]:
    """[slots] start and end, in one pass: every slot stands behind all that it waits for."""
    begin = [0.0] * len(run)
    end = [0.0] * (len(run) + 1)  # the last stands for "waits for nothing", index -1
    columns = (
        graph.previous, graph.waits[:, 0], lag[:, 0], graph.waits[:, 1], lag[:, 1], run,
    )  # fmt: skip
    for i, (before, one, one_lag, other, other_lag, seconds) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        start = end[before]
        arrival = end[one] + one_lag
        if arrival > start:  # noqa: PLR1730 - this loop is all the time; max() doubles it
            start = arrival
        arrival = end[other] + other_lag
        if arrival > start:  # noqa: PLR1730 - this loop is all the time; max() doubles it
            start = arrival
        begin[i] = start
        end[i] = start + seconds
    return np.array(begin), np.array(end[:-1])


def in_flight(schedule: Schedule) -> tuple[int, ...]:
    """[ranks] the most micro-batches held at a time; one that waits for its W still counts."""
    ones = np.ones(schedule.stages)
    return tuple(int(n) for n in _peaks(schedule.graph, ones, ones))


def peak_bytes(schedule: Schedule, held: Held | None) -> tuple[float, ...]:
    """[ranks] the most bytes of activations held at a time."""
    if held is None:
        return (0.0,) * schedule.ranks
    whole, part = np.array(held.activations, float), np.array(held.until_weight, float)
    return tuple(_peaks(schedule.graph, whole, part).tolist())


def _peaks(graph: Graph, whole: Floats, part: Floats) -> Floats:
    """[ranks] the highest level: forwards add at their start, backwards take off at their end."""
    place, kind = graph.place, graph.kind[graph.place]
    stage, back = graph.stage[place], graph.back_stage[place]
    taken = np.where((kind == F) | (kind == FB), whole[stage], 0.0)
    given = np.where(
        kind == W, part[stage], np.where(kind == F, 0.0, whole[back] - (kind == I) * part[back])
    )
    # Every rank ends with nothing held, so one running sum over all of them starts each at 0.
    level = np.cumsum(taken - given) + given
    return np.maximum.reduceat(level, graph.first[:-1])
