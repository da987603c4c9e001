"""Figures. matplotlib is imported here only, and only when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tracer.hardware import Chip

from ..machine import Times
from ..predict import Step

_COLOURS = {"training": "#b5482a", "prefill": "#2f6f9f", "decode": "#3d7a4a"}
_MARKERS = {"naive": "o", "efficient": "s"}


def roofline(steps: Sequence[Step], chip: Chip, precision: str, path: Path) -> None:
    """Draw `steps` under the roof of `chip`: FLOP/B against FLOP/s, both logarithmic.

    Filled markers are the estimate (published FLOPs over the summed time), hollow ones the ideal
    bound of the same work.
    """
    plt = _pyplot()
    peak = chip.peak_for(precision)
    ridge = chip.ridge(precision)
    xs = [step.cost.intensity for step in steps if step.cost.intensity > 0]
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
            if not step.cost.intensity:
                continue
            phase, execution = step.workload.phase, step.ledger.execution
            colour, marker = _COLOURS.get(phase, "#555555"), _MARKERS.get(execution, "D")
            flops = step.cost.total_flops
            axes.plot(
                step.cost.intensity, flops / step.times.step, marker, color=colour, markersize=7,
                label=f"{phase}, {execution}",
            )  # fmt: skip
            axes.plot(
                step.cost.intensity, flops / step.times.bound, marker, markerfacecolor="none",
                markeredgecolor=colour, markersize=7,
            )  # fmt: skip
        axes.set_ylim(top=peak * 3)
        title = f"{chip.name}: estimate (filled) and ideal bound (hollow)"
        _finish(figure, axes, (left, right), title, path)


def kernel_roofline(times: Times, path: Path) -> None:
    """Draw every kernel of `times` under the roof of its chip, sized by its share of the time."""
    plt = _pyplot()
    chip = times.chip
    points = [k for k in times.kernels if k.kernel.cost.total_flops and k.kernel.cost.total_bytes]
    precisions = {p for k in points for p in k.kernel.cost.flops if p in chip.peak} or {"bf16"}
    xs = [k.kernel.cost.intensity for k in points]
    peaks = {p: chip.peak_for(p) for p in sorted(precisions & set(chip.peak))}
    ridge = max(peaks.values()) / chip.memory_bandwidth
    left, right = min([*xs, ridge]) / 4, max([*xs, ridge]) * 4
    figure, axes = plt.subplots(figsize=(8, 5), dpi=150)
    for name, peak in peaks.items():
        knee = peak / chip.memory_bandwidth
        axes.plot(
            [left, knee, right], [chip.memory_bandwidth * left, peak, peak],
            color="#222222", linewidth=1.2,
        )  # fmt: skip
        axes.annotate(
            f"{name} {peak / 1e12:,.0f} TFLOP/s", (right, peak), ha="right", va="bottom", fontsize=8
        )
    for kind in sorted({k.kernel.kind for k in points}):
        mine = [k for k in points if k.kernel.kind == kind]
        axes.scatter(
            [k.kernel.cost.intensity for k in mine],
            [k.kernel.cost.total_flops / k.total for k in mine],
            s=[12 + 600 * k.total / times.step for k in mine],
            alpha=0.6,
            label=kind,
        )
    _finish(figure, axes, (left, right), f"Kernels on {chip.name}; area is share of the time", path)


def _finish(figure: Any, axes: Any, limits: tuple[float, float], title: str, path: Path) -> None:
    """What every roofline shares: logarithmic axes with units, title and legend; then the file."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*limits)
    axes.set_xlabel("arithmetic intensity, FLOP/B of memory traffic")
    axes.set_ylabel("matrix FLOP/s")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    _pyplot().close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
