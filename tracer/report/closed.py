"""A symbolic ledger as the report has it: arithmetic for the page, formulas for readers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ..algebra import sample
from ..algebra.text import factored
from ..cost import Ledger
from ..machine.rows import is_something
from ..predict.memory import memory
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
            op, cost = ledger.trace.ops[part.op], part.cost
            name = op.overload_packet.removeprefix("aten.")
            roles = tuple(
                (role, written(nbytes / op.times))
                for role, nbytes in cost.bytes_by_role.items()
                if is_something(nbytes)
            )
            work = [
                (
                    p,
                    *(
                        written(table.get(p, 0) / op.times)
                        for table in (cost.flops, cost.recompute_flops)
                    ),
                )
                for p in dict.fromkeys((*cost.flops, *cost.recompute_flops))
            ]
            vector = (
                written(cost.vector_flops / op.times) if is_something(cost.vector_flops) else "0"
            )
            if not work and not roles and vector == "0":
                continue  # fused away
            for number, (precision, flops, again) in enumerate(work or [("", "0", "0")]):
                whole = (roles, vector) if number == 0 else ((), "0")
                key = (pattern(part.module), name, precision, flops, again, *whole)
                found[key] = found.get(key, 0) + op.times
    return tuple(
        ClosedForm(
            phase, ledger.execution, module, op, times, precision, flops, dict(roles), again, vector
        )
        for (module, op, precision, flops, again, roles, vector), times in found.items()
    )


def closed_range(ledger: Ledger, phase: str, forms: Sequence[ClosedForm]) -> ClosedRange:
    """Where `forms` hold: each condition in words, and as what must be above 0; and the memory.

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
    held = {name: written(value) for name, value in asdict(memory(ledger)).items()}
    return ClosedRange(phase, ledger.execution, tuple(limits + guards), held)


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
