"""The accuracy table of the kernel model, as `python -m tracer.validate` last wrote it."""

from __future__ import annotations

import csv
from pathlib import Path

from .records import AccuracyRow

FILE = Path(__file__).parent / "accuracy.csv"


def accuracy_rows(path: Path = FILE) -> list[AccuracyRow]:
    """One row a kernel family and chip; empty if the file is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            AccuracyRow(
                row["family"], row["chip"], row["constants"], int(row["rows"]),
                *(float(row[name]) for name in ("mape", "bias", "plain", "single")),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


def accuracy_csv(rows: list[AccuracyRow]) -> str:
    """The same as text: a header, one decimal."""
    lines = [",".join(AccuracyRow._fields)]
    for row in rows:
        numbers = (f"{value:.1f}" for value in row[4:])
        lines.append(",".join((row.family, row.chip, f'"{row.constants}"', str(row.rows),
                               *numbers)))  # fmt: skip
    return "\n".join(lines) + "\n"
