"""The pipeline's schedule as a Gantt chart."""

from __future__ import annotations

from ...predict.training import TrainingStep, timeline_of
from ..blocks import Drawing, Figure, Section, Text
from ..gantt import draw
from ..plan_study import PlanStudy


def section(study: PlanStudy) -> Section | None:
    """Absent without a pipeline, and of serving, whose micro-batches pass one by one."""
    step = study.step
    if not isinstance(step, TrainingStep) or step.plan.pp == 1 or step.durations is None:
        return None
    timeline = timeline_of(step)
    return Section(
        "The pipeline's schedule",
        (
            Text(
                "Ranks downwards, time to the right; gaps are bubbles. An overlapped forward and "
                "backward has its forward in the upper half. `pipeline.json` is the same for "
                "Perfetto and `chrome://tracing`, slot by slot."
            ),
            Figure(
                "pipeline",
                "Every slot of every rank up to the last backward; messages over data ranks and "
                "the optimizer come after it." + study.if_it_fit,
                Drawing(draw, (timeline,)), (11.0, 1.9 + 0.3 * timeline.schedule.ranks),
            ),
        ),
    )  # fmt: skip
