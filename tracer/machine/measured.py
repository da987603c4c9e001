"""Measured kernels from CSV files: read strictly, sorted into the families of the time model.

The format of this project is one long table a file: columns `family`, `chip`, `latency_us`, the
columns of the family (`COLUMNS`), and optionally `backend`; cells that a family does not use stay
empty. Tables of ai-dynamo/aiconfigurator are understood by their file names (`adapters`). Where
several backends ran one shape, the fastest counts, unless the family's truth is one named backend.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer.hardware import ChipError, load_chip

from ..errors import UserError

Array = NDArray[np.float64]

# Columns that a row of each family must have, all numbers. Bytes are those of the result on every
# rank for collectives; `access` is one of contiguous, scalar, gather, reduce.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "gemm_fp8": ("m", "n", "k"),
    "gemm_fp8_block": ("m", "n", "k"),
    "attention_prefill": ("heads", "kv_heads", "batch", "keys", "size"),
    "mla_prefill": ("heads", "batch", "keys"),
    "attention_decode": ("heads", "kv_heads", "batch", "keys", "size"),
    "mla_decode": ("heads", "batch", "keys"),
    "grouped": ("tokens", "top_k", "experts", "hidden", "inner"),
    "elementwise": ("access", "bytes", "elements"),
    "collective": ("reduces", "ranks", "bytes"),
}


class MeasuredError(UserError):
    """A measured file that cannot be believed: names the file, the column and the row."""


@dataclass(frozen=True)
class Sample:
    """One measured shape: `where` is the file and line that errors point to."""

    family: str
    chip: str
    values: tuple[float, ...]
    seconds: float
    where: str


@dataclass(frozen=True)
class Rows:
    """Measured kernels of one family on one chip, as columns.

    `fitted` marks the half that `scripts/calibrate.py` may fit: a hash of the shape decides, so
    that the same shape falls on the same side on every chip and in every file. `second` is how
    much longer the next backend takes, as a ratio to the best; 1 where there is only one.
    """

    family: str
    chip: str
    columns: Mapping[str, Array]
    seconds: Array
    fitted: NDArray[np.bool_]
    file: str
    second: Array

    def __len__(self) -> int:
        return len(self.seconds)

    def subset(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows where `mask` holds."""
        columns = {name: column[mask] for name, column in self.columns.items()}
        return Rows(
            self.family, self.chip, columns, self.seconds[mask], self.fitted[mask], self.file,
            self.second[mask],
        )  # fmt: skip


def in_fit_half(values: Iterable[float]) -> bool:
    """Whether a shape belongs to the half that may be fitted."""
    text = "/".join(f"{value:g}" for value in values)
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 0


def read_folder(folder: Path) -> list[Rows]:
    """Every dataset of a folder, by family and chip; files of other kinds are left alone.

    Raises:
        MeasuredError: no such folder, or a file with a fault; says file, column and row.
    """
    if not folder.is_dir():
        raise MeasuredError(f"{folder}: no such folder")
    found: list[Rows] = []
    for path in sorted(folder.glob("*.csv")):
        found += _by_family(read_file(path), path.name)
    return found


def read_file(path: Path) -> list[Sample]:
    """The samples of one file; none if it is not a table of kernels.

    Raises:
        MeasuredError: as `read_folder`.
    """
    from .adapters import adapter_of

    adapter = adapter_of(path.name)
    with open_table(path) as table:
        if adapter is None:
            if not {"family", "chip"} <= set(table.header):
                return []
            adapter = _own
        return list(adapter(table))


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[Table]:
    """The rows of a CSV file.

    Raises:
        MeasuredError: a file that is not there, or not CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            yield Table(path, list(reader.fieldnames or []), reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MeasuredError(f"{path}: cannot be read as a CSV file: {error}") from None


class Table:
    """The rows of a file with checked access to their cells."""

    def __init__(self, path: Path, header: list[str], rows: Iterable[dict[str, Any]]) -> None:
        self.path = path
        self.header = header
        self._rows = rows

    def need(self, *columns: str) -> None:
        """Refuse a file without one of `columns`."""
        for column in columns:
            if column not in self.header:
                raise MeasuredError(
                    f"{self.path}: column {column!r} is missing; it has {', '.join(self.header)}"
                )

    def __iter__(self) -> Iterator[Row]:
        for number, cells in enumerate(self._rows, start=2):
            yield Row(self, number, cells)


class Row:
    """One line of a file; `number` counts the header as line 1."""

    def __init__(self, table: Table, number: int, cells: Mapping[str, Any]) -> None:
        self.table = table
        self.number = number
        self.cells = cells

    @property
    def where(self) -> str:
        """File and line, for errors."""
        return f"{self.table.path}: row {self.number}"

    def text(self, column: str) -> str:
        """A cell as text, empty if the line is short."""
        return (self.cells.get(column) or "").strip()

    def number_of(self, column: str) -> float:
        """A cell that must be a finite number."""
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise MeasuredError(f"{self.where}: column {column!r}: a number, not {text!r}")
        return value

    def size(self, column: str) -> float:
        """A cell that counts something: at least 1."""
        value = self.number_of(column)
        if value < 1:
            raise MeasuredError(f"{self.where}: column {column!r}: at least 1, not {value:g}")
        return value

    def microseconds(self, column: str) -> float:
        """A time in µs, as seconds; zero and negative ones are refused."""
        value = self.number_of(column)
        if value <= 0:
            raise MeasuredError(
                f"{self.where}: column {column!r}: a time above zero, not {value:g}"
            )
        return value * 1e-6


Adapter = Callable[[Table], Iterable[Sample]]


def chip_id(name: str, where: str) -> str:
    """The id of a chip that a file names."""
    try:
        return str(load_chip(name).id)
    except ChipError as error:
        raise MeasuredError(f"{where}: {error}") from None


def _own(table: Table) -> Iterator[Sample]:
    table.need("family", "chip", "latency_us")
    from .kernels import CLASSES

    for row in table:
        family = row.text("family")
        if family not in COLUMNS:
            raise MeasuredError(
                f"{row.where}: column 'family': {family!r}; known: {', '.join(COLUMNS)}"
            )
        table.need(*COLUMNS[family])
        values = []
        for column in COLUMNS[family]:
            if column == "access":
                if row.text(column) not in CLASSES:
                    raise MeasuredError(
                        f"{row.where}: column 'access': {row.text(column)!r}; "
                        f"known: {', '.join(CLASSES)}"
                    )
                values.append(float(CLASSES.index(row.text(column))))
            elif column == "reduces":
                values.append(row.number_of(column))
            else:
                values.append(row.size(column))
        yield Sample(
            family, chip_id(row.text("chip"), row.where), tuple(values),
            row.microseconds("latency_us"), row.where,
        )  # fmt: skip


def _by_family(samples: Iterable[Sample], file: str) -> list[Rows]:
    groups: dict[tuple[str, str], dict[tuple[float, ...], list[float]]] = {}
    for sample in samples:
        group = groups.setdefault((sample.family, sample.chip), {})
        group.setdefault(sample.values, []).append(sample.seconds)
    found = []
    for (family, chip), times in groups.items():
        table = np.array(list(times), dtype=np.float64)
        columns = {name: table[:, i] for i, name in enumerate(COLUMNS[family])}
        ordered = [sorted(values) for values in times.values()]
        best = np.array([values[0] for values in ordered])
        next_best = np.array([values[min(1, len(values) - 1)] for values in ordered])
        fitted = np.array([in_fit_half(values) for values in times])
        found.append(Rows(family, chip, columns, best, fitted, file, next_best / best))
    return found
