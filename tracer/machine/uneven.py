"""Kernels of routed rows where a router sends one rank more of them than the mean.

A trace holds the rank that gets as many rows as every other. On the rank that all others wait for
the same kernels have more rows, and products read weights of more experts, or of fewer: their
shapes change, and the family's formula gives the seconds. A decode step whose experts wait for
their weights loses little to uneven rows, a training step all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..cost import Kernel, Ledger
from ..cost.work import GROUPED_GEMM
from .measured import Array
from .model import Columns, Group, evaluate
from .roofline import Times
from .shapes import OTHER, expert_bytes


class Uneven(NamedTuple):
    """A rank beside the one that was traced, each 1 where they are alike.

    Attributes:
        rows: it has over the traced rank's.
        read: experts that it reads weights of over the traced rank's.
    """

    rows: float = 1.0
    read: float = 1.0


EVEN = Uneven()


class RowKernels:
    """Kernels of a ledger whose work grows with the rows of a rank.

    Args:
        times: of the ledger.
        kernels: those, in the order of the ledger.
    """

    def __init__(self, times: Times, kernels: Sequence[Kernel]) -> None:
        asked = {id(kernel) for kernel in kernels}
        numbers = [n for n, k in enumerate(times.kernels) if id(k.kernel) in asked]
        timed = [times.kernels[n] for n in numbers]
        self.compute = np.array([k.compute for k in timed])
        self.memory = np.array([k.memory for k in timed])
        self.launch = np.array([k.launch for k in timed])
        parts = np.array([_bytes(times.ledger, k.kernel) for k in timed]).reshape(-1, 3)
        self.rows, self.weights, self.still = (parts / parts.sum(axis=1, keepdims=True)).T
        self.plan, self.calibration = times.plan, times.calibration
        if self.plan is not None:
            place = {number: i for i, number in enumerate(numbers)}
            groups = (_only(group, place) for group in self.plan.groups)
            self.plan = replace(
                self.plan, groups=tuple(group for group in groups if group.kernels),
                launches=self.plan.launches[numbers], floor=self.plan.floor[numbers],
            )  # fmt: skip
        self._known: dict[Uneven, list[float]] = {}

    def factors(self, uneven: Uneven) -> list[float]:
        """Seconds of each kernel over those of even rows."""
        if uneven not in self._known:
            even = self._seconds(EVEN)
            found = np.divide(self._seconds(uneven), even, out=np.ones_like(even), where=even > 0)
            self._known[uneven] = found.tolist()
        return self._known[uneven]

    def _seconds(self, uneven: Uneven) -> Array:
        moved = uneven.rows * self.rows + uneven.read * self.weights + self.still
        roof = np.maximum(uneven.rows * self.compute, moved * self.memory)
        if self.plan is None or self.calibration is None:
            alone: Array = self.launch + roof
            return alone
        groups = tuple(
            replace(group, columns=_scaled(group, uneven, moved[list(group.kernels)]))
            for group in self.plan.groups
        )
        floor = roof / np.maximum(self.plan.launches, 1)
        plan = replace(self.plan, groups=groups, floor=floor)
        seconds: Array = evaluate(plan, self.calibration).seconds * self.plan.launches
        return seconds


def _bytes(ledger: Ledger, kernel: Kernel) -> tuple[float, float, float]:
    """Bytes of a kernel that grow with rows, that are weights of experts, that stay."""
    total = float(kernel.cost.total_bytes)
    if kernel.kind != GROUPED_GEMM:
        return max(total, 1.0), 0.0, 0.0
    main = max(kernel.parts, key=lambda part: part.cost.total_flops)
    weights, made = expert_bytes(ledger.trace.ops[main.op], total / max(kernel.launches, 1))
    weights, made = weights * kernel.launches, made * kernel.launches
    return max(total - weights - made, 0.0), weights, made


def _only(group: Group, place: Mapping[int, int]) -> Group:
    """What of a group is in `place`, which gives its new numbers."""
    kept = [i for i, number in enumerate(group.kernels) if number in place]
    return Group(
        group.family, group.precision, tuple(place[group.kernels[i]] for i in kept),
        {name: column[kept] for name, column in group.columns.items()},
    )  # fmt: skip


_ROWS = {  # columns that are proportional to rows; a product's rows are those that it sums over,
    # since only gradients of experts are products of another family
    "grouped": ("rows",), "gemm": ("k",), "gemm_fp8": ("k",), "gemm_fp8_block": ("k",),
    "elementwise": ("elements", "vector"), OTHER: ("flops",),
}  # fmt: skip


def _scaled(group: Group, uneven: Uneven, moved: Array) -> Columns:
    """The columns of a family with other rows; `moved`: bytes over those of even rows."""
    more = {name: group.columns[name] * uneven.rows for name in _ROWS[group.family]}
    more["moved"] = group.columns["moved"] * moved
    if group.family == "grouped":
        active = np.maximum(group.columns["active"] * uneven.read, 1.0)
        more["active"] = np.minimum(active, np.maximum(more["rows"], 1.0))
    return {**group.columns, **more}
