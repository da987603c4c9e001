"""The stages of a pipeline: the slowest sets the pace."""

from __future__ import annotations

from ...predict.training import TrainingStep
from ..blocks import Column, Section, Text, section_of, table_of
from ..plan_study import PlanStudy
from ..text import seconds


def section(study: PlanStudy) -> Section | None:
    """Absent of a plan with one stage."""
    stages = study.detail.stages
    if len(stages) < 2:
        return None
    mean = sum(stage.total for stage in stages) / len(stages)
    training = isinstance(study.step, TrainingStep)
    rows = [
        (
            number,
            f"{s.first} to {s.first + s.layers - 1}" if s.layers else None,
            s.forward,
            s.input if training else None,
            s.weight if training else None,
            s.forward_messages or None,
            s.backward_messages or None,
            s.total,
            s.total / mean - 1,
        )
        for number, s in enumerate(stages)
    ]
    slowest = stages[study.detail.pace]
    return section_of(
        "Stages",
        Text(
            f"Stage {study.detail.pace} takes longest: {seconds(slowest.total)} for one "
            f"micro-batch, {slowest.total / mean - 1:+.1%} of the mean. With many micro-batches "
            "the pipeline runs at its pace."
        ),
        table_of(
            "stages",
            "One micro-batch, each pass alone with nothing hidden. The first stage also has the "
            "embedding, the last the output head and the loss." + study.if_it_fit,
            (
                Column("stage", "stage", "size"), Column("layers", "layers"),
                Column("forward", "forward", "s"),
                Column("input_gradient", "input gradient", "s"),
                Column("weight_gradient", "weight gradient", "s"),
                Column("forward_messages", "messages forward", "s"),
                Column("backward_messages", "backward", "s"), Column("total", "all", "s"),
                Column("beside_mean", "beside the mean", "delta"),
            ),
            rows,
        ),
    )  # fmt: skip
