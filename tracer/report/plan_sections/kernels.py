"""The kernels of a step by module and by op, as the ranks' programs ran them."""

from __future__ import annotations

from ...predict.detail import KERNELS
from ...predict.opcost import NOTHING, Key, OpCost
from ..blocks import Column, Section, Table, Text, section_of, table_of
from ..plan_study import PlanStudy, by_pattern
from ..text import seconds

_ROWS = 20


def section(study: PlanStudy) -> Section | None:
    """By module, by op in each module, and those of the stage that takes longest."""
    detail, costs = study.detail, study.kernels
    if not costs:
        return None
    modules: dict[str, OpCost] = {}
    for (_, module, _), cost in costs.items():
        modules[module] = modules.get(module, NOTHING).plus(cost)
    longest = sorted(modules.items(), key=lambda item: -item[1].seconds)
    pace = (
        section_of(
            f"Stage {detail.pace}, which sets the pace",
            _ops("stage_kernels", "One micro-batch of the stage that takes longest, longest first.",
                 by_pattern(detail.pace_kernels), study),
        )
        if len(detail.stages) > 1 else None
    )  # fmt: skip
    return section_of(
        "Kernels",
        Text(
            f"Kernels of a step take {seconds(detail.compute[KERNELS])}. A kernel's time goes to "
            "the ops that it runs by their bytes. What the optimizer runs, and weights that are "
            "rounded to FP8 once a step, are not among them."
        ),
        table_of(
            "modules",
            "By module, all passes." + study.if_it_fit,
            (Column("module", "module", "module"), *_COLUMNS),
            [(name, *_cells(c, detail.compute[KERNELS])) for name, c in longest],
            ("all", *_cells(_sum(modules.values()), detail.compute[KERNELS])),
        ),
        _ops("kernels", f"The {_ROWS} kinds of op that take longest; the CSV has all of them.",
             costs, study),
        pace,
    )  # fmt: skip


_COLUMNS = (
    Column("times", "times", "times"), Column("flops", "FLOPs", "FLOP"),
    Column("bytes", "bytes", "B"), Column("seconds", "time", "s"),
    Column("share", "of kernels", "share"),
)  # fmt: skip


def _ops(name: str, caption: str, costs: dict[Key, OpCost], study: PlanStudy) -> Table | None:
    whole = sum(cost.seconds for cost in costs.values())
    data = [(*key, *_cells(cost, whole)) for key, cost in costs.items()]
    rest = list(costs.values())[_ROWS:]
    rows = data[:_ROWS]
    if rest:
        rows = [*rows, ("", f"{len(rest)} others", "", *_cells(_sum(rest), whole))]
    return table_of(
        name, caption + study.if_it_fit,
        (Column("pass", "pass"), Column("module", "module", "module"), Column("op", "op", "op"),
         *_COLUMNS),
        rows, ("all", "", "", *_cells(_sum(costs.values()), whole)), data,
    )  # fmt: skip


def _cells(cost: OpCost, whole: float) -> tuple[float, ...]:
    return (*cost, cost.seconds / whole if whole else 0.0)


def _sum(costs: object) -> OpCost:
    found = NOTHING
    for cost in costs:  # type: ignore[attr-defined]
        found = found.plus(cost)
    return found
