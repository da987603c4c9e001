"""`with tracer.trace(model) as t:` - the stages behind one object."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from tabulate import tabulate
from torch import Tensor, nn

from tracer.hardware import Chip, load_chip

from .capture import Capture, Trace
from .cost import EFFICIENT, Conventions, Cost, Ledger, price
from .errors import UserError
from .machine import Times, Timing, time_ledger
from .report.text import si

TABLE_KEYS = ("module", "op", "phase")


def trace(model: nn.Module | None = None, *, attention: str = "fused") -> Session:
    """Record every op that runs in the `with` block.

    Args:
        model: any module, on meta, fake, CPU or CUDA tensors; it names the ops. It is not changed.
        attention: "fused" sends SDPA on meta and fake tensors to the fused op a GPU would run,
            "naive" keeps its decomposition.

    Raises:
        UserError: for a compiled module, or another value of `attention`.
    """
    return Session(Capture(model, attention=attention))


class Session:
    """What was recorded, and its costs; usable after the `with` block, also when that raised."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._open = False
        self._ledgers: dict[tuple[Conventions, str], Ledger] = {}

    def __enter__(self) -> Self:
        self._capture.__enter__()
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        self._capture.__exit__(kind, error, traceback)

    def mark(self, role: str, tensors: Iterable[Tensor]) -> None:
        """Tell what `tensors` are ("kv", "optimizer", "gradients"); inside the `with` block."""
        self._capture.mark(role, tensors)

    @property
    def trace(self) -> Trace:
        """The records.

        Raises:
            UserError: while the `with` block still runs.
        """
        if self._open:
            raise UserError("the trace is complete after the 'with' block: read it there")
        return self._capture.trace

    def ledger(self, conventions: Conventions | None = None, execution: str = EFFICIENT) -> Ledger:
        """Costs under `conventions`; computed once for each choice."""
        key = (conventions or Conventions(), execution)
        if key not in self._ledgers:
            self._ledgers[key] = price(self.trace, key[0], execution=execution)
        return self._ledgers[key]

    @property
    def cost(self) -> Cost:
        """Everything, fused by dataflow, under the default conventions."""
        return self.ledger().total()

    @property
    def flops(self) -> int:
        """Matrix and convolution FLOPs of all phases."""
        return self.cost.total_flops

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes moved, by role."""
        return self.cost.bytes_by_role

    def on(self, chip: str | Chip, timing: Timing | None = None) -> Times:
        """Seconds on `chip`, a name of `tracer --list-chips`, a TOML file or a `Chip`."""
        target = chip if isinstance(chip, Chip) else load_chip(chip)
        return time_ledger(self.ledger(), target, timing)

    def table(self, by: str = "module", *, depth: int | None = None, top: int = 20) -> str:
        """Costs by "module", "op" or "phase" as text, largest first.

        `depth` cuts module paths after so many names.

        Raises:
            UserError: another `by`.
        """
        if by not in TABLE_KEYS:
            raise UserError(f"table(by={by!r}): choose one of {', '.join(TABLE_KEYS)}")
        ledger = self.ledger()
        ops = ledger.trace.ops
        if by == "op":
            groups = ledger.by(lambda kernel, part: ops[part.op].overload_packet)
        elif by == "phase":
            groups = ledger.by(lambda kernel, part: kernel.phase)
        else:
            groups = ledger.by(lambda kernel, part: _cut(part.module, depth))
        rows = [
            (name, si(c.total_flops), si(c.vector_flops), si(c.total_bytes), f"{intensity(c):,.1f}")
            for name, c in list(groups.items())[:top]
        ]
        rest = len(groups) - len(rows)
        if rest > 0:
            rows.append((f"... {rest} more", "", "", "", ""))
        headers = (by, "FLOPs", "vector FLOPs", "bytes", "FLOP/B")
        return tabulate(rows, headers, colalign=("left", *["right"] * 4))

    def __str__(self) -> str:
        cost = self.cost
        head = (
            f"{self.trace!r}: {si(cost.total_flops)}FLOP, {si(cost.vector_flops)}FLOP vector, "
            f"{si(cost.total_bytes)}B moved"
        )
        missing = self.ledger().unmodelled()
        tail = f"\nwithout a formula, priced by their bytes: {missing}" if missing else ""
        return f"{head}\n{self.table(top=12)}{tail}"

    def __repr__(self) -> str:
        return f"<Session {'recording' if self._open else repr(self._capture.trace)}>"


def intensity(cost: Cost) -> float:
    """Matrix FLOPs a byte."""
    return cost.total_flops / cost.total_bytes if cost.total_bytes else 0.0


def _cut(path: str, depth: int | None) -> str:
    parts = path.split(".") if path else ["(top)"]
    return ".".join(parts[:depth])
