"""Nsight Systems, exported as SQLite."""

from __future__ import annotations

import ast
import re
import sqlite3
from pathlib import Path

from .linking import linked
from .records import Argument, MeasuredKernel, MeasuredOp, Profile, ProfileError, tensor

_NVTX = re.compile(r"^(?P<name>[\w:.]+), (?:seq|op_id) = ")
_SIZES = re.compile(r"sizes = (\[.*?\])(?:, input_op_ids|$)")


def read_nsight(path: Path) -> Profile:
    """The profile in an SQLite export of Nsight Systems; see `read_profile`."""
    connection = None
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        return _from_tables(path, connection)
    except sqlite3.Error as error:
        raise ProfileError(f"{path}: not a readable Nsight Systems export: {error}") from None
    finally:
        if connection is not None:
            connection.close()


def _from_tables(path: Path, connection: sqlite3.Connection) -> Profile:
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    tables = [str(name) for (name,) in connection.execute(query)]
    if "CUPTI_ACTIVITY_KIND_KERNEL" not in tables:
        raise ProfileError(
            f"{path}: no table CUPTI_ACTIVITY_KIND_KERNEL, only {', '.join(tables) or 'none'}: "
            "export with `nsys export --type sqlite` a run that traced CUDA"
        )
    texts: dict[int, str] = {}
    if "StringIds" in tables:
        texts = dict(connection.execute("SELECT id, value FROM StringIds"))
    columns = {
        row[1] for row in connection.execute("PRAGMA table_info(CUPTI_ACTIVITY_KIND_KERNEL)")
    }
    name = "demangledName" if "demangledName" in columns else "shortName"
    kernels = [
        MeasuredKernel(texts.get(label, str(label)), start * 1e-9, end * 1e-9, correlation)
        for start, end, correlation, label in connection.execute(
            f"SELECT start, end, correlationId, {name} FROM CUPTI_ACTIVITY_KIND_KERNEL"
        )
    ]
    if not kernels:
        raise ProfileError(f"{path}: no GPU kernels: CUPTI_ACTIVITY_KIND_KERNEL is empty")
    launches: dict[int, tuple[object, float, int | None]] = {}
    if "CUPTI_ACTIVITY_KIND_RUNTIME" in tables:
        rows = connection.execute(
            "SELECT correlationId, globalTid, start FROM CUPTI_ACTIVITY_KIND_RUNTIME"
        )
        launches = {number: (thread, start * 1e-9, None) for number, thread, start in rows}
    ops: list[MeasuredOp] = []
    notes: tuple[str, ...] = ()
    if "NVTX_EVENTS" in tables:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(NVTX_EVENTS)")}
        label = "textId" if "textId" in columns else "NULL"
        rows = connection.execute(
            f"SELECT start, end, text, {label}, globalTid FROM NVTX_EVENTS WHERE end IS NOT NULL"
        )
        for start, end, text, number, thread in rows:
            full = text or texts.get(number, "")
            match = _NVTX.match(full)
            if match:
                sizes = _nvtx_sizes(full)
                ops.append(MeasuredOp(match["name"], thread, start * 1e-9, end * 1e-9, sizes))
    if any(op.arguments is not None for op in ops):
        notes = ("NVTX ranges hold no dtypes: bfloat16 is assumed",)
    return linked(str(path), ops, kernels, launches, notes)


def _nvtx_sizes(text: str) -> tuple[Argument, ...] | None:
    """`sizes = [[2, 3], [3, 4]]` of `emit_nvtx(record_shapes=True)`."""
    match = _SIZES.search(text)
    if match is None:
        return None
    try:
        sizes = ast.literal_eval(match[1])
    except (ValueError, SyntaxError):
        return None
    return tuple(
        Argument((tensor(size, None, "bfloat16"),)) if size else Argument() for size in sizes
    )
