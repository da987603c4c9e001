"""The roofline analysis: how chips compare, categories, sweeps, memory, communication."""

from __future__ import annotations

from collections.abc import Mapping

from ...cost import Cost
from ...predict import Step
from .. import palette
from ..bars import draw_shares
from ..blocks import Column, Drawing, Figure, Section, Text, section_of, table_of
from ..categories import Categories
from ..facts import detailed, main_precision, rates, steps_of
from ..figures import Point, Roof, draw_roofline
from ..summary import Study
from . import communication, decode_limit, memory, sweeps

_SEEN = 0.01  # of a step's time: a category below it is not spoken of


def section(study: Study) -> Section:
    """Everything that is read against a roof."""
    parts = (
        _reading(study),
        _overview(study),
        _spread(study),
        _deltas(study),
        *(sweeps.sections(study)),
        _shares(study),
        *(_category_rooflines(study)),
        decode_limit.section(study),
        memory.section(study),
        communication.section(study),
    )
    return Section(
        "Roofline analysis",
        (
            Text(
                "A roof says what a chip could do with a given number of FLOPs a byte. The "
                "estimate lies below it: kernels do not overlap with one another, and none reaches "
                "its peak. Both are drawn."
            ),
        ),
        tuple(part for part in parts if part is not None),
    )


def _reading(study: Study) -> Section | None:
    rows = []
    for number, chip in enumerate(study.chips):
        known: dict[str, float] = {}
        for step in steps_of(study, chip=number):
            known |= rates(step)
        rows += [
            (chip.id, name, peak, chip.memory_bandwidth, peak / chip.memory_bandwidth,
             float(chip.memory_capacity))
            for name, peak in known.items()
        ]  # fmt: skip
    return section_of(
        "Reading a roofline point",
        Text(
            "A point stands at its FLOP/B (FLOPs over memory traffic) and its FLOP/s (FLOPs over "
            "the step). Left of the ridge, P / W, full bandwidth allows less than the peak; right "
            "of it more. The side of the ridge is a property of the sums: a step right of it can "
            "still wait for memory in most of its kernels, and **waits for** says so."
        ),
        table_of(
            "roofs",
            "Ceilings of each chip: dense peaks and memory of its datasheet, and the ridge. "
            "Products in a precision that matrix units do not have run at the vector rate.",
            (
                Column("chip", "chip", "code"),
                Column("precision", "precision", "code"),
                Column("peak", "peak", "FLOP/s"),
                Column("bandwidth", "bandwidth", "B/s"),
                Column("ridge", "ridge", "FLOP/B"),
                Column("capacity", "memory", "B"),
            ),
            rows,
        ),
    )


def _overview(study: Study) -> Section | None:
    steps = [s for s in steps_of(study) if s.cost.total_flops]
    if not steps:
        return None
    precision = main_precision(steps[0])
    roofs = [
        Roof(chip, precision)
        for chip in study.chips
        if precision in chip.peak or precision in chip.vector
    ]
    points = [_point(s, f"{s.workload.phase}, {s.ledger.execution}") for s in steps]
    return section_of(
        "Roofline overview",
        Figure(
            "roofline",
            f"Points are the estimate (filled) and the ideal bound (hollow) on "
            f"{study.chips[0].name}; lines are the roofs in {precision}. The line between the two "
            "markers is time lost to kernels that do not overlap or do not reach their peak.",
            Drawing(draw_roofline, (roofs, points, "Estimate (filled) and ideal bound (hollow)")),
        ),
    )


def _point(step: Step, label: str) -> Point:
    flops = step.cost.total_flops
    return Point(
        label, step.cost.intensity, flops / step.times.step, flops / step.times.bound,
        palette.PHASES.get(step.workload.phase, palette.OTHER),
        palette.MARKERS.get(step.ledger.execution, "D"),
    )  # fmt: skip


def _pairs(study: Study) -> list[tuple[Step, Step]]:
    """(naive, efficient) of each phase that has both, on the first chip."""
    by_phase: dict[str, dict[str, Step]] = {}
    for step in steps_of(study):
        by_phase.setdefault(step.workload.phase, {})[step.ledger.execution] = step
    return [(p["naive"], p["efficient"]) for p in by_phase.values() if len(p) == 2]


def _spread(study: Study) -> Section | None:
    rows: list[tuple[object, ...]] = []
    for step in steps_of(study, detailed(study)):
        for driver in step.times.tornado()[:6]:
            if driver.swing >= 0.002 * step.times.step:
                rows.append((step.workload.phase, driver.name, driver.low, driver.high,
                             driver.swing / step.times.step))  # fmt: skip
    return section_of(
        "What the spread comes from",
        table_of(
            "spread",
            "The step at the P10 and P90 of each constant of the kernel model, all else held; "
            "largest swings first. **form** is what a formula misses, **backend** the next best "
            "software.",
            (
                Column("phase", "phase"),
                Column("constant", "constant", "code"),
                Column("low", "step at one end", "s"),
                Column("high", "at the other", "s"),
                Column("swing", "swing", "ratio"),
            ),
            rows,
        ),
    )


def _costs(step: Step) -> Mapping[str, Cost]:
    known = Categories(step.trace)
    costs = step.ledger.by(known.of_part)
    return {name: costs[name] for name in palette.CATEGORIES if name in costs}


def _deltas(study: Study) -> Section | None:
    rows: list[tuple[object, ...]] = []
    for naive, efficient in _pairs(study):
        before, after = _costs(naive), _costs(efficient)
        for name in palette.CATEGORIES:
            a, b = before.get(name), after.get(name)
            if a is None or b is None or not b.total_bytes:
                continue
            ai, bi = a.intensity or None, b.intensity or None
            rows.append((
                naive.workload.phase, name, ai, bi, bi / ai - 1 if ai and bi else None,
                a.total_bytes, b.total_bytes, b.total_bytes / a.total_bytes - 1,
            ))  # fmt: skip
    return section_of(
        "Naive against efficient, by category",
        table_of(
            "category_deltas",
            "What fused kernels change: FLOP/B and bytes of each category."
            + (
                " FLOPs of attention change too, since naive attention computes masked pairs."
                if any(a.cost.total_flops != b.cost.total_flops for a, b in _pairs(study))
                else ""
            ),
            (
                Column("phase", "phase"),
                Column("category", "category"),
                Column("intensity_naive", "FLOP/B naive", "FLOP/B"),
                Column("intensity_efficient", "FLOP/B efficient", "FLOP/B"),
                Column("intensity_change", "change", "delta"),
                Column("bytes_naive", "bytes naive", "B"),
                Column("bytes_efficient", "bytes efficient", "B"),
                Column("bytes_change", "change of bytes", "delta"),
            ),
            rows,
        ),
    )


def _shares(study: Study) -> Section | None:
    steps = steps_of(study)
    rows: list[tuple[object, ...]] = []
    bars: list[tuple[str, Mapping[str, float]]] = []
    for step in steps:
        costs = _costs(step)
        times = step.times.by(Categories(step.trace).key_of_time)
        flops, moved = step.cost.total_flops, step.cost.total_bytes
        for name, cost in costs.items():
            rows.append((
                step.workload.phase, step.ledger.execution, name,
                cost.total_flops / flops if flops else None,
                cost.total_bytes / moved if moved else None, times.get(name, 0.0),
                times.get(name, 0.0) / step.times.device,
            ))  # fmt: skip
        label = f"{step.workload.phase}, {step.ledger.execution}"
        bars.append((f"{label}: FLOPs", {n: c.total_flops for n, c in costs.items()}))
        bars.append((f"{label}: bytes", {n: c.total_bytes for n, c in costs.items()}))
        bars.append((f"{label}: time", times))
    return section_of(
        "Shares by category",
        Figure(
            "category_shares",
            "FLOPs, bytes and time of every step by category. Where the three bars of a step "
            "differ, no one of them alone says what limits it.",
            Drawing(draw_shares, (bars, palette.CATEGORIES, "the step's FLOPs, bytes or time",
                                  f"Shares by category on {study.chips[0].name}")),
            (8.0, 1.2 + 0.26 * len(bars)),
        ),
        table_of(
            "category_shares",
            "Each step's FLOPs, bytes and time by category; shares of a step add up to 100 %.",
            (
                Column("phase", "phase"),
                Column("exec", "exec"),
                Column("category", "category"),
                Column("flops", "of FLOPs", "ratio"),
                Column("bytes", "of bytes", "ratio"),
                Column("seconds", "time", "s"),
                Column("time", "of time", "ratio"),
            ),
            rows,
        ),
    )  # fmt: skip


def _category_rooflines(study: Study) -> list[Section | None]:
    found: list[Section | None] = []
    for step in steps_of(study, detailed(study)):
        costs = _costs(step)
        times = step.times.by(Categories(step.trace).key_of_time)
        points = [
            Point(name, cost.intensity, cost.total_flops / times[name],
                  colour=palette.CATEGORIES[name])
            for name, cost in costs.items()
            if cost.total_flops and times.get(name)
        ]  # fmt: skip
        if len(points) < 2:
            continue
        precisions = sorted(p for p in step.cost.flops if p in rates(step))
        roofs = [Roof(step.chip, name) for name in precisions]
        phase = step.workload.phase
        found.append(section_of(
            f"Category roofline: {phase}",
            _category_figure(phase, step, roofs, points),
            _extremes(phase, [p for p in points if times[p.label] >= _SEEN * step.times.device]),
        ))  # fmt: skip
    return found


def _extremes(phase: str, points: list[Point]) -> Text | None:
    """Which of the categories that take time lie at the ends."""
    if len(points) < 2:
        return None
    low = min(points, key=lambda p: p.intensity)
    high = max(points, key=lambda p: p.intensity)
    return Text(
        f"Of what takes at least {_SEEN:.0%} of the time of {phase}, {low.label} "
        f"({low.intensity:,.1f} FLOP/B) has the fewest FLOPs a byte and {high.label} "
        f"({high.intensity:,.1f}) the most."
    )


def _category_figure(phase: str, step: Step, roofs: list[Roof], points: list[Point]) -> Figure:
    title = f"Categories of {phase}, {step.ledger.execution}, on {step.chip.name}"
    return Figure(
        f"roofline_{phase}_categories",
        f"Each category's FLOPs over its bytes and over its time in {phase}. A category far below "
        "the roof at its FLOP/B runs kernels that do not reach it.",
        Drawing(draw_roofline, (roofs, points, title)),
    )
