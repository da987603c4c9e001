"""Costs and times as files for other tools."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import write_whole

__all__ = ["to_csv", "to_json", "to_parquet", "write_whole"]


def to_csv(rows: Iterable[dict[str, Any]], path: str | Path) -> Path:
    """Comma-separated, a header line, full precision."""
    rows = list(rows)
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return write_whole(Path(path), buffer.getvalue())


def to_json(document: Any, path: str | Path) -> Path:
    """One JSON document."""
    return write_whole(Path(path), json.dumps(document, indent=1) + "\n")


def to_parquet(rows: Iterable[dict[str, Any]], path: str | Path) -> Path:
    """Parquet, a column for every key.

    Raises:
        UserError: pyarrow is not installed (`pip install 'tracer[parquet]'`).
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install 'tracer[parquet]'") from None
    table = pyarrow.Table.from_pylist(list(rows))
    return write_whole(Path(path), lambda part: parquet.write_table(table, part))
