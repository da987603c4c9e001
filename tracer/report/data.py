"""The data twins of the report: a CSV for every table, and all of them in `report.json`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from .blocks import Section, Table, blocks_of
from .report import Report
from .units import UNITS


def tables_of(sections: Sequence[Section]) -> list[Table]:
    """Every table in order of reading; names are unique.

    Raises:
        ValueError: two tables have one name.
    """
    tables = [block for block in blocks_of(sections) if isinstance(block, Table)]
    names = [table.name for table in tables]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"tables of one name: {', '.join(twice)}")
    return tables


def as_csv(table: Table) -> str:
    """A header of column keys, then raw values; an empty cell does not apply. Totals are left out,
    so that a column adds up to its total and not to twice that.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([column.key for column in table.columns])
    writer.writerows(_rows(table))
    return buffer.getvalue()


def full_document(report: Report) -> dict[str, Any]:
    """`report.json`: the document of `--json`, with every table of the report."""
    return dict(report.document) | {
        "tables": {
            table.name: {
                "caption": table.caption,
                "columns": [
                    {"key": c.key, "header": c.header, "unit": c.unit,
                     "meaning": UNITS[c.unit].meaning}
                    for c in table.columns
                ],
                "rows": [list(row) for row in _rows(table)],
                "total": None if table.total is None else list(table.total),
            }
            for table in tables_of(report.sections)
        }
    }  # fmt: skip


def _rows(table: Table) -> Sequence[tuple[Any, ...]]:
    return table.rows if table.data is None else table.data
