"""The sections of a plan's report in order of reading. Another one is a function and a line here.

A section is a function of a `PlanStudy` that returns a `Section`, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable

from ..blocks import Section
from ..plan_study import PlanStudy
from . import (
    asked,
    assumptions,
    compared,
    experts,
    kernels,
    memory,
    messages,
    mtp,
    schedule,
    seconds,
    stages,
    summary,
)

PLAN_SECTIONS: tuple[Callable[[PlanStudy], Section | None], ...] = (
    asked.section,
    summary.section,
    compared.section,
    seconds.section,
    stages.section,
    mtp.section,
    messages.section,
    experts.section,
    kernels.section,
    memory.section,
    schedule.section,
    assumptions.section,
)


def plan_sections(study: PlanStudy) -> tuple[Section, ...]:
    """Every section that applies to `study`."""
    found = (make(study) for make in PLAN_SECTIONS)
    return tuple(section for section in found if section is not None)
