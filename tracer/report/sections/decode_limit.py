"""Can decode wait for compute at all, and from which batch on?"""

from __future__ import annotations

import math
from typing import NamedTuple

from ...predict import Step
from ..blocks import Column, Formula, Section, Table, Text, section_of, table_of
from ..decode import Batching, batching
from ..facts import detailed, routing, steps_of
from ..records import ContextLimit, DecodeLimit
from ..summary import Study
from ..text import plural, size


def section(study: Study) -> Section | None:
    """What one traced decode step says of larger batches, and the grid if it was computed."""
    steps = [
        step
        for number in range(len(study.chips))
        for step in steps_of(study, detailed(study), number)
        if step.workload.phase == "decode" and step.cost.total_flops
    ]
    if not steps:
        return None
    return section_of(
        "Can decode become compute-bound?",
        Text(
            "Weights are read once for all sequences of a batch; the cache and the activations of "
            "each sequence are its own. So FLOP/B grows with the batch towards a limit, and only "
            "if that limit lies beyond the ridge can decode get there. The ridge is that of the "
            "step's mix of precisions: there the FLOPs, each at its peak, take as long as the "
            "bytes." + (" Experts count with all of them hit." if any(routing(study)) else "")
        ),
        Formula("FLOP/B(B) = B f / (W + B a)  ->  f / a\nB at the ridge = ridge W / (f - ridge a)"),
        _table(study, steps),
        Text("\n".join(f"* {line}" for line in _sentences(study, steps[0]))),
        _grid(study),
    )


class _Reached(NamedTuple):
    """A batch that reaches the ridge, and what it holds."""

    batch: int
    held: float
    chips: int


def _closed(study: Study, step: Step) -> DecodeLimit | None:
    """What the closed forms say of one chip at the context of `step`, if they were made."""
    here = (step.chip.id, 1, step.workload.context)
    found = (x for x in study.decode_limits or () if (x.chip, x.ep, x.context) == here)
    return next(found, None)


def far_of(study: Study, step: Step) -> ContextLimit | None:
    """Where FLOP/B goes on the step's chip as the context grows, if closed forms were made."""
    return next((x for x in study.context_limits or () if x.chip == step.chip.id), None)


def limit_of(study: Study, step: Step) -> float:
    """FLOP/B as the batch grows without end. One traced step alone counts bytes that no batch
    shares as those of its sequences, so that a small batch puts its limit a little low.
    """
    known = _closed(study, step)
    return batching(step).limit if known is None else known.intensity


def _reached(study: Study, step: Step) -> _Reached | None:
    """From the closed forms, where they were made, else from the one traced step."""
    b = batching(step)
    batch = None if b.crossing is None else math.ceil(b.crossing)
    held = 0.0 if batch is None else b.held_weights + batch * b.cache
    known = _closed(study, step)
    if known is not None:
        batch, held = known.batch, known.held or 0.0
    if batch is None:
        return None
    return _Reached(batch, held, math.ceil(held / float(step.chip.memory_capacity)))


def _table(study: Study, steps: list[Step]) -> Table | None:
    rows: list[tuple[object, ...]] = []
    for step in steps:
        b = batching(step)
        rows.append((
            step.chip.id, step.workload.context, b.flops, b.moved, b.weights,
            step.cost.intensity, limit_of(study, step), b.ridge,
            *(_reached(study, step) or (None, None, None)),
        ))  # fmt: skip
    missing = [row for row in rows if row[-1] is None]
    made = all(_closed(study, step) for step in steps)
    caption = (
        "From the traced step: FLOPs f and bytes a of one sequence, and weights W. **limit** is "
        f"FLOP/B as the batch grows without end, {'from the closed forms' if made else 'f / a'}"
    )
    if len(missing) < len(rows):
        caption += "; **B at the ridge** is where the sums reach it, and what that would hold"
    return table_of(
        "decode_batching",
        caption
        + (". An empty cell: no batch reaches it." if 0 < len(missing) < len(rows) else "."),
        (
            Column("chip", "chip", "code"),
            Column("context", "L", "size"),
            Column("flops", "f", "FLOP"),
            Column("moved", "a", "B"),
            Column("weights", "W", "B"),
            Column("intensity", "FLOP/B now", "FLOP/B"),
            Column("limit", "limit", "FLOP/B"),
            Column("ridge", "ridge", "FLOP/B"),
            Column("batch", "B at the ridge", "size"),
            Column("held", "holds then", "B"),
            Column("chips", "chips at least", "size"),
        ),
        rows,
    )


def _sentences(study: Study, step: Step) -> list[str]:
    b = batching(step)
    length = step.workload.context
    lines = [_verdict(b, step, limit_of(study, step), _reached(study, step))]
    far = far_of(study, step)
    if far is not None:
        beyond = far.intensity > far.ridge
        lines.append(
            f"As the context grows without end, decode tends to {far.intensity:,.1f} FLOP/B, what "
            f"a key more brings: {'beyond' if beyond else 'short of'} the ridge of "
            f"{far.ridge:,.0f} of those FLOPs. "
            + (
                "Long contexts do not keep it memory-bound."
                if beyond
                else "Long contexts stay memory-bound, whatever the batch."
            )
        )
        trend = "rises" if far.intensity > step.cost.intensity else "falls"
        lines.append(
            f"At batch {step.workload.batch:,} FLOP/B is {step.cost.intensity:,.1f} with "
            f"L = {length:,}, and {trend} with the context."
        )
    return lines


def _verdict(b: Batching, step: Step, limit: float, reached: _Reached | None) -> str:
    if reached is None:
        return (
            f"At L = {step.workload.context:,} no batch reaches the ridge on {step.chip.name}: the "
            f"limit is {limit:,.1f} FLOP/B, the ridge {b.ridge:,.0f}."
        )
    one = reached.chips == 1
    where = "which fits in one chip" if one else f"which takes {plural(reached.chips, 'chip')}"
    return (
        f"At L = {step.workload.context:,} the sums reach the ridge at "
        f"{plural(reached.batch, 'sequence')} on {step.chip.name}, holding {size(reached.held)}, "
        f"{where}."
    )


def _grid(study: Study) -> Table | None:
    found = study.decode_limits or ()
    caption = "From closed forms, by context: FLOP/B as the batch grows without end"
    if any(limit.batch is not None for limit in found):
        caption += ", and the smallest batch a chip at which the FLOPs take as long as the bytes"
    spread = len({limit.ep for limit in found}) > 1
    if spread:
        caption += (
            ". Experts are spread with DP = EP, so that the exchanges of their rows must not take "
            "longer either; **FLOP/B sent** counts bytes between chips one way, and nothing hides "
            "an exchange"
        )
    caption += (
        ". **limiter** is what keeps decode from compute at any batch (no B), or what comes next "
        "after compute."
    )
    return table_of(
        "decode_limits",
        caption,
        (
            Column("chip", "chip", "code"),
            Column("ep", "EP", "size"),
            Column("context", "L", "size"),
            Column("intensity", "FLOP/B, large batch", "FLOP/B"),
            Column("network_intensity", "FLOP/B sent", "FLOP/B"),
            Column("batch", "sequences a chip", "size"),
            Column("limiter", "limiter"),
            Column("held", "holds a chip", "B"),
            Column("fits", "fits"),
        ),
        [
            (
                limit.chip,
                limit.ep if spread else None,
                *limit[2:-1],
                None if limit.fits is None else "yes" if limit.fits else "no",
            )
            for limit in found
        ],
    )
