"""This run beside another: step by step, then op by op, where `--compare` named one."""

from __future__ import annotations

from ..blocks import Column, Section, Table, Text, section_of, table_of
from ..facts import detailed
from ..records import OpCost, Side, SideStep
from ..sides import side_of
from ..summary import Study
from ..text import seconds

_ROWS = 30  # of the ops that differ; the rest is summed
_NOTHING = OpCost(0, 0, 0, 0.0)


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
        _steps(mine, other, common),
        *(_ops(phase, mine.steps[phase, e], other.steps[phase, e]) for phase, e in shown),
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


def _ops(phase: str, mine: SideStep, other: SideStep) -> Section | None:
    keys = dict.fromkeys([*mine.ops, *other.ops])
    pairs = [(key, mine.ops.get(key, _NOTHING), other.ops.get(key, _NOTHING)) for key in keys]
    changed = [pair for pair in pairs if pair[1] != pair[2]]
    if not changed:
        return section_of(
            f"{phase}, op by op",
            Text("No difference: the same ops with the same FLOPs, bytes and seconds."),
        )
    changed.sort(key=lambda pair: -abs(pair[1].seconds - pair[2].seconds))
    rows: list[tuple[object, ...]] = [_row(*pair) for pair in changed[:_ROWS]]
    rest = changed[_ROWS:]
    if rest:
        a, b = _sum([p[1] for p in rest]), _sum([p[2] for p in rest])
        rows.append(_row(("", f"{len(rest)} others that differ", ""), a, b))
    same = [pair[1] for pair in pairs if pair[1] == pair[2]]
    more = sum(a.seconds - b.seconds for _, a, b in changed)
    verb = "more" if more > 0 else "less"
    return section_of(
        f"{phase}, op by op",
        Text(
            f"{len(changed):,} of {len(pairs):,} kinds of op differ: together {seconds(abs(more))} "
            f"{verb} than the other; the same on both sides: {seconds(_sum(same).seconds)}. "
            "Seconds are those of kernels, gaps between them apart."
        ),
        table_of(
            f"compared_{phase}",
            "Ops that differ, largest difference of seconds first.",
            (
                Column("pass", "pass"), Column("module", "module", "module"),
                Column("op", "op", "op"), Column("times", "times, this", "count"),
                Column("other_times", "other", "count"), Column("flops", "FLOPs, this", "FLOP"),
                Column("other_flops", "other", "FLOP"), Column("bytes", "bytes, this", "B"),
                Column("other_bytes", "other", "B"), Column("seconds", "time, this", "s"),
                Column("other_seconds", "other", "s"), Column("more", "difference", "s"),
            ),
            rows,
        ),
    )  # fmt: skip


def _row(key: tuple[str, str, str], a: OpCost, b: OpCost) -> tuple[object, ...]:
    return (
        key[0], key[1], key[2].removeprefix("aten."), a.times, b.times, a.flops, b.flops, a.bytes,
        b.bytes, a.seconds, b.seconds, a.seconds - b.seconds,
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
