"""Grids of points: axes as a person writes them, checked before anything runs, cut into blocks.

`B=1:512:x2` doubles, `B=8:64:8` adds, `bandwidth=3.35e12,4.8e12` lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..machine.tables import Array

BLOCK = 8192  # points whose intermediate results stay in a core's cache
MOST = 10**9  # points of a grid
LONGEST = 10**7  # values of one axis
RATE = 2e6  # points a second and core, for what a refused grid would cost; on the safe side
ROW = 150  # bytes a point in a CSV file


@dataclass(frozen=True)
class Axis:
    """A name and the values that it takes; `geometric` ones of a symbol are rounded."""

    name: str
    values: tuple[float, ...]
    geometric: bool = False


class Block(NamedTuple):
    """Points of a grid next to each other: `first` is the number of the first one."""

    first: int
    fixed: Mapping[str, float]
    axes: tuple[Mapping[str, Array], ...]
    key: int  # equal where the arrays are the same


@dataclass(frozen=True)
class Grid:
    """The product of axes; the last one varies fastest."""

    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """Points."""
        return math.prod(len(axis.values) for axis in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """The axes' names."""
        return tuple(axis.name for axis in self.axes)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The least and the largest value of every axis."""
        return {axis.name: (min(axis.values), max(axis.values)) for axis in self.axes}

    def points(self, numbers: Any) -> dict[str, Array]:
        """The values of every axis at some points."""
        shape = [len(axis.values) for axis in self.axes]
        places = np.unravel_index(np.asarray(numbers, dtype=np.int64), shape)
        return {
            axis.name: np.array(axis.values)[place]
            for axis, place in zip(self.axes, places, strict=True)
        }

    @property
    def blocks(self) -> int:
        """How many blocks it is cut into."""
        outer, pieces, _, _ = self._cut()
        return outer * pieces

    def block(self, number: int) -> Block:
        """One of them: whole inner axes, a piece of one axis, single values of the outer ones."""
        _, pieces, cut, width = self._cut()
        place, piece = divmod(number, pieces)
        heads = self.axes[:cut]
        fixed: dict[str, float] = {}
        rest = place
        for axis in reversed(heads):
            rest, index = divmod(rest, len(axis.values))
            fixed[axis.name] = axis.values[index]
        inner = self.axes[cut:]
        start = piece * width
        arrays = []
        for depth, axis in enumerate(inner):
            values = axis.values[start : start + width] if depth == 0 else axis.values
            arrays.append({axis.name: np.array(values, dtype=np.float64)})
        deep = math.prod(len(axis.values) for axis in inner[1:])
        first = (place * (len(inner[0].values) if inner else 1) + start) * deep
        return Block(first, fixed, tuple(arrays), piece)

    def _cut(self) -> tuple[int, int, int, int]:
        """Outer combinations, pieces of the first inner axis, its place, values a piece."""
        size, cut = 1, len(self.axes)
        while cut > 0 and size * len(self.axes[cut - 1].values) <= BLOCK:
            cut -= 1
            size *= len(self.axes[cut].values)
        if cut > 0:  # of the next axis, as many values as still fit
            cut -= 1
            width = max(1, BLOCK // size)
        else:
            width = len(self.axes[0].values) if self.axes else 1
        length = len(self.axes[cut].values) if self.axes else 1
        outer = math.prod(len(axis.values) for axis in self.axes[:cut])
        return outer, -(-length // width), cut, width

    def __iter__(self) -> Iterator[Block]:
        return map(self.block, range(self.blocks))


def parse_axis(text: str) -> Axis:
    """`NAME=LOW:HIGH:xFACTOR`, `NAME=LOW:HIGH:STEP` or `NAME=A,B,C`.

    Raises:
        UserError: anything else, no values, or too many.
    """
    name, equals, values = text.partition("=")
    name = name.strip()
    if not equals or not name or not values.strip():
        raise UserError(f"--sweep {text!r}: write NAME=LOW:HIGH:x2, NAME=LOW:HIGH:STEP or NAME=A,B")
    if ":" not in values:
        found = tuple(_number(part, text) for part in values.split(","))
        if len(set(found)) != len(found):
            raise UserError(f"--sweep {text!r}: a value is there twice")
        return Axis(name, found)
    parts = values.split(":")
    if len(parts) != 3:
        raise UserError(f"--sweep {text!r}: write {name}=LOW:HIGH:x2 or {name}=LOW:HIGH:STEP")
    low, high = _number(parts[0], text), _number(parts[1], text)
    step = parts[2].strip()
    by = _number(step.lstrip("x+"), text)
    if low > high:
        raise UserError(f"--sweep {text!r}: empty, since {low:g} is above {high:g}")
    if step.startswith("x"):
        if by <= 1 or low <= 0:
            raise UserError(f"--sweep {text!r}: a factor is above 1, and starts above 0")
        count = int(math.log(high / low) / math.log(by) + 1e-9) + 1
        _not_endless(text, count)
        return Axis(name, tuple(low * by**i for i in range(count)), geometric=True)
    if by <= 0:
        raise UserError(f"--sweep {text!r}: a step is above 0")
    count = int((high - low) / by + 1e-9) + 1
    _not_endless(text, count)
    return Axis(name, tuple(low + by * i for i in range(count)))


def check_size(axes: Sequence[Axis], cores: int) -> Grid:
    """The grid of `axes`.

    Raises:
        UserError: a name twice, no axis, or more points than anyone waits for; says what it costs.
    """
    grid = Grid(tuple(axes))
    if not axes:
        raise UserError("nothing to sweep: give --sweep NAME=VALUES")
    for axis in axes:
        if grid.names.count(axis.name) > 1:
            raise UserError(f"--sweep {axis.name}: given twice")
    _not_endless(" x ".join(grid.names), grid.size, MOST, cores)
    return grid


def _not_endless(text: str, count: int, most: int = LONGEST, cores: int = 1) -> None:
    if count > most:
        seconds = count / RATE / cores
        raise UserError(
            f"--sweep {text}: {count:,} points would take about {seconds:,.0f} s on {cores} cores "
            f"and {count * ROW:,} bytes as CSV; give at most {most:,}"
        )


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"--sweep {whole!r}: {text.strip()!r} is not a number") from None
    if not math.isfinite(value):
        raise UserError(f"--sweep {whole!r}: {text.strip()!r} is not a finite number")
    return value
