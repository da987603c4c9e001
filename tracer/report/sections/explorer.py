"""What needs a page to be read: points to hover, a tree to open, a timeline to zoom."""

from __future__ import annotations

from ..blocks import Section, Widget
from ..facts import detailed, steps_of
from ..summary import Study
from ..tree import render_tree

_DEPTH = 5


def section(study: Study) -> Section:
    """The interactive parts; elsewhere the module tree as text and a pointer to the page."""
    step = steps_of(study, detailed(study))[0]
    tree = render_tree(step.ledger, _DEPTH)
    head = f"{step.workload.phase}, {step.ledger.execution}"
    return Section(
        "Explorer",
        (Widget("explorer", f"Module tree of {head} (report.html has all steps):\n\n{tree}"),),
    )
