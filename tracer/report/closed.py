"""A symbolic ledger as the report has it: arithmetic for the page, formulas for readers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..algebra import sample
from ..algebra.text import factored
from ..cost import Ledger
from .arithmetic import condition, written
from .records import ClosedForm, ClosedRange, Sublayer
from .terms import terms
from .text import pattern, plural

_FORMULAS = 40  # lines of one phase, beyond which the rest is one


def closed_forms(ledger: Ledger, phase: str) -> tuple[ClosedForm, ...]:
    """Ops with the same cost in like layers as one row; a ledger's sums are those of its rows."""
    found: dict[Any, int] = {}
    for kernel in ledger.kernels:
        for part in kernel.parts:
            op = ledger.trace.ops[part.op]
            name = op.overload_packet.removeprefix("aten.")
            roles = tuple(
                (role, written(nbytes / op.times))
                for role, nbytes in part.cost.bytes_by_role.items()
                if not (isinstance(nbytes, int) and nbytes == 0)
            )
            work = [(p, written(flops / op.times)) for p, flops in part.cost.flops.items()]
            if not work and not roles:
                continue  # fused away
            for number, (precision, flops) in enumerate(work or [("", "0")]):
                key = (pattern(part.module), name, precision, flops, roles if number == 0 else ())
                found[key] = found.get(key, 0) + op.times
    return tuple(
        ClosedForm(phase, ledger.execution, module, op, times, precision, flops, dict(roles))
        for (module, op, precision, flops, roles), times in found.items()
    )


def closed_range(ledger: Ledger, phase: str, forms: Sequence[ClosedForm]) -> ClosedRange:
    """Where `forms` hold: each condition in words, and as what must be above 0.

    A size that stands in none of them has no bound: an image has no length.
    """
    scope = ledger.trace.scope
    assert scope is not None
    texts = [text for form in forms for text in (form.flops, *form.bytes.values())]
    used = set(re.findall(r"[A-Za-z_]\w*", " ".join(texts)))
    limits = [
        (f"{symbol.name} >= {symbol.low}", f"{symbol.name} - {symbol.low - 1}")
        for symbol in scope.symbols.values()
        if symbol.name in used
    ]
    guards = [(str(guard), condition(guard)) for guard in scope.guards]
    return ClosedRange(phase, ledger.execution, tuple(limits + guards))


def sublayers(ledger: Ledger, phase: str) -> Iterator[Sublayer]:
    """A line an op with matrix FLOPs, largest first; the others' bytes are one line."""
    ordered = sorted(terms(ledger), key=lambda t: -sample(t.flops * t.times))
    shown = [t for t in ordered[:_FORMULAS] if not (isinstance(t.flops, int) and t.flops == 0)]
    for t in shown:
        yield Sublayer(phase, t.module, t.op, t.times, t.text(), factored(t.nbytes, t.sizes))
    rest = ordered[len(shown) :]
    if rest:
        flops = sum(t.flops * t.times for t in rest)
        nbytes = sum(t.nbytes * t.times for t in rest)
        yield Sublayer(phase, f"{plural(len(rest), 'other line')}, summed", "", 1, factored(flops),
                       factored(nbytes))  # fmt: skip
