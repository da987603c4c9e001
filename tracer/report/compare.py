"""Two ledgers side by side, op by op: what a change of model, config or commit did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from tabulate import tabulate

from ..capture.records import Op
from ..cost import Kernel, Ledger, Part
from .text import pattern, si

Key: TypeAlias = tuple[str, str, str]


class Difference(NamedTuple):
    """What one kind of op in one module pattern costs on both sides: (left, right) pairs."""

    phase: str
    module: str
    op: str
    times: tuple[int, int]
    flops: tuple[int, int]
    bytes: tuple[int, int]

    @property
    def same(self) -> bool:
        """Nothing changed."""
        return all(a == b for a, b in (self.times, self.flops, self.bytes))


def compare(left: Ledger, right: Ledger) -> list[Difference]:
    """Every (phase, module pattern, op) of either side, largest change of bytes first."""
    sides = [_grouped(left), _grouped(right)]
    keys = list(dict.fromkeys([*sides[0], *sides[1]]))
    rows = []
    for key in keys:
        a, b = (side.get(key, (0, 0, 0)) for side in sides)
        rows.append(Difference(*key, (a[0], b[0]), (a[1], b[1]), (a[2], b[2])))
    return sorted(rows, key=lambda row: -abs(row.bytes[1] - row.bytes[0]))


def key_of(kernel: Kernel, part: Part, op: Op) -> Key:
    """Pass, module with layer numbers as *, op without its overload."""
    return kernel.phase, pattern(part.module), op.overload_packet


def _grouped(ledger: Ledger) -> dict[Key, tuple[int, int, int]]:
    groups: dict[Key, tuple[int, int, int]] = {}
    for kernel in ledger.kernels:
        for part in kernel.parts:
            op = ledger.trace.ops[part.op]
            key = key_of(kernel, part, op)
            times, flops, nbytes = groups.get(key, (0, 0, 0))
            cost = part.cost
            groups[key] = (times + op.times, flops + cost.total_flops, nbytes + cost.total_bytes)
    return groups


def render(rows: Sequence[Difference], top: int = 20) -> str:
    """The changed rows as text; one line says so when nothing changed."""
    changed = [row for row in rows if not row.same]
    if not changed:
        return "no difference: the same ops with the same FLOPs and bytes"
    table = [
        (
            row.phase,
            row.module,
            row.op.removeprefix("aten."),
            *(f"{a:,} -> {b:,}" if a != b else f"{a:,}" for a, b in (row.times,)),
            *(f"{si(a)} -> {si(b)}" if a != b else si(a) for a, b in (row.flops, row.bytes)),
        )
        for row in changed[:top]
    ]
    if len(changed) > top:
        table.append((f"... {len(changed) - top} more", "", "", "", "", ""))
    return tabulate(
        table, ("pass", "module", "op", "times", "FLOPs", "bytes"), disable_numparse=True
    )
