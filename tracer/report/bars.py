"""Bars, shares and curves of the report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from .figures import SMALL, legend, plain_ticks
from .palette import GRID, INK, ON_COLOUR, OTHER, WAITS
from .text import seconds, size


def draw_shares(
    figure: Any,
    bars: Sequence[tuple[str, Mapping[str, float]]],
    colours: Mapping[str, str],
    label: str,
    title: str,
) -> None:
    """A bar a row, each 100 % of its own total, split by name; shares of 6 % and more are written.

    Args:
        figure: an empty one.
        bars: (name, values), from top to bottom.
        colours: by name; also the order of the pieces.
        label: of the axis: what the share is of.
        title: above.
    """
    axes = figure.add_subplot()
    names = [n for n in colours if any(values.get(n) for _, values in bars)]
    left = [0.0] * len(bars)
    for name in names:
        widths = [values.get(name, 0.0) / (sum(values.values()) or 1.0) * 100 for _, values in bars]
        axes.barh(range(len(bars)), widths, 0.7, left=left, color=colours[name], label=name)
        for row, (width, start) in enumerate(zip(widths, left, strict=True)):
            if width >= 6:
                axes.text(
                    start + width / 2, row, f"{width:.0f}", ha="center", va="center",
                    color=ON_COLOUR, fontsize=SMALL,
                )  # fmt: skip
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=SMALL)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of {label}")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def draw_ring(
    figure: Any, values: Mapping[str, float], colours: Mapping[str, str], title: str, unit: str
) -> None:
    """Shares of a whole as a ring; the numbers stand in the legend, where they cannot overlap."""
    axes = figure.add_subplot()
    whole = sum(values.values()) or 1.0
    names = [name for name in values if values[name] > 0]
    wedges, _ = axes.pie(
        [values[name] for name in names], colors=[colours.get(n, OTHER) for n in names],
        startangle=90, counterclock=False, wedgeprops={"width": 0.42, "linewidth": 0},
    )  # fmt: skip
    labels = [f"{n}: {values[n] / whole:.2%} ({values[n]:,.0f} {unit})" for n in names]
    axes.legend(
        wedges, labels, fontsize=SMALL, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
    )
    axes.set_title(title, fontsize=10)


def draw_held(
    figure: Any, bars: Sequence[tuple[str, Mapping[str, float]]], colours: Mapping[str, str],
    limit: float, chip: str,
) -> None:  # fmt: skip
    """Bytes held, a bar a workload, with the memory of one chip as a line."""
    axes = figure.add_subplot()
    names = [n for n in colours if any(values.get(n) for _, values in bars)]
    left = [0.0] * len(bars)
    for name in names:
        widths = [values.get(name, 0.0) / 1e9 for _, values in bars]
        axes.barh(range(len(bars)), widths, 0.7, left=left, color=colours[name], label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    most = max([*left, limit / 1e9])
    for row, end in enumerate(left):
        axes.text(end + most * 0.01, row, size(end * 1e9), va="center", fontsize=SMALL)
    axes.axvline(limit / 1e9, color=INK, linewidth=1.2, linestyle="--", label=f"one {chip}")
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=SMALL)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, most * 1.18)
    axes.set_xlabel("GB held at the worst moment (1 GB = 1e9 bytes)")
    axes.set_title("Memory that a step holds", fontsize=10)
    axes.legend(fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def draw_stacked(
    figure: Any, bars: Sequence[tuple[str, Mapping[str, float]]], colours: Mapping[str, str],
    label: str, title: str,
) -> None:  # fmt: skip
    """Seconds, a bar a row, its pieces one behind the other; the sum stands at the end.

    `colours` by piece, also their order; `label` of the axis, with its unit.
    """
    axes = figure.add_subplot()
    names = [n for n in colours if any(values.get(n) for _, values in bars)]
    left = [0.0] * len(bars)
    for name in names:
        widths = [values.get(name, 0.0) for _, values in bars]
        axes.barh(range(len(bars)), widths, 0.7, left=left, color=colours[name], label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    most = max(left, default=0.0) or 1.0
    for row, end in enumerate(left):
        axes.text(end + most * 0.01, row, seconds(end), va="center", fontsize=SMALL)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=SMALL)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, most * 1.15)
    axes.xaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10)
    figure.legend(fontsize=SMALL, loc="outside lower center", ncols=3, frameon=False)


_MARKS: tuple[Any, ...] = (":", "-.", (0, (6, 3)), (0, (1, 4)))  # so that a legend tells which


def draw_curves(
    figure: Any, curves: Sequence[tuple[str, Sequence[float], Sequence[float], str, str]],
    labels: tuple[str, str], title: str, marks: Sequence[tuple[str, float]] = (),
    level: tuple[str, float] | None = None,
) -> None:  # fmt: skip
    """Curves over a logarithmic axis: (name, xs, ys, colour, style); `marks` are vertical lines."""
    axes = figure.add_subplot()
    for name, xs, ys, colour, style in curves:
        axes.plot(xs, ys, style, color=colour, label=name, markersize=4, marker="o")
    for (name, x), style in zip(marks, itertools.cycle(_MARKS), strict=False):
        axes.axvline(x, color=INK, linewidth=0.9, linestyle=style, label=name)
    if level is not None:
        axes.axhline(level[1], color=INK, linewidth=0.9, linestyle="--", label=level[0])
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_ticks(axes, "", "s")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", color=GRID, linewidth=0.6)
    legend(axes)


def draw_signed(figure: Any, rows: Sequence[tuple[str, float]], label: str, title: str) -> None:
    """A bar a row to the left or the right of zero, largest on top."""
    axes = figure.add_subplot()
    values = [value for _, value in rows]
    colours = [WAITS["compute"] if value > 0 else WAITS["memory"] for value in values]
    axes.barh(range(len(rows)), values, 0.6, color=colours)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=SMALL)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10)
    axes.grid(True, axis="x", color=GRID, linewidth=0.6)
