"""Figures. matplotlib is imported here only, and only when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tracer.hardware import Chip

from ..predict import Step

_COLOURS = {"training": "#b5482a", "prefill": "#2f6f9f", "decode": "#3d7a4a"}
_MARKERS = {"naive": "o", "efficient": "s"}


def roofline(steps: Sequence[Step], chip: Chip, precision: str, path: Path) -> None:
    """Draw `steps` under the roof of `chip`: FLOP/B against FLOP/s, both logarithmic.

    Filled markers are the estimate (published FLOPs over the summed time), hollow ones the ideal
    bound of the same work.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    peak = chip.peak_for(precision)
    ridge = chip.ridge(precision)
    xs = [step.intensity for step in steps if step.intensity > 0]
    left = min([*xs, ridge]) / 4
    right = max([*xs, ridge]) * 4
    with plt.style.context("default"):
        figure, axes = plt.subplots(figsize=(8, 5), dpi=150)
        roof = [min(peak, chip.memory_bandwidth * x) for x in (left, ridge, right)]
        axes.plot([left, ridge, right], roof, color="#222222", linewidth=1.6)
        axes.annotate(
            f"{precision} peak {peak / 1e12:,.0f} TFLOP/s",
            (right, peak), ha="right", va="bottom", fontsize=8,
        )  # fmt: skip
        axes.annotate(
            f"ridge {ridge:,.0f} FLOP/B", (ridge, peak), ha="center", va="bottom", fontsize=8,
            xytext=(0, 14), textcoords="offset points",
        )  # fmt: skip
        for step in steps:
            if not step.intensity:
                continue
            phase, execution = step.workload.phase, step.ledger.execution
            colour, marker = _COLOURS.get(phase, "#555555"), _MARKERS.get(execution, "D")
            flops = step.cost.total_flops
            axes.plot(
                step.intensity, flops / step.times.step, marker, color=colour, markersize=7,
                label=f"{phase}, {execution}",
            )  # fmt: skip
            axes.plot(
                step.intensity, flops / step.times.bound, marker, markerfacecolor="none",
                markeredgecolor=colour, markersize=7,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(top=peak * 3)
        axes.set_xlabel("arithmetic intensity, FLOP/B of memory traffic")
        axes.set_ylabel("matrix FLOP/s")
        axes.set_title(f"{chip.name}: estimate (filled) and ideal bound (hollow)", fontsize=10)
        axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=8, loc="lower right")
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)
