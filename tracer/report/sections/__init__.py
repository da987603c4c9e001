"""The report's sections in order of reading. Another one is a function and a line here.

A section is a function of a `Study` that returns a `Section`, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable

from ..blocks import Section
from ..summary import Study
from . import (
    analytic,
    architecture,
    checklist,
    comparison,
    derivations,
    executive,
    explorer,
    limits,
    reading,
    rooflines,
    sensitivity,
    terms,
    weights,
)

SECTIONS: tuple[Callable[[Study], Section | None], ...] = (
    reading.section,
    terms.section,
    executive.section,
    comparison.section,
    architecture.section,
    weights.section,
    analytic.section,
    rooflines.section,
    sensitivity.section,
    limits.section,
    explorer.section,
    derivations.section,
    checklist.section,
)


def build(study: Study) -> tuple[Section, ...]:
    """Every section that applies to `study`."""
    found = (make(study) for make in SECTIONS)
    return tuple(section for section in found if section is not None)
