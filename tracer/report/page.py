"""What the page's script works on: every op of every step, compact. `docs/report.md` has the form.

Text is kept once, in `strings`, and referred to by number. Costs include all layers that an op
stands for. `parts` of one kernel with one module, op and shapes are one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..cost import ROLES, Ledger
from ..machine import Times
from ..predict import Step
from . import palette
from .categories import Categories
from .facts import rates, steps_of
from .provenance import Origin, origin_of
from .summary import Study
from .text import pattern
from .tree import folded_path

MOST = 60_000  # rows over all steps; beyond it layers are merged, and the page says so


class Strings:
    """Each text once, by number."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._number: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self._number:
            self._number[text] = len(self.all)
            self.all.append(text)
        return self._number[text]


def payload(study: Study) -> dict[str, Any]:
    """The data of the page."""
    strings = Strings()
    origins: dict[Origin, int] = {}
    ledgers: dict[int, int] = {}
    packed: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    rows = sum(len(k.parts) for step in study.steps for k in step.ledger.kernels)
    merged = rows / len(study.chips) > MOST
    for step in study.steps:
        key = id(step.ledger)
        if key not in ledgers:
            ledgers[key] = len(packed)
            packed.append(_pack(step.ledger, strings, origins, merged))
            packed[-1] |= {"phase": step.workload.phase, "exec": step.ledger.execution}
        steps.append(
            {
                "phase": step.workload.phase,
                "exec": step.ledger.execution,
                "chip": study.chips.index(step.chip),
                "ledger": ledgers[key],
                "batch": step.workload.batch,
                "seq": step.workload.seq,
                "context": step.workload.context,
                "tokens": step.workload.tokens,
                "flops": step.cost.total_flops,
                "bytes": step.cost.total_bytes,
                "step": step.times.step,
                "ideal": step.times.bound,
                "chips": step.chips_at_least,
                **_times(step.times),
            }
        )
    trace = study.steps[0].trace
    parameters: dict[str, int] = {}
    for item in trace.parameters:
        if not item.buffer:
            owner = folded_path(trace, item.name.rpartition(".")[0])
            owner = pattern(owner) if merged else owner
            parameters[owner] = parameters.get(owner, 0) + item.numel
    return {
        "model": study.name,
        "merged": merged,
        "roles": list(ROLES),
        "chips": [
            {"id": c.id, "name": c.name, "bandwidth": c.memory_bandwidth,
             "capacity": c.memory_capacity,
             "vector": c.vector.get("fp32") or max(c.vector.values(), default=None),
             **_rates(steps_of(study, chip=number))}
            for number, c in enumerate(study.chips)
        ],
        "steps": steps,
        "ledgers": packed,
        "formulas": [list(origin) for origin in origins],
        "modules": _modules(study, merged),
        "sources": trace.header.get("sources", {}),
        "parameters": parameters,
        "colours": {"phases": palette.PHASES, "categories": palette.CATEGORIES,
                    "roles": palette.ROLES, "waits": palette.WAITS},
        "closed_forms": [form._asdict() | {"bytes": dict(form.bytes)}
                         for form in study.closed_forms or ()],
        "closed_ranges": [limits._asdict() | {"held": dict(limits.held)}
                          for limits in study.closed_ranges or ()],
        "strings": strings.all,
    }  # fmt: skip


def _rates(steps: Sequence[Step]) -> dict[str, Any]:
    """FLOP/s by precision on one chip, and the precisions that products of these steps have."""
    known: dict[str, float] = {}
    for step in steps:
        known |= rates(step)
    used = dict.fromkeys(p for step in steps for p, flops in step.cost.flops.items() if flops)
    return {"peak": known, "used": [p for p in used if p in known]}


def _modules(study: Study, merged: bool) -> dict[str, list[Any]]:
    """Path -> class and how many layers it stands for."""
    found: dict[str, list[Any]] = {}
    for step in study.steps:
        folds = {fold.module: fold.layers for fold in step.trace.folds}
        for call in step.trace.calls:
            path = pattern(call.module) if merged else call.module
            found.setdefault(path, [call.kind, folds.get(call.module, 1)])
    return found


def _pack(
    ledger: Ledger, strings: Strings, origins: dict[Origin, int], merged: bool
) -> dict[str, Any]:
    """Kernels and their parts as columns."""
    known = Categories(ledger.trace)
    kernels: list[list[int]] = []
    parts: dict[tuple[int, ...], list[int]] = {}
    for number, kernel in enumerate(ledger.kernels):
        kernels.append([strings(kernel.name), strings(kernel.kind), strings(kernel.phase),
                        kernel.launches])  # fmt: skip
        for part in kernel.parts:
            op = ledger.trace.ops[part.op]
            module = pattern(part.module) if merged else part.module
            origin = origin_of(op, ledger.trace)
            key = (
                number, strings(module), strings(op.name),
                origins.setdefault(origin, len(origins)),
                strings(_shapes(ref.shape for ref in op.inputs())),
                strings(known.of_part(kernel, part)), strings(part.confidence),
            )  # fmt: skip
            cost = part.cost
            row = parts.setdefault(key, [0] * (3 + len(ROLES)))
            values = (op.times, cost.total_flops, cost.vector_flops, *cost.bytes_by_role.values())
            for column, value in enumerate(values):
                row[column] += value
    return {"kernels": kernels, "parts": [[*key, *row] for key, row in parts.items()]}


def _shapes(shapes: Iterable[tuple[int, ...]]) -> str:
    text = " ".join("x".join(map(str, shape)) or "()" for shape in shapes)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _times(times: Times) -> dict[str, Any]:
    """Seconds of every kernel, and the first letter of what it waits for."""
    return {
        "seconds": [float(f"{k.total:.6g}") for k in times.kernels],
        "waits": "".join(k.bound[0] for k in times.kernels),
        "shares": times.shares(),
        "interval": times.interval(),
    }
