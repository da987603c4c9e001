"""The stages of a pipeline: the slowest sets the pace."""

from __future__ import annotations

from ...predict.detail import StageTimes
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
    training, plan = isinstance(study.step, TrainingStep), study.step.plan
    rows = [
        (
            number,
            _layers(s, plan.mtp and number == plan.stages - 1),
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
            "embedding, the last the output head and the loss"
            + (", and the MTP module with a pass through both of its own" if plan.mtp else "")
            + "." + study.if_it_fit,
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


def _layers(stage: StageTimes, drafts: bool) -> str | None:
    """The layers of a stage by number; `drafts`: the last of them is the MTP module."""
    last = stage.first + stage.layers - 1 - drafts
    main = [f"{stage.first} to {last}"] if last >= stage.first else []
    return ", ".join(main + ["MTP"] * drafts) or None
