"""Can decode wait for compute at all, and from which batch on?"""

from __future__ import annotations

import math

from ...predict import Step
from ..blocks import Column, Formula, Section, Table, Text, section_of, table_of
from ..decode import Batching, batching
from ..facts import detailed, steps_of
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
            "bytes. Experts count with all of them hit."
        ),
        Formula("FLOP/B(B) = B f / (W + B a)  ->  f / a\nB at the ridge = ridge W / (f - ridge a)"),
        _table(steps),
        Text("\n".join(f"* {line}" for line in _sentences(steps[0]))),
        _grid(study),
    )


def _table(steps: list[Step]) -> Table | None:
    rows: list[tuple[object, ...]] = []
    for step in steps:
        b = batching(step)
        held = None if b.crossing is None else b.held_weights + math.ceil(b.crossing) * b.cache
        rows.append((
            step.chip.id, step.workload.context, b.flops, b.moved, b.weights,
            step.cost.intensity, b.limit, b.ridge, b.crossing and math.ceil(b.crossing), held,
            None if held is None else math.ceil(held / float(step.chip.memory_capacity)),
        ))  # fmt: skip
    return table_of(
        "decode_batching",
        "From the traced step: FLOPs and bytes of one sequence, weights, and the batch at which "
        "the sums reach the ridge, with what it would hold. An empty cell: no batch reaches it.",
        (
            Column("chip", "chip", "code"),
            Column("context", "L", "size"),
            Column("flops", "f", "FLOP"),
            Column("moved", "a", "B"),
            Column("weights", "W", "B"),
            Column("intensity", "FLOP/B now", "FLOP/B"),
            Column("limit", "limit f / a", "FLOP/B"),
            Column("ridge", "ridge", "FLOP/B"),
            Column("batch", "B at the ridge", "size"),
            Column("held", "holds then", "B"),
            Column("chips", "chips at least", "size"),
        ),
        rows,
    )


def _sentences(step: Step) -> list[str]:
    b = batching(step)
    length = step.workload.context
    lines = [_verdict(b, step)]
    if b.attention is not None:
        ridge = step.chip.ridge(b.precision)
        side = "beyond" if b.attention > ridge else "short of"
        lines.append(
            f"As the context grows, decode tends to the FLOP/B of its attention kernels, "
            f"{b.attention:,.1f} here: {side} the ridge of {ridge:,.0f} ({b.precision}). "
            + (
                "Long contexts do not keep it memory-bound."
                if b.attention > ridge
                else "Long contexts stay memory-bound, whatever the batch."
            )
        )
        trend = "rises" if b.attention > step.cost.intensity else "falls"
        lines.append(f"From where it is (L = {length:,}) FLOP/B {trend} with the context.")
    return lines


def _verdict(b: Batching, step: Step) -> str:
    if b.crossing is None:
        return (
            f"At L = {step.workload.context:,} no batch reaches the ridge on {step.chip.name}: the "
            f"limit is {b.limit:,.1f} FLOP/B, the ridge {b.ridge:,.0f}."
        )
    count = math.ceil(b.crossing)
    held = b.held_weights + count * b.cache
    chips = math.ceil(held / float(step.chip.memory_capacity))
    where = "which fits in one chip" if chips == 1 else f"which takes {plural(chips, 'chip')}"
    return (
        f"At L = {step.workload.context:,} the sums reach the ridge at {count:,} sequences on "
        f"{step.chip.name}, holding {size(held)}, {where}."
    )


def _grid(study: Study) -> Table | None:
    return table_of(
        "decode_limits",
        "With DP = EP: the smallest batch a chip at which the FLOPs take as long as the bytes and "
        "as the exchanges of experts' rows, by expert parallelism and context, from closed forms. "
        "**FLOP/B sent** counts bytes between chips one way; no exchange is hidden. An empty "
        "batch: never; **limiter** says what keeps it, or what comes next after compute.",
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
            (*limit[:-1], None if limit.fits is None else "yes" if limit.fits else "no")
            for limit in study.decode_limits or ()
        ],
    )
