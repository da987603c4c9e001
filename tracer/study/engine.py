"""What a worker does with a part of a grid: evaluate blocks, keep the best, drop the rest.

A task carries the model as bytes; a process builds its evaluator from them once.
"""

from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tracer.hardware import Chip

from ..machine import Timing
from ..machine.symbolic import Answer, StepModel
from ..machine.tables import Array, Table, terms_of
from .closed import Closed
from .grid import Grid

SECONDS, TOKENS = "seconds", "tokens_per_s"
OBJECTIVES = (SECONDS, TOKENS)
COLUMNS = (
    "seconds", "tokens_per_s", "flop_per_byte", "waits_compute", "waits_memory", "waits_latency",
    "waits_network", "ideal_seconds", "memory_bytes", "fits",
)  # fmt: skip

Numbers: TypeAlias = NDArray[np.int64]  # of points in a grid


@dataclass(frozen=True)
class Job:
    """A sweep: a closed form on a chip, a grid, and what to keep of it.

    Attributes:
        top: how many of the best points by `by`; 0 for none.
        pareto: keep the points that no other beats in both seconds and tokens a second.
        fits: only points whose memory fits into one chip.
        every: keep all points, with all `COLUMNS`.
    """

    closed: Closed
    model: StepModel
    grid: Grid
    top: int = 0
    by: str = TOKENS
    pareto: bool = False
    fits: bool = False
    every: bool = False

    def __reduce__(self) -> Any:
        """As plain data: expressions that share a scope refer to each other in circles."""
        model = self.model
        more = (self.grid, self.top, self.by, self.pareto, self.fits, self.every)
        return _job, (self.closed.to_plain(), model.chip, model.timing, model.defaults, more)


def _job(plain: Any, chip: Chip, timing: Timing, defaults: dict[str, float], more: Any) -> Job:
    closed = Closed.from_plain(plain)
    model = StepModel(closed.rows, chip, timing, closed.scope, closed.network)
    model.fix(defaults)
    return Job(closed, model, *more)


class Found(NamedTuple):
    """Of some blocks: the numbers of the points kept and their values, and of all a summary."""

    points: int
    feasible: int
    fastest: float
    slowest: float
    top: tuple[Numbers, Array]  # numbers, objective
    front: tuple[Numbers, Array, Array]  # numbers, seconds, tokens a second
    rows: Array | None  # [points, COLUMNS] of every point, in order


def run_blocks(payload: bytes, first: int, last: int) -> Found:
    """Blocks `first` to `last` - 1 of the pickled `Job`."""
    worker = _worker(payload)
    return worker.run(first, last)


@functools.lru_cache(maxsize=2)
def _worker(payload: bytes) -> _Worker:
    return _Worker(pickle.loads(payload))


class _Worker:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.blocks = job.model.over(job.grid.ranges())
        self.held = Table([terms_of(job.closed.memory.total), terms_of(job.closed.tokens)], {})

    def run(self, first: int, last: int) -> Found:
        job = self.job
        points = feasible = 0
        fastest, slowest = np.inf, 0.0
        top, front = _Top(job.top, job.by), _Front()
        rows = []
        for number in range(first, last):
            block = job.grid.block(number)
            fixed, size = dict(block.fixed), 1
            for axis in block.axes:
                size *= len(next(iter(axis.values())))
            if job.every:
                table = self._rows(block.first, size)
                rows.append(table)
                seconds, tokens = table[:, 0], table[:, 1]
                fits: Any = table[:, -1] > 0
            else:
                seconds = self.blocks.seconds(block.axes, fixed, key=block.key).ravel()
                memory, count = self._held(block.first, size, fixed) if self._needed else (0, 0)
                tokens = count / seconds if self._needed else seconds
                fits = memory <= self._capacity(block.first, size) if job.fits else None
            points += size
            fastest, slowest = min(fastest, float(seconds.min())), max(slowest, seconds.max())
            numbers = None
            if job.fits:
                numbers = np.flatnonzero(fits)
                seconds, tokens = seconds[numbers], tokens[numbers]
            feasible += len(seconds)
            if len(seconds) == 0:
                continue
            if job.top:
                top.add(block.first, numbers, seconds, tokens)
            if job.pareto:
                front.add(block.first, numbers, seconds, tokens)
        every = np.concatenate(rows) if rows else None
        return Found(points, feasible, fastest, float(slowest), top.found(), front.found(), every)

    @property
    def _needed(self) -> bool:
        return bool(self.job.pareto or self.job.fits or (self.job.top and self.job.by == TOKENS))

    def _held(self, first: int, size: int, fixed: Any) -> tuple[Any, Any]:
        """Bytes of memory and tokens of `size` points."""
        job = self.job
        names = frozenset(job.closed.scope.symbols) & frozenset(job.grid.names)
        given = job.grid.points(np.arange(first, first + size)) if names else {}
        values = job.model.values({name: given[name] for name in names})
        coefficients, groups = self.held.at(values, names, size)
        memory, tokens = coefficients @ groups
        return memory, tokens

    def _capacity(self, first: int, size: int) -> Any:
        if "capacity" in self.job.grid.names:
            return self.job.grid.points(np.arange(first, first + size))["capacity"]
        return self.job.model.defaults["capacity"]

    def _rows(self, first: int, size: int) -> Array:
        job = self.job
        points = job.grid.points(np.arange(first, first + size))
        memory, tokens = self._held(first, size, {})
        return table_of(job.model.answer(points), memory, tokens, self._capacity(first, size))


def table_of(answer: Answer, memory: Any, tokens: Any, capacity: Any) -> Array:
    """[points, COLUMNS]."""
    whole = answer.seconds
    ideal = np.maximum(np.maximum(answer.ideal_compute, answer.ideal_memory), answer.network)
    columns = (
        whole, tokens / whole, answer.intensity, answer.compute / whole, answer.memory / whole,
        answer.latency / whole, answer.network / whole, ideal, memory, memory <= capacity,
    )  # fmt: skip
    return np.stack([np.broadcast_to(c, whole.shape) for c in columns], axis=1).astype(np.float64)


class _Top:
    """The best `count` points so far; of equal ones, the first."""

    def __init__(self, count: int, by: str) -> None:
        self._count, self._sign = count, 1.0 if by == SECONDS else -1.0
        self._numbers: Numbers = np.empty(0, dtype=np.int64)
        self._scores: Array = np.empty(0)
        self._worst = np.inf

    def add(self, first: int, numbers: Any, seconds: Array, tokens: Array) -> None:
        scores = seconds if self._sign > 0 else -tokens
        better = np.flatnonzero(scores < self._worst)
        if not len(better):
            return
        places = first + (better if numbers is None else numbers[better])
        self._numbers = np.concatenate([self._numbers, places])
        self._scores = np.concatenate([self._scores, scores[better]])
        order = np.lexsort((self._numbers, self._scores))[: self._count]
        self._numbers, self._scores = self._numbers[order], self._scores[order]
        if len(order) == self._count:
            self._worst = float(self._scores[-1])

    def found(self) -> tuple[Numbers, Array]:
        return self._numbers, self._sign * self._scores


class _Front:
    """Points that no other beats in both seconds (less) and tokens a second (more)."""

    def __init__(self) -> None:
        nothing = np.empty(0)
        self._found: tuple[Numbers, Array, Array] = (nothing.astype(np.int64), nothing, nothing)

    def add(self, first: int, numbers: Any, seconds: Array, tokens: Array) -> None:
        known, times, rates = self._found
        if len(times):  # rates rise along the front: the one at or before `seconds` decides
            place = np.searchsorted(times, seconds, side="right") - 1
            open_ = np.flatnonzero((place < 0) | (tokens > rates[np.maximum(place, 0)]))
        else:
            open_ = np.arange(len(seconds))
        if not len(open_):
            return
        places = first + (open_ if numbers is None else numbers[open_])
        self._found = pareto(
            np.concatenate([known, places]),
            np.concatenate([times, seconds[open_]]),
            np.concatenate([rates, tokens[open_]]),
        )

    def found(self) -> tuple[Numbers, Array, Array]:
        return self._found


def pareto(numbers: Numbers, seconds: Array, tokens: Array) -> tuple[Numbers, Array, Array]:
    """The front of some points, by rising seconds; of equal points, the first."""
    order = np.lexsort((numbers, -tokens, seconds))
    best = np.maximum.accumulate(tokens[order])
    new = np.concatenate([[True], best[1:] > best[:-1]]) if len(order) else np.empty(0, bool)
    kept = order[new]
    return numbers[kept], seconds[kept], tokens[kept]


def merge(job: Job, parts: list[Found]) -> Found:
    """One `Found` of many; rows of every point stay with whoever wrote them."""
    top = _Top(job.top, job.by)
    numbers = np.concatenate([part.top[0] for part in parts])
    scores = np.concatenate([part.top[1] for part in parts])
    if len(numbers):
        top.add(0, numbers, scores, scores)
    front = pareto(
        np.concatenate([part.front[0] for part in parts]),
        np.concatenate([part.front[1] for part in parts]),
        np.concatenate([part.front[2] for part in parts]),
    )
    return Found(
        sum(p.points for p in parts), sum(p.feasible for p in parts),
        min(p.fastest for p in parts), max(p.slowest for p in parts), top.found(), front, None,
    )  # fmt: skip
