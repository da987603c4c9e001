"""What studies answer with: plain numbers and labels, for reports to render."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

Cell: TypeAlias = float | int | str | bool | None


class Side(NamedTuple):
    """Both sides of a comparison at one value of the unknown."""

    at: float
    left: float
    right: float


@dataclass(frozen=True)
class SweepTable:
    """Rows of a sweep: the first columns are the axes, in SI units.

    `total` counts the points of the grid, of which `rows` may be a selection that `kept` names.
    """

    title: str
    axes: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: int
    kept: str = "all"
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> list[Cell]:
        """The values of one column."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Crossover:
    """The first value of `unknown` at which `left` reaches `right`, or why there is none.

    Attributes:
        question: in words.
        unknown: the symbol or knob that was solved for.
        value: the whole number, None if there is none.
        below: both sides one step below `value` (or at the end of the range, if there is none).
        above: both sides at `value`.
        sides: what `left` and `right` are, with their unit.
        low, high: the range that was searched; `high` is None where the proof reaches to infinity.
        proof: why it is the first one, or why none exists.
        limit: what left / right tends to as the unknown grows, if it is known.
        notes: what else bears on it, such as memory that does not suffice there.
    """

    question: str
    unknown: str
    value: int | None
    below: Side
    above: Side | None
    sides: tuple[str, str]
    low: int
    high: int | None
    proof: str
    limit: float | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Elasticity:
    """How the step's time answers to one knob: d ln T / d ln knob, and where that ends.

    Attributes:
        knob: a symbol, a chip's figure, an assumption, or a part of the model's structure.
        at: its value.
        below, above: the slope to either side; they differ at a kink.
        halved, doubled: the step's time over what it is now, at half and at twice the value.
        kernel_below, kernel_above: the nearest values at which a kernel starts to wait for
            something else; None if there is none within a factor `reach`.
        step_below, step_above: the same of the step as a whole, and what it waits for there.
        changes: how the slope was found: "formula", or "trace" for the model's structure.
    """

    knob: str
    at: float
    below: float | None
    above: float | None
    halved: float | None
    doubled: float | None
    kernel_below: float | None = None
    kernel_above: float | None = None
    step_below: tuple[float, str] | None = None
    step_above: tuple[float, str] | None = None
    reach: float = 0.0
    changes: str = "formula"

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class GridRanking:
    """One knob over a full grid: the median time at each of its values, and their largest ratio."""

    knob: str
    medians: tuple[tuple[float, float], ...]  # (value, seconds)

    @property
    def effect(self) -> float:
        """Largest median over the smallest, less 1."""
        seconds = [median for _, median in self.medians]
        return max(seconds) / min(seconds) - 1

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "effect": self.effect}
