"""`with tracer.trace(model) as t:` - the stages behind one object."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tabulate import tabulate

from tracer.hardware import Chip, load_chip

from .algebra import sample
from .capture.records import Trace
from .capture.store import load as load_trace
from .capture.store import save as save_trace
from .cost import EFFICIENT, Conventions, Cost, Ledger, price
from .cost.timeline import Timeline, timeline
from .errors import UserError
from .machine import Times, Timing, time_ledger
from .report import compare as comparing
from .report import exports
from .report.chakra import chakra_trace
from .report.chrome import chrome_trace
from .report.rows import op_rows, timed_rows
from .report.terms import render_terms
from .report.text import pattern, si, size
from .report.tree import render_tree

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .capture import Capture
    from .capture.symbolic import Sizes

TABLE_KEYS = ("module", "op", "phase")
SORT_KEYS = ("bytes", "flops", "vector_flops", "order")
FORMATS = (".csv", ".json", ".parquet")


def trace(
    model: nn.Module | None = None,
    *,
    attention: str = "fused",
    symbols: Mapping[str, int] | None = None,
) -> Session:
    """Record every op that runs in the `with` block.

    Args:
        model: any module, on meta, fake, CPU or CUDA tensors; it names the ops. It is not changed.
        attention: "fused" sends SDPA on meta and fake tensors to the fused op a GPU would run,
            "naive" keeps its decomposition.
        symbols: names of sizes, each with the value at which branches are decided (2 or more). In
            the block, `session.sizes` holds them to build inputs of; nothing is computed, and all
            costs are expressions in these names:

                with tracer.trace(model, symbols={"B": 8, "S": 128}) as t:
                    model(torch.empty(t.sizes["B"], t.sizes["S"], 64, device="meta"))
                print(t.flops)  # 2·B·S·64·256 + ...

    Raises:
        UserError: for a compiled module, another value of `attention`, or a symbol below 2.
        NotSymbolic: at the end of the block, if the model fixes a symbol at one value.
    """
    from .capture import Capture
    from .capture.symbolic import Sizes

    sizes = None if symbols is None else Sizes(symbols)
    return Session(Capture(model, attention=attention, sizes=sizes), sizes=sizes, model=model)


def load(path: str | Path) -> Session:
    """A session over a trace that `Session.save` wrote; needs no torch.

    Raises:
        UserError: no such file, not a trace, or damaged.
    """
    return Session(trace=load_trace(path))


class Session:
    """What was recorded, and its costs; usable after the `with` block, also when that raised."""

    def __init__(
        self,
        capture: Capture | None = None,
        *,
        trace: Trace | None = None,
        sizes: Sizes | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self._capture = capture
        self._symbols = sizes
        self._fakes = None if sizes is None else sizes.run(model)
        self._trace = trace
        self._recording = False
        self._ledgers: dict[tuple[Conventions, str], Ledger] = {}

    def __enter__(self) -> Self:
        if self._capture is None or self._recording or self._trace is not None:
            raise UserError("a session records once: make a new tracer.trace(model)")
        if self._fakes is not None:
            self._fakes.__enter__()
        self._capture.__enter__()
        self._recording = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._capture is not None
        self._recording = False
        self._capture.__exit__(kind, error, traceback)
        if self._fakes is not None:
            self._fakes.__exit__(kind, error, traceback)
        self._trace = self._capture.trace

    def mark(self, role: str, tensors: Iterable[Tensor]) -> None:
        """Tell what `tensors` are ("kv", "optimizer", "gradients"); inside the `with` block.

        Raises:
            UserError: outside of the block.
        """
        if self._capture is None or not self._recording:
            raise UserError("mark() belongs inside the 'with' block")
        self._capture.mark(role, tensors)

    @property
    def sizes(self) -> Mapping[str, Any]:
        """The symbols of `trace(symbols=...)`, as sizes to build tensors of.

        Raises:
            UserError: the session has no symbols.
        """
        if self._symbols is None:
            raise UserError("this session has no symbols: tracer.trace(model, symbols={'B': 8})")
        return self._symbols.values

    # -- what was recorded -------------------------------------------------------------------------

    @property
    def trace(self) -> Trace:
        """The records.

        Raises:
            UserError: before the `with` block has ended.
        """
        if self._trace is None:
            raise UserError("the trace is complete after the 'with' block: read it there")
        return self._trace

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
    def conditions(self) -> list[str]:
        """For which sizes the expressions hold, a text a condition; empty without symbols."""
        return [] if self.trace.scope is None else self.trace.scope.conditions()

    def terms(self, *, top: int = 20) -> str:
        """The formulas by module and op, largest FLOPs first: how often, and what each is."""
        return render_terms(self.ledger(), top)

    @property
    def flops(self) -> int:
        """Matrix and convolution FLOPs of all phases."""
        return self.cost.total_flops

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes moved, by role."""
        return self.cost.bytes_by_role

    @property
    def parameters(self) -> int:
        """Elements of the model's parameters, a shared one once."""
        return sum(p.numel for p in self.trace.parameters if not p.buffer)

    def on(self, chip: str | Chip, timing: Timing | None = None) -> Times:
        """Seconds on `chip`, a name of `tracer --list-chips`, a TOML file or a `Chip`.

        Raises:
            UserError: no such chip, or a trace of symbols, which has no seconds before its sizes
                have values.
        """
        if self.trace.scope is not None:
            raise UserError(
                "this trace has symbols and its seconds depend on them: trace at numbers, or "
                "evaluate tracer.machine.symbolic.StepModel at many"
            )
        target = chip if isinstance(chip, Chip) else load_chip(chip)
        return time_ledger(self.ledger(), target, timing)

    def memory_timeline(self) -> Timeline:
        """Bytes alive by role after every op, as eager execution holds them."""
        return timeline(self.trace)

    # -- reading it --------------------------------------------------------------------------------

    def table(
        self, by: str = "module", *, depth: int | None = None, sort: str = "bytes", top: int = 20
    ) -> str:
        """Costs by "module", "op" or "phase" as text.

        Args:
            by: what a row is.
            depth: cut module paths after so many names.
            sort: "bytes", "flops", "vector_flops" (largest first) or "order" (as they ran).
            top: rows shown; the rest is summed in one more.

        Raises:
            UserError: another `by` or `sort`, `top` or `depth` below 1.
        """
        headers, rows = self._rows(by, depth, sort, top)
        return tabulate(
            rows, headers, colalign=("left", *["right"] * (len(headers) - 1)), disable_numparse=True
        )

    def _rows(
        self, by: str, depth: int | None, sort: str, top: int
    ) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        for name, value, known in (("by", by, TABLE_KEYS), ("sort", sort, SORT_KEYS)):
            if value not in known:
                raise UserError(f"table({name}={value!r}): choose one of {', '.join(known)}")
        if top < 1 or (depth is not None and depth < 1):
            raise UserError(f"table(top={top}, depth={depth}): give at least 1")
        ledger = self.ledger()
        ops = ledger.trace.ops
        if by == "op":
            groups = ledger.by(lambda kernel, part: ops[part.op].overload_packet)
        elif by == "phase":
            groups = ledger.by(lambda kernel, part: kernel.phase)
        else:
            groups = ledger.by(lambda kernel, part: _cut(part.module, depth))
        if sort == "order":
            ordered = list(groups)
        else:
            column = {"bytes": "total_bytes", "flops": "total_flops"}.get(sort, sort)
            ordered = sorted(groups, key=lambda name: -sample(getattr(groups[name], column)))
        whole = self.cost.total_bytes or 1
        rows = [_cost_row(name, groups[name], whole) for name in ordered[:top]]
        if len(ordered) > top:
            rest = Cost.sum(groups[name] for name in ordered[top:])
            rows.append(_cost_row(f"{len(ordered) - top} others", rest, whole))
        rows.append(_cost_row("total", self.cost, whole))
        return (by, "FLOPs", "vector FLOPs", "bytes", "of bytes", "FLOP/B"), rows

    def tree(self, depth: int | None = None) -> str:
        """The module tree, each line with parameters, FLOPs by pass and bytes."""
        return render_tree(self.ledger(), depth)

    def compare(self, other: Session, *, top: int = 20) -> str:
        """What changed from this session to `other`, op by op, largest change of bytes first."""
        return comparing.render(comparing.compare(self.ledger(), other.ledger()), top)

    def roofline_plot(self, chip: str | Chip, path: str | Path) -> Path:
        """Draw the kernels under the roof of `chip` into `path` (PNG, SVG or PDF)."""
        from .report.figures import kernel_roofline

        return exports.write_whole(Path(path), lambda part: kernel_roofline(self.on(chip), part))

    def _head(self) -> str:
        cost = self.cost
        return (
            f"{self.trace!r}: {si(self.parameters)}parameters, {si(cost.total_flops)}FLOP, "
            f"{si(cost.vector_flops)}FLOP vector, {si(cost.total_bytes)}B moved, "
            f"{size(self.memory_timeline().peak)} at peak"
        )

    def __str__(self) -> str:
        missing = self.ledger().unmodelled()
        tail = f"\nwithout a formula, priced by their bytes: {missing}" if missing else ""
        scope = self.trace.scope
        if scope is not None:
            at = ", ".join(f"{name}={value}" for name, value in scope.samples.items())
            tail += f"\n\nformulas (numbers above at {at}):\n{self.terms(top=12)}"
            tail += f"\nhold for {', '.join(self.conditions)}"
        return f"{self._head()}\n{self.table(top=12)}{tail}"

    def __repr__(self) -> str:
        return f"<Session {repr(self._trace) if self._trace is not None else 'not recorded yet'}>"

    def _repr_html_(self) -> str:
        if self._trace is None:
            return html.escape(repr(self))
        headers, rows = self._rows("module", None, "bytes", 12)
        table = tabulate(rows, headers, tablefmt="html", disable_numparse=True)
        return f"<p>{html.escape(self._head())}</p>{table}"

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the trace to a file that `tracer.load` reads (gzipped JSON)."""
        return save_trace(self.trace, path)

    def export(self, path: str | Path, chip: str | Chip | None = None) -> Path:
        """A row for every op as CSV, JSON or Parquet, by the ending; with seconds given a chip.

        Raises:
            UserError: another ending, or Parquet without pyarrow.
        """
        rows = op_rows(self.ledger()) if chip is None else timed_rows(self.on(chip))
        ending = Path(path).suffix
        if ending == ".csv":
            return exports.to_csv(rows, path)
        if ending == ".json":
            return exports.to_json(list(rows), path)
        if ending == ".parquet":
            return exports.to_parquet(rows, path)
        raise UserError(f"export({str(path)!r}): end the name in one of {', '.join(FORMATS)}")

    def export_chrome_trace(self, path: str | Path, chip: str | Chip) -> Path:
        """The predicted timeline on `chip` for Perfetto or chrome://tracing."""
        return exports.to_json(chrome_trace(self.on(chip)), path)

    def export_chakra(self, path: str | Path) -> Path:
        """The ops as a Chakra host execution trace (JSON)."""
        return exports.to_json(chakra_trace(self.trace), path)


def _cost_row(name: str, cost: Cost, whole: int) -> tuple[Any, ...]:
    return (
        name,
        si(cost.total_flops),
        si(cost.vector_flops),
        f"{si(cost.total_bytes)}B",
        f"{sample(cost.total_bytes / whole):.1%}",
        f"{sample(cost.intensity):,.1f}",
    )


def _cut(path: str, depth: int | None) -> str:
    return ".".join(path.split(".")[:depth]) if path else pattern(path)
