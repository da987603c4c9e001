"""Rooflines. matplotlib is imported here and in `bars` only, and only when something is drawn.

Every drawing gets an empty figure. Axes are labelled with units; text that could overlap is kept
apart by hand where matplotlib would not.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tracer.hardware import Chip

from ..machine import Times
from .palette import GRID, INK, OTHER
from .text import seconds, si

SMALL = 8  # points of text


class Point(NamedTuple):
    """A marker: FLOP/B, FLOP/s, and the FLOP/s of the ideal bound (0: not drawn)."""

    label: str
    intensity: float
    rate: float
    ideal: float = 0.0
    colour: str = OTHER
    marker: str = "o"


class Roof(NamedTuple):
    """A chip's ceiling in one precision: of its matrix units, or of vector units without them."""

    chip: Chip
    precision: str

    @property
    def peak(self) -> float:
        """FLOP/s."""
        units = self.chip.peak if self.precision in self.chip.peak else self.chip.vector
        return float(units[self.precision])

    @property
    def ridge(self) -> float:
        """FLOP/B."""
        return self.peak / float(self.chip.memory_bandwidth)

    def at(self, intensity: float) -> float:
        """FLOP/s that it allows at `intensity`."""
        return min(self.peak, intensity * float(self.chip.memory_bandwidth))


def draw_roofline(figure: Any, roofs: Sequence[Roof], points: Sequence[Point], title: str) -> None:
    """`points` under `roofs`: FLOP/B against FLOP/s, both logarithmic.

    Filled markers are the estimate (FLOPs over the summed time), hollow ones the ideal bound.
    """
    axes = figure.add_subplot()
    shown = [p for p in points if p.intensity > 0 and p.rate > 0]
    xs = [p.intensity for p in shown] + [roof.ridge for roof in roofs]
    left, right = min(xs) / 4, max(xs) * 4
    styles = ("-", "--", "-.", ":")
    for number, roof in enumerate(roofs):
        knees = (left, roof.ridge, right)
        axes.plot(
            knees, [roof.at(x) for x in knees], styles[number % 4], color=INK, linewidth=1.4,
            label=f"{roof.chip.name}, {roof.precision}: {si(roof.peak)}FLOP/s, "
            f"ridge {roof.ridge:,.0f} FLOP/B",
        )  # fmt: skip
    for point in shown:
        place = {"color": point.colour, "markersize": 7, "linestyle": "none"}
        axes.plot(point.intensity, point.rate, point.marker, label=point.label, **place)
        if point.ideal:
            axes.plot(point.intensity, point.ideal, point.marker, markerfacecolor="none", **place)
            axes.plot(
                [point.intensity] * 2, [point.rate, point.ideal], color=point.colour,
                linewidth=0.8, alpha=0.6,
            )  # fmt: skip
    low = min([p.rate for p in shown] + [roofs[0].at(left)])
    axes.set_ylim(low / 4, max(roof.peak for roof in roofs) * 2.5)
    finish(axes, (left, right), title)


def draw_kernels(figure: Any, times: Times) -> None:
    """Every kernel of `times` under the roof of its chip, sized by its share of the time."""
    axes = figure.add_subplot()
    chip = times.chip
    points = [k for k in times.kernels if k.kernel.cost.total_flops and k.kernel.cost.total_bytes]
    precisions = {p for k in points for p in k.kernel.cost.flops if p in chip.peak} or {"bf16"}
    xs = [k.kernel.cost.intensity for k in points]
    roofs = [Roof(chip, name) for name in sorted(precisions & set(chip.peak))]
    ridge = max(roof.ridge for roof in roofs)
    left, right = min([*xs, ridge]) / 4, max([*xs, ridge]) * 4
    for roof in roofs:
        knees = (left, roof.ridge, right)
        axes.plot(knees, [roof.at(x) for x in knees], color=INK, linewidth=1.2)
        axes.annotate(
            f"{roof.precision} {roof.peak / 1e12:,.0f} TFLOP/s", (right, roof.peak), ha="right",
            va="bottom", fontsize=SMALL,
        )  # fmt: skip
    for kind in sorted({k.kernel.kind for k in points}):
        mine = [k for k in points if k.kernel.kind == kind]
        axes.scatter(
            [k.kernel.cost.intensity for k in mine],
            [k.kernel.cost.total_flops / k.total for k in mine],
            s=[12 + 600 * k.total / times.step for k in mine],
            alpha=0.6,
            label=kind,
        )
    finish(axes, (left, right), f"Kernels on {chip.name}; area is share of the time")


def kernel_roofline(times: Times, path: Path) -> None:
    """`draw_kernels` into a file."""
    with plain_style():
        figure = empty((8, 5))
        draw_kernels(figure, times)
        figure.savefig(path, dpi=150)


def finish(axes: Any, limits: tuple[float, float], title: str) -> None:
    """What every roofline shares: logarithmic axes with units, title and legend."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*limits)
    plain_ticks(axes, "", "FLOP/s")
    axes.set_xlabel("arithmetic intensity, FLOP/B of memory traffic")
    axes.set_ylabel("matrix FLOP/s")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", color=GRID, linewidth=0.6)
    legend(axes)


def plain_ticks(axes: Any, x_unit: str, y_unit: str) -> None:
    """Ticks of logarithmic axes at powers of ten, written as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis, unit in ((axes.xaxis, x_unit), (axes.yaxis, y_unit)):
        write = seconds if unit == "s" else functools.partial(_tick, unit=unit)
        axis.set_major_locator(LogLocator(10.0, numticks=9))
        axis.set_major_formatter(FuncFormatter(lambda value, _, write=write: write(value)))
        axis.set_minor_locator(NullLocator())


def _tick(value: float, unit: str) -> str:
    return f"{value:g}" if value < 1000 else f"{si(value, 1)}{unit}".strip()


def legend(axes: Any) -> None:
    """A small legend below the axes, where it covers nothing; each label once."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        axes.figure.legend(
            once.values(), once.keys(), fontsize=SMALL - 1, loc="outside lower center", ncols=2,
            frameon=False,
        )  # fmt: skip


def plain_style(**settings: Any) -> Any:
    """Defaults of matplotlib itself with `settings`, whatever the user's are; a context."""
    from matplotlib import style

    return style.context(["default", settings])


def empty(size: tuple[float, float]) -> Any:
    """An empty figure in inches; it belongs to nobody and needs no closing."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")
