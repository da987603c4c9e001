"""What the numbers rest on."""

from __future__ import annotations

from ..accuracy import accuracy_section
from ..blocks import Column, Section, Text, code, section_of, table_of
from ..plan_study import PlanStudy


def section(study: PlanStudy) -> Section | None:
    """Notes of the step, and how sure its kernels' counts are."""
    detail = study.detail
    sure = detail.shares.sure
    total = sum(sure.values())
    missing = ""
    if detail.unmodelled:
        names = ", ".join(code(op) for op in sorted(detail.unmodelled))
        missing = f" Without a formula, priced by their bytes: {names}."
    return section_of(
        "What this rests on",
        Text("\n".join(f"* {note.replace('*', '·')}" for note in study.step.notes)),
        table_of(
            "coverage",
            "Seconds of kernels by how sure their counts are. **exact**: the shapes decide; "
            "**estimated**: data decide (routing, sorts) and an expectation stands for them; "
            "**unmodelled**: bytes alone." + missing,
            (Column("confidence", "confidence"), Column("seconds", "time", "s"),
             Column("share", "of kernels", "share")),
            [(name, s, s / total) for name, s in sure.items() if s],
        ),
        accuracy_section(study.timing),
        Text(
            "Predicted beside published steps of plans stand in `docs/plans.md` of the sources."
        ),
    )  # fmt: skip
