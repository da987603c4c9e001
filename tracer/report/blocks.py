"""What a report is made of. Sections build these; renderers turn them into Markdown, HTML, data.

Text knows three marks: `code`, **bold**, and a line that begins with "* " as a list item. Names
that come from a model go through `code()`, so that no name is taken for a mark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .units import UNITS


class Column(NamedTuple):
    """`key` names it in CSV and JSON, `header` is for people; `unit` is one of `units.UNITS`."""

    key: str
    header: str
    unit: str = "text"


@dataclass(frozen=True)
class Text:
    """A paragraph, or list items if every line starts with "* "."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of raw values, in SI base units; None is a cell that does not apply.

    `total`, if there is one, has the same cells; the additive ones are checked against the rows
    when the table is made, so that no table is shown that does not add up. `data`, if there is
    any, goes to CSV and JSON in place of `rows`.

    Raises:
        ValueError: a row of another length, a unit that does not exist, a total that is no sum.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[Any, ...]]
    total: tuple[Any, ...] | None = None
    data: Sequence[tuple[Any, ...]] | None = None  # all rows, where `rows` are those worth reading

    def __post_init__(self) -> None:
        for column in self.columns:
            if column.unit not in UNITS:
                raise ValueError(f"{self.name}: {column.key}: unit {column.unit!r}")
        for row in (*self.rows, *(self.data or ()), *([self.total] if self.total else [])):
            if len(row) != len(self.columns):
                raise ValueError(f"{self.name}: {len(self.columns)} columns, a row of {len(row)}")
        if self.total is not None:
            self._add_up(self.total)

    def _add_up(self, total: tuple[Any, ...]) -> None:
        for number, column in enumerate(self.columns):
            if not UNITS[column.unit].adds or total[number] is None:
                continue
            whole = sum(row[number] for row in self.rows if row[number] is not None)
            if abs(whole - total[number]) > 1e-9 * abs(whole):
                raise ValueError(
                    f"{self.name}: {column.key}: rows add up to {whole}, total says {total[number]}"
                )


class Drawing(NamedTuple):
    """`function` of an empty matplotlib figure and `arguments`: what another process can draw."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]

    def __call__(self, figure: Any) -> None:
        self.function(figure, *self.arguments)


@dataclass(frozen=True)
class Figure:
    """A drawing in an empty figure. `caption` says what there is to see."""

    name: str
    caption: str
    draw: Drawing
    size: tuple[float, float] = (8.0, 4.8)  # inches


class Node(NamedTuple):
    """A box of a diagram: its lines of text; `kind` is "module", "op", "state" or "end"."""

    key: str
    lines: tuple[str, ...]
    kind: str = "module"


@dataclass(frozen=True)
class Diagram:
    """Boxes and arrows, top to bottom: Mermaid in Markdown, drawn in the page."""

    name: str
    caption: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Formula:
    """Lines of arithmetic, as they are."""

    text: str


@dataclass(frozen=True)
class Widget:
    """A place in the page for something that needs a browser; other outputs show `text`."""

    name: str
    text: str


Block = Text | Table | Figure | Diagram | Formula | Widget


@dataclass(frozen=True)
class Section:
    """A titled part; numbers are given when it is rendered, so that none is missing."""

    title: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = field(default=())


class Placed(NamedTuple):
    """A section with its number, such as "6.2", and depth from 1."""

    number: str
    depth: int
    section: Section

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return "s" + self.number.replace(".", "-")


def placed(sections: Sequence[Section], above: str = "") -> Iterator[Placed]:
    """Every section in order of reading, numbered."""
    for count, section in enumerate(sections, 1):
        number = f"{above}{count}"
        yield Placed(number, number.count(".") + 1, section)
        yield from placed(section.sections, f"{number}.")


def blocks_of(sections: Sequence[Section]) -> Iterator[Block]:
    """Every block in order of reading."""
    for item in placed(sections):
        yield from item.section.blocks


def section_of(title: str, *parts: Block | Section | None) -> Section | None:
    """A section of what there is; None where nothing is, so that no empty title is shown.

    Text alone introduces something: a section with nothing but text before its missing parts is
    the caller's to keep or drop.
    """
    blocks = tuple(p for p in parts if p is not None and not isinstance(p, Section))
    below = tuple(p for p in parts if isinstance(p, Section))
    return Section(title, blocks, below) if blocks or below else None


def table_of(
    name: str,
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[tuple[Any, ...]],
    total: tuple[Any, ...] | None = None,
    data: Sequence[tuple[Any, ...]] | None = None,
) -> Table | None:
    """The table without columns in which no row has a value; None if it has no rows."""
    if not rows:
        return None
    keep = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    pick: Callable[[Sequence[Any]], tuple[Any, ...]] = lambda row: tuple(row[i] for i in keep)  # noqa: E731
    return Table(
        name, caption, pick(columns), [pick(row) for row in rows],
        None if total is None else pick(total),
        None if data is None else [pick(row) for row in data],
    )  # fmt: skip


def code(name: object) -> str:
    """A name that a person or a model gave, safe inside of `Text`."""
    return f"`{' '.join(str(name).replace('`', chr(39)).split())}`"
