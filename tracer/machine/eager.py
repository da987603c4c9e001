"""A profiled eager forward, op by op, against the time model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracer.hardware import load_chip

from .calibration import Calibration, calibration_of
from .families import PRECISIONS, predict, prompt
from .kernels import prefill
from .measured import COLUMNS, Row, Sample

CLASSES = {
    "gemm": "gemm", "attention_prefill": "attention", "contiguous": "elementwise, contiguous",
    "scalar": "elementwise, broadcast or strided", "gather": "cat and gather",
    "reduce": "row reduction",
}  # fmt: skip


@dataclass(frozen=True)
class EagerScore:
    """Milliseconds of GPU time of one forward, predicted and measured, by class of op."""

    name: str
    chip: str
    classes: dict[str, tuple[float, float]]
    unmodelled: float  # ms of ops that no family takes, counted as missed

    @property
    def predicted(self) -> float:
        """All of it."""
        return sum(p for p, _ in self.classes.values())

    @property
    def measured(self) -> float:
        """All of it, ops without a family included."""
        return sum(m for _, m in self.classes.values()) + self.unmodelled

    def as_markdown(self) -> str:
        """A small table."""
        lines = [
            f"Eager forward `{self.name}` on {self.chip}, all ops, ms of GPU time:", "",
            "| ops | measured | predicted | error % |", "| - | -: | -: | -: |",
        ]  # fmt: skip
        total = ("total", (self.predicted, self.measured))
        for name, (predicted, measured) in [*self.classes.items(), total]:
            error = (predicted / measured - 1) * 100
            lines.append(f"| {name} | {measured:.3f} | {predicted:.3f} | {error:+.1f} |")
        return "\n".join(lines)


def score_eager(name: str, rows: Sequence[tuple[Row, float, Sample | None]]) -> EagerScore:
    """Predicted and measured time of the rows, each as often as it ran."""
    from .kernels import CLASSES as ACCESS

    classes: dict[str, tuple[float, float]] = {}
    unmodelled, chip = 0.0, ""
    for row, count, sample in rows:
        total = row.microseconds("kernel_us_sum") * 1e3
        if sample is None:
            unmodelled += total
            continue
        chip = sample.chip
        key = sample.family
        if key == "elementwise":
            key = ACCESS[int(sample.values[0])]
        seconds = eager_seconds(sample, calibration_of(load_chip(chip)))
        predicted, measured = classes.get(CLASSES[key], (0.0, 0.0))
        classes[CLASSES[key]] = (predicted + seconds * count * 1e3, measured + total)
    return EagerScore(name, chip, classes, unmodelled)


def eager_seconds(sample: Sample, cal: Calibration) -> float:
    """One kernel as torch runs it: its flash attention is in portable instructions."""
    columns = dict(zip(COLUMNS[sample.family], (np.array([v]) for v in sample.values), strict=True))
    if sample.family != "attention_prefill":
        return float(predict(sample.family, columns, cal)[0])
    r = cal.rates(PRECISIONS[sample.family])
    constants = cal["attention_prefill"]
    return float(prefill(prompt(columns), r, constants, cal["power"], portable=True).seconds[0])
