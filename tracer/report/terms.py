"""The formulas of a trace as a person reads them: one line an op of a module, layers merged."""

from __future__ import annotations

from typing import Any, NamedTuple

from tabulate import tabulate

from ..algebra import sample
from ..algebra.text import factored
from ..cost import Kernel, Ledger, Part
from .text import pattern, si


class Term(NamedTuple):
    """`times` runs of `op` in `module`, `flops` and `nbytes` each: numbers or expressions."""

    module: str
    op: str
    phase: str
    times: int
    flops: Any
    nbytes: Any
    sizes: tuple[int, ...]  # plain sizes of its operands, to write coefficients as products of

    def text(self) -> str:
        """The FLOPs of one run as a product: 2·B·S·7168·1536."""
        return factored(self.flops, self.sizes)


def terms(ledger: Ledger) -> list[Term]:
    """All ops with matrix work or bytes, those with the same formula in like layers as one."""
    found: dict[Any, tuple[int, tuple[int, ...]]] = {}
    for kernel in ledger.kernels:
        for part in kernel.parts:
            key = _key(ledger, kernel, part)
            times, sizes = found.get(key, (0, ()))
            found[key] = (times + ledger.trace.ops[part.op].times, sizes or _sizes(ledger, part))
    return [
        Term(module, op, phase, times, flops, nbytes, sizes)
        for (module, op, phase, flops, nbytes), (times, sizes) in found.items()
    ]


def render_terms(ledger: Ledger, top: int) -> str:
    """A table of the terms with most FLOPs at the traced sizes; the rest is one line."""
    ordered = sorted(terms(ledger), key=lambda t: -sample(t.flops * t.times))
    shown = [t for t in ordered[:top] if t.flops]
    whole = sample(ledger.total().total_flops) or 1
    rows = [
        (
            f"{t.times} x", t.text(), t.module, t.op,
            f"{sample(t.flops * t.times) / whole:.1%}",
        )
        for t in shown
    ]  # fmt: skip
    left = sum(t.flops * t.times for t in ordered[len(shown) :])
    if left:
        rows.append(("", factored(left), "others", "", f"{sample(left) / whole:.1%}"))
    total = ledger.total().total_flops
    rows.append(("", factored(total), "total", "", f"{si(sample(total))}FLOP"))
    headers = ("", "FLOPs of one", "module", "op", "share")
    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True)


def _key(ledger: Ledger, kernel: Kernel, part: Part) -> tuple[Any, ...]:
    op = ledger.trace.ops[part.op]
    flops, nbytes = part.cost.total_flops, part.cost.total_bytes
    if op.times > 1:  # a part holds all layers that its op stands for
        flops, nbytes = flops // op.times, nbytes // op.times
    name = op.overload_packet.removeprefix("aten.")
    return (pattern(part.module), name, kernel.phase, flops, nbytes)


def _sizes(ledger: Ledger, part: Part) -> tuple[int, ...]:
    refs = (*ledger.trace.ops[part.op].inputs(), *ledger.trace.ops[part.op].outputs)
    return tuple({n for ref in refs for n in ref.shape if isinstance(n, int)})
