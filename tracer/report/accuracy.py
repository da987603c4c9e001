"""The accuracy table of the kernel model, as `python -m tracer.validate` last wrote it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ..machine.model import Group, families_of
from ..machine.shapes import MEASURED, OTHER
from ..machine.timing import KERNELS, Timing
from ..machine.uncertainty import FOREIGN_SPREAD
from .blocks import Column, Section, Text, section_of, table_of
from .records import AccuracyRow
from .text import listed

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


def accuracy_section(timing: Timing, groups: Sequence[Group] | None = None) -> Section | None:
    """The table, where seconds are the kernel model's; of the families of `groups`, if given."""
    if timing.model != KERNELS:
        return None
    rows = accuracy_rows()
    if groups is not None:
        used = {families_of(group)[0] for group in groups}
        rows = [row for row in rows if row.family in used]
    return section_of(
        "Accuracy of the kernel model",
        Text(
            "Errors of predicted over measured kernel times on rows that no constant was fitted "
            "to, written by `python -m tracer.validate`. **roofline** is what datasheet peaks say "
            "of the same rows, **one efficiency** the same with the one factor that fits them "
            "best. A whole step adds what a sum over one stream leaves out: overlap, gaps of the "
            "host, other work on the chip."
        ),
        table_of(
            "accuracy",
            "Mean absolute error (MAPE) and mean signed error (bias), in %.",
            (
                Column("family", "family", "code"),
                Column("chip", "chip", "code"),
                Column("constants", "constants"),
                Column("rows", "rows", "size"),
                Column("mape", "MAPE %", "%"),
                Column("bias", "bias %", "signed %"),
                Column("plain", "roofline %", "%"),
                Column("single", "one efficiency %", "%"),
            ),
            rows,
        ),
        _unmeasured(groups or ()),
    )


def _unmeasured(groups: Sequence[Group]) -> Text | None:
    """What takes the form of other kernels."""
    missing = [group for group in groups if not group.measured]
    if not missing:
        return None
    precisions = sorted({g.precision for g in missing} - set(MEASURED))
    kinds = [f"products in {name}" for name in precisions]
    if any(g.family == OTHER for g in missing):
        kinds.append("products without a shape of their own")
    if any(g.precision in MEASURED and g.family != OTHER for g in missing):
        kinds.insert(0, "convolutions")
    return Text(
        f"Not measured: {listed(kinds)}. They take the form and the constants of measured "
        f"products, and {FOREIGN_SPREAD:.0%} stands for what it misses."
    )
