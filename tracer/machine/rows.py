"""Kernels of a ledger that cost the same, as one counted row: what sweeps evaluate.

61 layers of one model are a few dozen different kernels. Costs and shapes are those of one launch,
numbers or expressions; both time models read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..algebra import Expr, Value
from ..cost import Kernel, Ledger
from .shapes import Shape, shape_of


class Row(NamedTuple):
    """`times` launches, each of this cost and shape.

    `flops` are by precision with repeated ones in, `published` without; `moved` is by role.
    """

    times: int
    flops: tuple[tuple[str, Value], ...]
    published: tuple[tuple[str, Value], ...]
    vector: Value
    moved: tuple[tuple[str, Value], ...]
    family: str
    precision: str
    shape: tuple[tuple[str, Value], ...]


def rows_of(ledger: Ledger) -> tuple[Row, ...]:
    """The different kernels of `ledger`, in the order in which they first run.

    In a symbolic trace this asks for the family of every kernel, which may add guards to its scope.
    """
    counts: dict[Row, int] = {}
    for kernel in ledger.kernels:
        row = _row(kernel, shape_of(ledger, kernel))
        counts[row] = counts.get(row, 0) + max(kernel.launches, 1)
    return tuple(row._replace(times=count) for row, count in counts.items())


def _row(kernel: Kernel, shape: Shape) -> Row:
    cost, launches = kernel.cost, max(kernel.launches, 1)

    def one(table: Mapping[str, Any]) -> tuple[tuple[str, Value], ...]:
        return tuple((k, table[k] / launches) for k in sorted(table) if is_something(table[k]))

    work = dict(cost.flops)
    for precision, flops in cost.recompute_flops.items():
        work[precision] = work.get(precision, 0) + flops
    roles = {role: moved for role, moved in cost.bytes_by_role.items() if is_something(moved)}
    values = tuple(sorted(shape.values.items()))
    return Row(
        0, one(work), one(cost.flops), cost.vector_flops / launches, one(roles), shape.family,
        shape.precision, values,
    )  # fmt: skip


def is_something(value: Any) -> bool:
    """Whether it is not the number 0: an expression is kept whatever its value."""
    return isinstance(value, Expr) or value != 0
