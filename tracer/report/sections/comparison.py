"""This run beside another: step by step, then op by op, where `--compare` named one."""

from __future__ import annotations

import math
from typing import Any

from ...predict.opcost import NOTHING, Costs, Key, OpCost
from ..blocks import Column, Section, Table, Text, section_of, table_of
from ..facts import detailed
from ..records import Side
from ..sides import side_of
from ..summary import Study
from ..text import seconds

_ROWS = 30  # of the ops that differ; the rest is summed


def section(study: Study) -> Section | None:
    """Absent without `--compare`."""
    other = study.compared
    if other is None:
        return None
    mine = side_of(study)
    common = [key for key in mine.steps if key in other.steps]
    shown = [key for key in common if key[1] == detailed(study)]
    return section_of(
        f"Compared with {_name(other, mine)}",
        Text(
            f"**this** is {mine.name} on {mine.chip}; **other** is {other.name} on {other.chip}"
            + (f", from `{other.command}`" if other.command else "")
            + ". A change is relative to the other, negative where this one takes less."
        ),
        _sizes(mine, other, common),
        _steps(mine, other, common),
        *(
            op_differences(phase, mine.steps[phase, e].ops, other.steps[phase, e].ops)
            for phase, e in shown
        ),
        _only(mine, other),
    )


def _name(other: Side, mine: Side) -> str:
    if (other.name, other.chip) == (mine.name, mine.chip):
        return "an earlier run"
    if other.name == mine.name and other.chip != mine.chip:
        return other.chip
    return f"{other.name} on {other.chip}" if other.chip != mine.chip else other.name


def _change(this: float, other: float) -> float | None:
    return this / other - 1 if other else None


def _sizes(mine: Side, other: Side, common: list[tuple[str, str]]) -> Text | None:
    """Which phases ran at other sizes there: their FLOPs and seconds are of other work."""
    found = {
        key[0]: (mine.steps[key].sizes, other.steps[key].sizes)
        for key in common
        if mine.steps[key].sizes != other.steps[key].sizes
    }
    if not found:
        return None
    lines = [f"{phase} has {here} here and {there} there" for phase, (here, there) in found.items()]
    return Text(f"**Not the same work**: {'; '.join(lines)}. The changes hold what that makes.")


def _steps(mine: Side, other: Side, common: list[tuple[str, str]]) -> Table | None:
    rows: list[tuple[object, ...]] = []
    for key in common:
        a, b = mine.steps[key], other.steps[key]
        rows.append((
            *key, a.flops, b.flops, _change(a.flops, b.flops), a.bytes, b.bytes,
            _change(a.bytes, b.bytes), a.step, b.step, _change(a.step, b.step),
        ))  # fmt: skip
    return table_of(
        "compared_steps",
        "Steps that both have.",
        (
            Column("phase", "phase"), Column("exec", "exec"),
            Column("flops", "FLOPs, this", "FLOP"), Column("other_flops", "other", "FLOP"),
            Column("flops_change", "change", "delta"),
            Column("bytes", "bytes, this", "B"), Column("other_bytes", "other", "B"),
            Column("bytes_change", "change", "delta"),
            Column("step", "step, this", "s"), Column("other_step", "other", "s"),
            Column("step_change", "change", "delta"),
        ),
        rows,
    )  # fmt: skip


def op_differences(what: str, mine: Costs, other: Costs) -> Section | None:
    """Two sides op by op: those that differ, then the sum of those that are the same."""
    keys = dict.fromkeys([*mine, *other])
    pairs = [(key, mine.get(key, NOTHING), other.get(key, NOTHING)) for key in keys]
    changed = [pair for pair in pairs if not _alike(*pair[1:])]
    if not changed:
        return section_of(
            f"{what.capitalize()}, op by op",
            Text("No difference: the same ops with the same FLOPs, bytes and seconds."),
        )
    changed.sort(key=lambda pair: -abs(pair[1].seconds - pair[2].seconds))
    rows = [_row(*pair) for pair in changed[:_ROWS]]
    rest = changed[_ROWS:]
    if rest:
        a, b = _sum([p[1] for p in rest]), _sum([p[2] for p in rest])
        rows.append(_row(("", f"{len(rest)} others that differ", ""), a, b))
    alike = [pair for pair in pairs if _alike(*pair[1:])]
    same = [mine for _, mine, _ in alike]
    data = [_row(*pair) for pair in changed]
    if same:
        rows.append(_row(("", f"{len(same)} that are the same", ""), _sum(same), _sum(same)))
        data += [_row(key, cost, cost) for key, cost, _ in alike]
    sums = _row(("all", "", ""), _sum([a for _, a, _ in pairs]), _sum([b for _, _, b in pairs]))
    total = (*sums[:5], sum(row[5] for row in rows), *sums[6:])
    more = sum(a.seconds - b.seconds for _, a, b in changed)
    verb = "more" if more > 0 else "less"
    return section_of(
        f"{what.capitalize()}, op by op",
        Text(
            f"{len(changed):,} of {len(pairs):,} kinds of op differ: together {seconds(abs(more))} "
            f"{verb} than the other; the same on both sides: {seconds(_sum(same).seconds)}. "
            "Seconds are those of kernels, gaps between them apart."
        ),
        table_of(
            f"compared_{what}",
            "Ops that differ, largest difference of seconds first. The CSV has all of them.",
            (
                Column("pass", "pass"), Column("module", "module", "module"),
                Column("op", "op", "op"), Column("seconds", "time, this", "s"),
                Column("other_seconds", "other", "s"), Column("more", "difference", "s"),
                Column("times", "times, this", "times"), Column("other_times", "other", "times"),
                Column("flops", "FLOPs, this", "FLOP"), Column("other_flops", "other", "FLOP"),
                Column("bytes", "bytes, this", "B"), Column("other_bytes", "other", "B"),
            ),
            rows,
            total,
            data,
        ),
    )  # fmt: skip


def _alike(a: OpCost, b: OpCost) -> bool:
    """The same but for rounding of means."""
    return all(math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-15) for x, y in zip(a, b, strict=True))


def _row(key: Key, a: OpCost, b: OpCost) -> tuple[Any, ...]:
    return (
        key[0], key[1], key[2].removeprefix("aten."), a.seconds, b.seconds, a.seconds - b.seconds,
        a.times, b.times, a.flops, b.flops, a.bytes, b.bytes,
    )  # fmt: skip


def _sum(costs: list[OpCost]) -> OpCost:
    columns = zip(*costs, strict=True) if costs else ([], [], [], [])
    return OpCost(*(sum(column) for column in columns))


def _only(mine: Side, other: Side) -> Text | None:
    missing = [
        f"{phase}, {execution} only on {side} side"
        for side, a, b in (("this", mine, other), ("the other", other, mine))
        for phase, execution in a.steps
        if (phase, execution) not in b.steps
    ]
    return Text(f"Not compared: {'; '.join(missing)}.") if missing else None
