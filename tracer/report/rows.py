"""One row for every op: what CSV, JSON, Parquet and comparisons are made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..cost import ROLES, Kernel, Ledger, Part
from ..machine import Times

COLUMNS = (
    "kernel", "kind", "phase", "module", "op", "times", "shapes", "flops", "vector_flops",
    "recompute_flops", *(f"{role}_bytes" for role in ROLES), "bytes", "confidence",
)  # fmt: skip
TIME_COLUMNS = ("seconds", "bound")


def op_rows(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Rows with `COLUMNS`, in kernel order; costs include all layers that an op stands for."""
    for number, kernel in enumerate(ledger.kernels):
        for part in kernel.parts:
            yield _row(ledger, number, kernel, part)


def timed_rows(times: Times) -> Iterator[dict[str, Any]]:
    """Rows with `COLUMNS` and `TIME_COLUMNS`; a fused kernel's time is split by bytes."""
    for number, timed in enumerate(times.kernels):
        for position, part in enumerate(timed.kernel.parts):
            row = _row(times.ledger, number, timed.kernel, part)
            row["seconds"] = timed.seconds_of(position)
            row["bound"] = timed.bound
            yield row


def _row(ledger: Ledger, number: int, kernel: Kernel, part: Part) -> dict[str, Any]:
    op = ledger.trace.ops[part.op]
    cost = part.cost
    shapes = ", ".join("x".join(map(str, ref.shape)) or "()" for ref in op.inputs())
    return {
        "kernel": number,
        "kind": kernel.kind,
        "phase": kernel.phase,
        "module": part.module,
        "op": op.name,
        "times": op.times,
        # Lists of a thousand parameters (an optimizer step) do not belong in a cell.
        "shapes": shapes if len(shapes) <= 200 else f"{shapes[:197]}...",
        "flops": cost.total_flops,
        "vector_flops": cost.vector_flops,
        "recompute_flops": sum(cost.recompute_flops.values()),
        **{f"{role}_bytes": nbytes for role, nbytes in cost.bytes_by_role.items()},
        "bytes": cost.total_bytes,
        "confidence": part.confidence,
    }
