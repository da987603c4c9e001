"""Sweeps: a grid through an executor, in order, with what is done never done twice.

Any `concurrent.futures.Executor` will do: a pool of processes here, a Dask cluster elsewhere. Rows
go to the CSV file as they come, under a name that says partial until the file is whole.
"""

from __future__ import annotations

import csv
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, did_you_mean
from ..machine.symbolic import StepModel
from ..machine.tables import Values
from .closed import Closed
from .engine import COLUMNS, Found, Job, merge, run_blocks
from .grid import BLOCK, Axis, Grid, check_size
from .records import Cell, SweepTable

LOCAL = 2_000_000  # points from which a pool of processes is worth its start
TASK = 400_000  # points of a task, about
SHOWN = 10_000  # rows that a table may hold

# Numbers that a knob may be, as (least, most, whether the least is allowed).
_LIMITS: dict[str, tuple[float, float, bool]] = {
    "launch": (0, 1, True), "host": (0, 1, True), "exchange": (0, 1, True),
    "matmul_efficiency": (0, 1, False), "memory_efficiency": (0, 1, False), "clock": (0, 1, False),
    "reserved_sms": (0, 1e6, True),
}  # fmt: skip


def check_axes(
    closed: Closed, model: StepModel, axes: Sequence[Axis], cores: int = 1
) -> Grid:  # fmt: skip
    """The grid of `axes`, every point of which the formulas cover.

    Raises:
        UserError: an unknown name (near ones are listed), one that changes nothing, a value out of
            range (the range is named), or a grid that is empty or endless.
    """
    known = {*closed.scope.symbols, *model.defaults} & (model.names | {"capacity"})
    found = []
    for given in axes:
        axis, name = given, given.name
        if name == "peak":
            name = _main_peak(model)
        if name not in known:
            if name in model.defaults or name in closed.symbols:
                raise UserError(f"--sweep {axis.name}: changes nothing in {closed.name}")
            symbols = ", ".join(f"{s} ({text})" for s, text in closed.symbols.items())
            raise UserError(
                f"--sweep {axis.name}: {closed.phase} has {symbols}; "
                f"{did_you_mean(axis.name, [*known, 'peak'])}"
            )
        if axis.geometric and name in closed.scope.symbols:
            axis = Axis(name, tuple(dict.fromkeys(float(round(v)) for v in axis.values)))
        low, most, includes = _LIMITS.get(name, (0.0, float("inf"), False))
        for value in axis.values:
            symbol = name in closed.scope.symbols
            if symbol and not float(value).is_integer():
                raise UserError(f"--sweep {name}={value:g}: {name} is a whole number")
            if not symbol and (not low <= value <= most or (value == low and not includes)):
                text = f"{'at least' if includes else 'above'} {low:g} and at most {most:g}"
                raise UserError(f"--sweep {name}={value:g}: give {text}")
        found.append(Axis(name, axis.values))
    grid = check_size(found, cores)
    check_range(closed, grid)
    return grid


def check_range(closed: Closed, grid: Grid) -> None:
    """Refuse a grid with a point where a symbol or a guard is out of range.

    Raises:
        UserError: names the first such point and the range.
    """
    axes = {axis.name: axis.values for axis in grid.axes if axis.name in closed.scope.symbols}
    for name, values in axes.items():
        for value in (min(values), max(values)):
            symbol = closed.scope.symbols[name]
            if value < symbol.low or name in ("L", "S"):
                closed.check({name: value})
    for guard in closed.scope.guards:
        names = sorted(
            n for n in axes
            if n in {s for e in (guard.expr, guard.by) if hasattr(e, "symbols")
                     for s in e.symbols()}
        )  # fmt: skip
        mesh = np.meshgrid(*(np.array(axes[n]) for n in names), indexing="ij")
        given: dict[str, Any] = {n: float(v) for n, v in closed.scope.samples.items()}
        given |= {n: m.ravel() for n, m in zip(names, mesh, strict=True)}
        at = Values(given, {})
        left, by = at.of(guard.expr), at.of(guard.by)
        if guard.kind in (">", "<=", "=", "!="):
            holds = {">": left > 0, "<=": left <= 0, "=": left == 0, "!=": left != 0}[guard.kind]
        else:
            holds = (np.mod(left, by) == 0) == (guard.kind == "divides")
        if not np.all(holds):
            where = int(np.flatnonzero(~np.atleast_1d(holds))[0])
            closed.check({n: float(given[n][where]) for n in names})


def _main_peak(model: StepModel) -> str:
    peaks = sorted(name for name in model.names if name.startswith("peak."))
    if len(peaks) != 1:
        raise UserError(f"--sweep peak: say which: {', '.join(peaks) or 'no matrix work here'}")
    return peaks[0]


def run(
    job: Job, *, executor: Executor | None = None, path: Path | None = None, title: str = "",
    tell: Callable[[int, int], None] | None = None,
) -> tuple[Found, list[SweepTable]]:  # fmt: skip
    """The whole sweep: a summary, and a table for each of top, front and (if few) all points.

    Args:
        job: the grid has been through `check_axes`.
        executor: runs the tasks; None runs them here.
        path: a CSV file for every point; while it grows it is called `.partial`.
        title: of the tables.
        tell: is given points done and points in all, after every task.
    """
    every = path is not None or (job.grid.size <= SHOWN and not job.top and not job.pareto)
    job = replace(job, every=every)
    parts: list[Found] = []
    rows = []
    writer = _partial(path) if path is not None else nullcontext(None)
    with writer as file:
        if file is not None:
            csv.writer(file).writerow([*job.grid.names, *COLUMNS])
            file.flush()
        first = 0
        for part in _in_order(job, executor):
            if file is not None and part.rows is not None:
                points = job.grid.points(np.arange(first, first + part.points))
                csv.writer(file).writerows(_lines(job.grid, points, part.rows))
                file.flush()
            if part.rows is not None and job.grid.size <= SHOWN:
                rows.append(part.rows)
            first += part.points
            parts.append(part._replace(rows=None))
            if tell is not None:
                tell(first, job.grid.size)
    found = merge(job, parts)
    tables = []
    if rows:
        points = job.grid.points(np.arange(job.grid.size))
        kept = _lines(job.grid, points, np.concatenate(rows))
        tables.append(_table(job, title, kept, "all"))
    if job.top:
        tables.append(selection(job, found.top[0], title, f"the {job.top} best by {job.by}"))
    if job.pareto:
        tables.append(selection(job, found.front[0], title, "no other is faster and gives more"))
    return found, tables


def with_ones(
    closed: Closed, model: StepModel, alone: Closed, single: StepModel, axes: Sequence[Axis],
    title: str,
) -> SweepTable:  # fmt: skip
    """All points of a small grid whose axis B holds 1: those come from a trace of their own.

    `alone` and `single` are the step of a batch of 1, which has no symbol B.

    Raises:
        UserError: as `check_axes`, or too many points for a table.
    """
    batch = next(axis for axis in axes if axis.name == "B")
    larger = [a if a is not batch else replace(a, values=_but_one(a)) for a in axes]
    others = [axis for axis in axes if axis is not batch]
    rows: list[tuple[Cell, ...]] = []
    place = list(axes).index(batch)
    if larger[place].values:
        job = Job(closed, model, check_axes(closed, model, larger))
        _few(job.grid)
        rows += run(job, title=title)[1][0].rows
    if others:
        job = Job(alone, single, check_axes(alone, single, others))
        found = list(run(job, title=title)[1][0].rows)
    else:
        found = _lines(Grid(()), {}, evaluate(Job(alone, single, Grid(())), {}))
    rows += [(*row[:place], 1, *row[place:]) for row in found]
    order = sorted(rows, key=lambda row: tuple(float(str(row[i])) for i in range(len(axes))))
    names = tuple(axis.name for axis in axes)
    return SweepTable(title, names, (*names, *COLUMNS), tuple(order), len(order))


def _but_one(axis: Axis) -> tuple[float, ...]:
    return tuple(value for value in axis.values if value != 1)


def _few(grid: Grid) -> None:
    if grid.size > SHOWN:
        raise UserError(
            f"--sweep B=1,...: {grid.size:,} points are too many for a table; start B at 2, and "
            "give --at B=1 to a sweep of its own"
        )


def selection(job: Job, numbers: Any, title: str, kept: str) -> SweepTable:
    """A table of some points of a grid."""
    if not len(numbers):
        return _table(job, title, [], kept)
    points = job.grid.points(numbers)
    return _table(job, title, _lines(job.grid, points, evaluate(job, points)), kept)


def evaluate(job: Job, points: Mapping[str, Any]) -> Any:
    """[points, COLUMNS] at some points."""
    from .engine import table_of

    values = Values({**job.model.defaults, **points}, {})
    memory, tokens = values.of(job.closed.memory.total), values.of(job.closed.tokens)
    capacity = points.get("capacity", job.model.defaults["capacity"])
    return table_of(job.model.answer(points), memory, tokens, capacity)


def _table(job: Job, title: str, rows: list[tuple[Cell, ...]], kept: str) -> SweepTable:
    columns = (*job.grid.names, *COLUMNS)
    return SweepTable(title, job.grid.names, columns, tuple(rows), job.grid.size, kept)


def _lines(grid: Grid, points: Mapping[str, Any], rows: Any) -> list[tuple[Cell, ...]]:
    columns = [points[name].tolist() for name in grid.names]
    columns += [column.tolist() for column in np.asarray(rows).T]
    columns[-1] = [bool(value) for value in columns[-1]]
    return [tuple(_whole(value) for value in row) for row in zip(*columns, strict=True)]


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() and value < 2**53 else value


def _in_order(job: Job, executor: Executor | None) -> Iterator[Found]:
    """Results of all tasks, in the order of the grid; a broken pool's rest is done here."""
    payload = pickle.dumps(job)
    step = max(1, TASK // BLOCK)
    tasks = [(i, min(i + step, job.grid.blocks)) for i in range(0, job.grid.blocks, step)]
    if executor is None:
        for first, last in tasks:
            yield run_blocks(payload, first, last)
        return
    waiting: deque[tuple[tuple[int, int], Future[Found] | None]] = deque()
    rest = iter(tasks)

    def more() -> None:
        for task in rest:
            try:
                waiting.append((task, executor.submit(run_blocks, payload, *task)))
            except BrokenExecutor:
                waiting.append((task, None))
            if len(waiting) >= 64:
                return

    more()
    try:
        while waiting:
            task, future = waiting.popleft()
            try:
                found = run_blocks(payload, *task) if future is None else future.result()
            except Exception:  # a worker died, or the way to it: an error of our own comes again
                found = run_blocks(payload, *task)
            if len(waiting) < 32:
                more()
            yield found
    finally:
        for _, future in waiting:
            if future is not None:
                future.cancel()


@contextmanager
def _partial(path: Path) -> Iterator[Any]:
    part = path.with_name(path.name + ".partial")
    with part.open("w", newline="") as file:
        yield file
    part.replace(path)


@contextmanager
def executor_for(text: str, size: int) -> Iterator[Executor | None]:
    """`local` (processes, for large grids), `serial`, or `dask://host:port`.

    Raises:
        UserError: none of these, Dask is not installed, or no scheduler answers.
    """
    if text == "serial" or (text == "local" and size < LOCAL):
        yield None
    elif text == "local":
        # One thread of linear algebra a process: there are as many processes as cores.
        before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, "1"))
        try:
            with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
                yield pool
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    elif text.startswith("dask://"):
        yield from _dask(text)
    else:
        raise UserError(f"--executor {text!r}: choose local, serial or dask://HOST:PORT")


_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def _dask(text: str) -> Iterator[Executor | None]:
    try:
        from distributed import Client
    except ImportError:
        raise UserError(
            f"--executor {text}: Dask is not installed; pip install 'tracer[cluster]'"
        ) from None
    try:
        client = Client(text.replace("dask://", "tcp://"), timeout=10)
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(f"--executor {text}: no scheduler answers ({error})") from error
    with client, client.get_executor() as executor:
        yield executor
