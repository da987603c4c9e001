"""The report of a search: plans that fit, ranked, and why the others are not among them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..predict.training import TrainingStep
from ..study.plans import Found
from . import palette
from .bars import draw_stacked
from .blocks import Column, Drawing, Figure, Section, Table, Text, code, section_of, table_of
from .figures import legend
from .palette import GRID, INK
from .plans import nearest_to_fitting
from .report import Report
from .text import plural, seconds

_POINTS = 400  # of a figure
_BARS = 8


@dataclass(frozen=True)
class SearchStudy:
    """What a search was asked and found; `best` are the top plans priced with their parts."""

    model: str
    dtype: str
    cluster: str
    chip: str
    gpus: int
    global_batch: int
    seq: int
    found: Found[TrainingStep]
    best: tuple[TrainingStep, ...]
    top: int
    command: str
    versions: dict[str, str]
    most: Mapping[str, int]
    schedules: tuple[str, ...]
    notes: tuple[str, ...] = ()


def search_document(study: SearchStudy) -> dict[str, Any]:
    """The document of `--json`: the best plans' records, dropped plans by kind of reason."""
    return found_document(study.found, study.top)


def found_document(found: Found[Any], top: int) -> dict[str, Any]:
    """The best plans' records, dropped plans by kind of reason."""
    return {
        "ranked": [step.as_dict() for step in found.ranked[:top]], "dropped": found.reasons,
    }  # fmt: skip


def search_csv(found: Found[Any]) -> str:
    """Every plan: those that fit with their figures, best first, then others with a reason."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["plan", "step_s", "tokens_per_s_per_gpu", "memory_gb", "dropped"])
    for step in found.ranked:
        speed = step.tokens_per_s / step.plan.world
        writer.writerow([step.plan, step.seconds, speed, step.memory.total / 1e9, ""])
    writer.writerows([item.plan, "", "", "", item.reason] for item in found.dropped)
    return buffer.getvalue()


def search_report(study: SearchStudy) -> Report:
    """Ranked plans, figures, reasons."""
    found = (_asked(study), _ranked(study), _parts(study), _dropped(study), _notes(study))
    return Report(
        f"Plans for {code(study.model)} on {study.gpus:,} GPUs",
        f"{study.dtype}, training, on {study.cluster} ({study.chip}).", study.command,
        tuple(section for section in found if section is not None),
        search_document(study) | {"command": study.command, "versions": study.versions},
        {"plans.csv": lambda: search_csv(study.found)},
    )  # fmt: skip


def _asked(study: SearchStudy) -> Section:
    found = study.found
    bounds = ", ".join(f"{axis} up to {most:,}" for axis, most in study.most.items())
    schedules = ", ".join(code(name) for name in study.schedules)
    lines = [
        f"Every way to split {study.gpus:,} GPUs over tp, cp, pp, ep and dp, with {bounds}, under "
        f"{schedules}, for {study.global_batch:,} sequences of {study.seq:,} tokens a step. "
        f"{plural(len(found.ranked), 'plan')} fit; {len(found.dropped):,} do not run. Precision, "
        "ZeRO, what is computed again and sequences at once are those asked for."
    ]
    if found.ranked:
        best = found.ranked[0]
        lines.append(
            f"The quickest is {code(best.plan)}: {seconds(best.seconds)} a step, "
            f"{best.tokens_per_s / best.plan.world:,.0f} tokens/s a GPU, MFU {best.mfu:.1%}."
        )
        if len(found.ranked) > 1:
            last = found.ranked[-1]
            lines.append(f"The slowest of those that fit takes {last.seconds / best.seconds:.1f} "
                         "times as long.")  # fmt: skip
    elif found.nearest is not None:
        lines.append(f"None fits: {nearest_to_fitting(found.nearest)}.")
    return Section("What was searched", (Text(" ".join(lines)),))


def _ranked(study: SearchStudy) -> Section | None:
    ranked = study.found.ranked
    if not ranked:
        return None
    data = [_row(number, step) for number, step in enumerate(ranked, 1)]
    shown = ranked[:_POINTS]
    return section_of(
        "Plans that fit",
        table_of(
            "ranked",
            f"The best {min(study.top, len(ranked)):,} of {plural(len(ranked), 'plan')} by tokens "
            "a second; the CSV has all. MFU counts causal pairs and the BF16 peak.",
            (
                Column("place", "place", "size"), Column("plan", "plan", "code"),
                Column("step", "step", "s"), Column("per_gpu", "tokens/s a GPU", "tokens/s"),
                Column("mfu", "MFU", "ratio"), Column("bubble", "bubble", "ratio"),
                Column("held", "fullest GPU", "B"), Column("free", "left", "B"),
                Column("usd", "USD of the run", "USD"),
            ),
            data[: study.top], data=data,
        ),
        Figure(
            "step_memory",
            "A point a plan: what is quick and small is at the bottom left. Colours are pipeline "
            "depths." + (f" The best {_POINTS} are drawn." if len(ranked) > _POINTS else ""),
            Drawing(_draw, (shown,)), (8.0, 4.6),
        ) if len(ranked) > 1 else None,
    )  # fmt: skip


def _row(number: int, step: TrainingStep) -> tuple[Any, ...]:
    m = step.memory
    return (
        number, str(step.plan), step.seconds, step.tokens_per_s / step.plan.world, step.mfu,
        step.pipeline.bubble_share, m.total, m.capacity - m.reserve - m.total,
        step.money.dollars(step.tokens_per_s, step.plan.world),
    )  # fmt: skip


def _draw(figure: Any, steps: tuple[TrainingStep, ...]) -> None:
    axes = figure.add_subplot()
    from matplotlib import colormaps

    colours = colormaps["viridis"]
    depths = sorted({step.plan.pp for step in steps})
    for number, depth in enumerate(depths):
        mine = [step for step in steps if step.plan.pp == depth]
        shade = 0.25 + 0.6 * number / max(len(depths) - 1, 1)  # apart on light and dark ground
        axes.scatter(
            [s.memory.total / 1e9 for s in mine], [s.seconds for s in mine], s=22, alpha=0.75,
            color=colours(shade), marker="os^Dv"[number % 5],
            label=f"pp={depth}",
        )  # fmt: skip
    m = steps[0].memory
    axes.axvline((m.capacity - m.reserve) / 1e9, color=INK, linewidth=1, linestyle="--",
                 label="memory less what is kept free")  # fmt: skip
    axes.yaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.set_xlabel("GB of the fullest GPU (1 GB = 1e9 bytes)")
    axes.set_ylabel("a step")
    axes.set_title("Step against memory", fontsize=10)
    axes.grid(True, color=GRID, linewidth=0.6)
    legend(axes)


def _parts(study: SearchStudy) -> Section | None:
    """Where the seconds of the best plans go."""
    parts = [(str(step.plan), _breakdown(step)) for step in study.best[:_BARS]]
    if not parts:
        return None
    names = [name for name in palette.STEP if any(p.get(name) for _, p in parts)]
    bars = [(f"{number}", p) for number, (_, p) in enumerate(parts, 1)]
    return section_of(
        "Where the best plans' seconds go",
        table_of(
            "parts", "A GPU's step, the mean over the pipeline's ranks.",
            (Column("place", "place", "size"), Column("plan", "plan", "code"),
             *(Column(name.replace(" ", "_"), name, "s") for name in names),
             Column("step", "step", "s")),
            [(number, plan, *(p[name] or None for name in names), sum(p.values()))
             for number, (plan, p) in enumerate(parts, 1)],
        ),
        Figure(
            "parts", "The best plans by place, their seconds by part.",
            Drawing(draw_stacked, (bars, palette.STEP, "a step", "Steps of the best plans")),
            (8.0, 1.6 + 0.34 * len(bars)),
        ),
    )  # fmt: skip


def _breakdown(step: TrainingStep) -> dict[str, float]:
    b = step.breakdown
    assert b is not None
    return dict(zip(palette.STEP, (b.compute, b.communication, b.bubble, b.optimizer),
                    strict=False))  # fmt: skip


def _dropped(study: SearchStudy) -> Section | None:
    dropped = study.found.dropped
    example = study.found.first
    reasons: Table | None = table_of(
        "dropped",
        "Plans that do not run, by kind of reason, with the first of each. `plans.csv` has every "
        "plan with its own.",
        (Column("reason", "reason"), Column("plans", "plans", "count"),
         Column("plan", "such as", "code"), Column("why", "because")),
        [(kind, count, str(example[kind].plan), example[kind].why)
         for kind, count in study.found.reasons.items()],
        ("all", len(dropped), "", ""),
    )  # fmt: skip
    return section_of("Plans that do not run", reasons)


def _notes(study: SearchStudy) -> Section | None:
    if not study.notes:
        return None
    lines = "\n".join(f"* {note.replace('*', '·')}" for note in study.notes)
    return Section("What this rests on", (Text(lines),))
