"""Statistics of the weights of a checkpoint, where one was given."""

from __future__ import annotations

from ..blocks import Column, Section, Text, section_of, table_of
from ..summary import Study


def section(study: Study) -> Section | None:
    """A row a pattern of names; absent without a checkpoint."""
    if not study.weights:
        return None
    return section_of(
        "Weight statistics",
        Text(
            "Read from the checkpoint, each weight once, for choosing a format: a wide range "
            "against the standard deviation, or many outliers, needs finer scales. **outliers** "
            "are beyond 6 standard deviations; **lost** is not zero, and rounded to zero by E4M3 "
            "with one scale a tensor, or one for each 128x128 block."
        ),
        table_of(
            "weights",
            "Values of the weights, all tensors of one name pattern together.",
            (
                Column("layers", "layers"),
                Column("pattern", "tensors named", "code"),
                Column("tensors", "tensors", "count"),
                Column("elements", "weights", "count"),
                Column("nonfinite", "NaN, inf", "count"),
                Column("mean", "mean", "number"),
                Column("std", "standard deviation", "number"),
                Column("abs_max", "largest", "number"),
                Column("outliers", "outliers", "ratio"),
                Column("lost_per_tensor", "lost, a tensor", "ratio"),
                Column("lost_per_block", "lost, a block", "ratio"),
                Column("worst", "loses most", "code"),
            ),
            [tuple(w) for w in study.weights],
        ),
    )
