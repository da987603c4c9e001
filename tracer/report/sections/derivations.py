"""Every matrix FLOP of a step, with the multiplication that gives it."""

from __future__ import annotations

import math

from ...capture.records import Op
from ...machine.shapes import attention_operands
from ...predict import Step
from ..blocks import Column, Section, Text, section_of, table_of
from ..facts import detailed, steps_of
from ..provenance import origin_of
from ..summary import Study
from ..text import pattern

_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "_scaled_mm")


def section(study: Study) -> Section | None:
    """One table a phase, whose rows add up to the phase's FLOPs."""
    steps = [s for s in steps_of(study, detailed(study)) if s.cost.total_flops]
    if not steps:
        return None
    return section_of(
        "Appendix A: full FLOP derivations",
        Text(
            "Every op with matrix FLOPs, by module pattern and shapes. **times** counts layers and "
            "calls; a row's FLOPs are **times** the product that stands in it. Each table adds up "
            "to the FLOPs of its step."
        ),
        *(_phase(step) for step in steps),
    )


def _phase(step: Step) -> Section | None:
    groups: dict[tuple[str, str, str, str, str], list[int]] = {}
    for kernel in step.ledger.kernels:
        for part in kernel.parts:
            flops = part.cost.total_flops
            if not flops:
                continue
            op = step.trace.ops[part.op]
            key = (
                kernel.phase, pattern(part.module), op.overload_packet.removeprefix("aten."),
                _shapes(op), derivation(op, flops // op.times) or origin_of(op, step.trace).text,
            )  # fmt: skip
            row = groups.setdefault(key, [0, 0])
            row[0] += op.times
            row[1] += flops
    ordered = sorted(groups.items(), key=lambda item: -item[1][1])
    phase = step.workload.phase
    return section_of(
        f"{phase}, {step.ledger.execution}",
        table_of(
            f"derivation_{phase}",
            f"Matrix FLOPs of {phase}, {step.ledger.execution}.",
            (
                Column("pass", "pass"),
                Column("module", "module", "module"),
                Column("op", "op", "op"),
                Column("shapes", "shapes", "code"),
                Column("derivation", "FLOPs each", "code"),
                Column("times", "times", "count"),
                Column("flops", "FLOPs", "FLOP"),
            ),
            [(*key, times, flops) for key, (times, flops) in ordered],
            ("total", "", "", "", "", sum(t for t, _ in groups.values()), step.cost.total_flops),
        ),
    )


def _shapes(op: Op) -> str:
    shapes = ["x".join(map(str, ref.shape)) or "()" for ref in op.inputs()]
    return " ".join(shapes[:4]) + (" ..." if len(shapes) > 4 else "")


def derivation(op: Op, flops: int) -> str:
    """`2 x M x K x N`, if it gives `flops`; "" where the op is no plain product."""
    name = op.overload_packet.removeprefix("aten.")
    refs = [ref for ref in op.inputs() if len(ref.shape) >= 2]
    out = op.outputs[0].shape if op.outputs else ()
    factors: tuple[int, ...] = ()
    if name in _PRODUCTS and refs and out:
        last = refs[-1] if name in ("addmm", "baddbmm") else refs[0]
        k = last.shape[-2] if name in ("addmm", "baddbmm") else last.shape[-1]
        factors = (*out[:-1], k, out[-1])
    elif "grouped" in name and refs and out:
        if len(out) == 2:  # rows of all experts together
            factors = (out[0], refs[0].shape[-1], out[1])
        else:  # a gradient of the stacked weights
            factors = (refs[0].shape[-1], out[1], out[2])
    elif "attention" in name:
        return _pairs(op, flops)
    text = " x ".join(f"{factor:,}" for factor in (2, *factors))
    return text if factors and 2 * math.prod(factors) == flops else ""


def _pairs(op: Op, flops: int) -> str:
    """`2 x B x heads x pairs x (D + Dv)`, the pairs being those that the FLOPs imply."""
    operands = attention_operands(op)
    if operands is None:
        return ""
    (batch, heads, queries, size), (_, _, keys, _), (*_, size_v) = operands
    factor = 4 if "backward" in op.name else 2
    pairs, rest = divmod(flops, factor * batch * heads * (size + size_v))
    if rest or pairs > queries * keys:
        return ""
    return f"{factor} x {batch:,} x {heads:,} x {pairs:,} pairs x ({size} + {size_v})"
