"""The report of a plan, and its other files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..predict.training import TrainingStep, timeline_of
from .blocks import code
from .chrome import pipeline_trace
from .plan_sections import plan_sections
from .plan_study import PlanStudy
from .report import Report
from .text import plural


def plan_document(study: PlanStudy) -> dict[str, Any]:
    """The step's record, with what would make it fit: `--json` and plan.json."""
    more = {"advice": study.advice} if study.advice else {}
    return study.step.as_dict() | more


def plan_report(study: PlanStudy) -> Report:
    """The report of a priced plan; of a pipeline with its timeline for Perfetto."""
    step = study.step
    gpus = plural(step.plan.world, "GPU")
    document = plan_document(study)
    files: dict[str, Callable[[], str]] = {
        "plan.json": lambda: json.dumps(document, indent=1) + "\n"
    }
    if isinstance(step, TrainingStep) and step.plan.pp > 1:
        files["pipeline.json"] = lambda: json.dumps(pipeline_trace(timeline_of(step)))
    head = {"plan": document, "command": study.command, "versions": study.versions}
    if study.compared is not None:
        head["compared"] = dict(study.compared.record)
    return Report(
        f"{code(step.model)} on {gpus}: {study.phase}",
        f"Plan {code(step.plan)}, {study.dtype}, on {step.cluster.name} "
        f"({step.cluster.chip.name}).",
        study.command, plan_sections(study), head, files,
    )  # fmt: skip
