"""Statistics of the weights of a checkpoint, where one was given."""

from __future__ import annotations

from ..blocks import Column, Section, Text, section_of, table_of
from ..summary import Study


def section(study: Study) -> Section | None:
    """One row a parameter; absent without a checkpoint."""
    if not study.weights:
        return None
    return section_of(
        "Weight statistics",
        Text(
            "Read from the checkpoint, for choosing a format: a wide range against the standard "
            "deviation, or many outliers, needs finer scales."
        ),
        table_of(
            "weights",
            "Values of each parameter. *outliers* lie more than 6 standard deviations from the "
            "mean.".replace("*outliers*", "**outliers**"),
            (
                Column("parameter", "parameter", "code"),
                Column("shape", "shape"),
                Column("dtype", "dtype", "code"),
                Column("numel", "elements", "count"),
                Column("mean", "mean", "number"),
                Column("std", "standard deviation", "number"),
                Column("low", "lowest", "number"),
                Column("high", "highest", "number"),
                Column("zeros", "zeros", "ratio"),
                Column("outliers", "outliers", "ratio"),
            ),
            [(w.name, " x ".join(map(str, w.shape)), *w[2:]) for w in study.weights],
        ),
    )
