"""Where experts stand and what routing makes of it."""

from __future__ import annotations

from ..blocks import Column, Section, Text, section_of, table_of
from ..plan_study import PlanStudy


def section(study: PlanStudy) -> Section | None:
    """Absent where no tokens are exchanged, or the busiest rank was given."""
    if not study.placements:
        return None
    load = study.step.load
    text = (
        f"All ranks of an expert-parallel group wait for the busiest: {load.rows:.3f} times the "
        f"mean's rows"
    )
    if abs(load.read - 1) > 5e-3:
        text += f", and {load.read:.2f} times the experts' weights"
    return section_of(
        "Expert load",
        Text(f"{text}. Routing is {study.routing}; `--routing` and `--placement` choose others."),
        table_of(
            "placements",
            "One layer's dispatch under this routing, for every placement that goes with the plan. "
            "What ranks get and tokens reach are expected values; how far the busiest rank is "
            "above them is drawn: batches of tokens through the router.",
            (
                Column("placement", "placement", "code"), Column("of_plan", "the plan's"),
                Column("busiest", "busiest rank's rows over the mean", "number"),
                Column("experts", "experts read, at most", "number"),
                Column("ranks", "ranks a token reaches", "number"),
                Column("domains", "domains", "number"),
                Column("crossing", "its copies to other domains", "number"),
            ),
            [
                (p.placement, "yes" if p.chosen else None, p.rows, p.experts, p.ranks, p.domains,
                 p.crossing)
                for p in study.placements
            ],
        ),
    )  # fmt: skip
