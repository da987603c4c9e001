"""The answer: conclusions and next steps, each with its figures, and the results they are from."""

from __future__ import annotations

from collections.abc import Sequence

from ..advice import next_steps
from ..bars import draw_shares
from ..blocks import Column, Drawing, Figure, Section, Table, Text, code, section_of, table_of
from ..facts import gather, steps_of
from ..findings import Finding, conclusions
from ..palette import WAITS
from ..summary import Study
from .results import results_table


def section(study: Study) -> Section:
    """Conclusions, next steps, the results of every chip, what each step waits for."""
    facts = gather(study)
    found = conclusions(facts)
    steps = next_steps(facts)
    lead = Text(
        f"{code(study.name)} in {study.dtype} on {study.chips[0].name}. The sentences are made by "
        "rules from the numbers of this report, each with the figures that it rests on."
        + (
            f" They speak of {study.chips[0].name} alone; the results have a row for each chip."
            if len(study.chips) > 1
            else ""
        )
    )
    return Section(
        "Executive summary",
        (lead,),
        tuple(
            part
            for part in (
                concluded(found),
                advised(steps),
                Section("Results", (results_table(study),)),
                _waits(study),
            )
            if part is not None
        ),
    )


def concluded(found: Sequence[Finding]) -> Section | None:
    return section_of(
        "Conclusions",
        Table(
            "conclusions",
            "What is so.",
            (Column("finding", "conclusion"), Column("evidence", "because"),
             Column("rule", "rule", "code")),
            [(f.text, f.evidence, f.rule) for f in found],
        ) if found else None,
    )  # fmt: skip


def advised(found: Sequence[Finding]) -> Section | None:
    table = table_of(
        "next_steps",
        "What to try next. **saves at most** is the time that the cause takes today: something "
        "else limits afterwards, so real savings are smaller, and those of two rows may overlap.",
        (
            Column("phase", "phase"),
            Column("finding", "what"),
            Column("saves", "saves at most", "s"),
            Column("share", "of the step", "ratio"),
            Column("evidence", "because"),
        ),
        [(f.phase, f.text, f.saves, f.share, f.evidence) for f in found],
    )
    return section_of("Next optimisations", table) if table is not None else None


def _waits(study: Study) -> Section | None:
    steps = steps_of(study)
    bars = [
        (f"{s.workload.phase}, {s.ledger.execution}",
         {name: share * s.times.step for name, share in s.times.shares().items()})
        for s in steps
    ]  # fmt: skip
    title = f"What the time of a step waits for on {study.chips[0].name}"
    figure = Figure(
        "waits",
        "Each bar is one step. A kernel's launch gap is latency; the rest of its time waits for "
        "what bounds it. A long bar of one colour is one knob; a mixed one needs several.",
        Drawing(draw_shares, (bars, WAITS, "the step's time", title)),
        (8.0, 1.4 + 0.42 * len(bars)),
    )
    table = table_of(
        "waits",
        "Seconds of the step by what they wait for.",
        (
            Column("phase", "phase"),
            Column("exec", "exec"),
            *(Column(name, name, "s") for name in WAITS),
            Column("step", "step", "s"),
        ),
        [
            (s.workload.phase, s.ledger.execution, *(values[n] or None for n in WAITS),
             s.times.step)
            for s, (_, values) in zip(steps, bars, strict=True)
        ],
    )  # fmt: skip
    return section_of("What each step waits for", figure, table)
