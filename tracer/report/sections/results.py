"""The results table that several sections stand on."""

from __future__ import annotations

from collections.abc import Sequence

from ...cost import EFFICIENT, NAIVE
from ...predict import Step
from ..blocks import Column, Table, table_of
from ..facts import item_of, masks, steps_of
from ..summary import Study

_COLUMNS = (
    Column("chip", "chip", "code"),
    Column("phase", "phase"),
    Column("exec", "exec"),
    Column("flops", "FLOPs", "FLOP"),
    Column("bytes", "bytes", "B"),
    Column("intensity", "FLOP/B", "FLOP/B"),
    Column("compute", "compute", "s"),
    Column("memory", "memory", "s"),
    Column("step", "step", "s"),
    Column("p10", "P10", "s"),
    Column("p90", "P90", "s"),
    Column("ideal", "ideal", "s"),
    Column("tokens_per_s", "tokens/s", "tokens/s"),
    Column("mfu", "MFU", "ratio"),
    Column("regime", "waits for"),
    Column("regime_share", "share", "ratio"),
    Column("chips", "chips at least", "size"),
)


def results_table(study: Study) -> Table:
    """One row a chip, phase and execution."""
    steps = [s for number in range(len(study.chips)) for s in steps_of(study, chip=number)]
    rate = f"{item_of(study)}s/s"
    caption = "**step** is the estimate"
    if any(s.times.interval() for s in steps):
        caption += " with its P10 and P90"
    caption += ", **ideal** the bound in which everything overlaps."
    if any(s.chips_at_least > 1 for s in steps):
        caption += (
            " Where **chips at least** is more than 1 the step does not fit in one chip, and its "
            f"{rate} is hypothetical."
        )
    if any(s.ledger.execution == NAIVE for s in steps):
        caption += " No MFU is given for naive execution" + (
            ", whose attention also runs masked pairs." if masks(study) else "."
        )
    columns = [c._replace(header=rate) if c.key == "tokens_per_s" else c for c in _COLUMNS]
    found = table_of("results", caption, columns, _rows(steps))
    assert found is not None
    return found


def _rows(steps: Sequence[Step]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for step in steps:
        times = step.times
        low, high = times.interval() or (None, None)
        rows.append((
            step.chip.id, step.workload.phase, step.ledger.execution, step.cost.total_flops,
            step.cost.total_bytes, step.cost.intensity, times.compute, times.memory, times.step,
            low, high, times.bound, step.tokens_per_s,
            step.mfu if step.ledger.execution == EFFICIENT and step.cost.flops else None,
            times.regime, times.shares()[times.regime], step.chips_at_least,
        ))  # fmt: skip
    return rows
