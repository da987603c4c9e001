"""The compact answer on a terminal."""

from __future__ import annotations

from tabulate import tabulate

from tracer.hardware import Chip, Cluster

from ..cost import EFFICIENT, NAIVE
from .summary import RESULT_HEADERS, Study, contributors, coverage_line, memory_line, result_row
from .text import si, size


def render(study: Study) -> str:
    """Results for every chip, what limits each phase and why, memory, coverage, conventions."""
    inventory = study.inventory
    lines = [
        f"{study.name} in {study.dtype} - {study.source}",
        f"{inventory.parameters:,} parameters, {inventory.active_parameters:,} active a token; "
        f"weights {size(inventory.weight_bytes)}"
        + (f"; KV {kv:,} B a token" if (kv := inventory.kv_bytes_per_token) else ""),
    ]
    for chip in study.chips:
        steps = [step for step in study.steps if step.chip is chip]
        lines += ["", chip_line(chip)]
        lines.append(
            tabulate(
                [result_row(step) for step in steps],
                RESULT_HEADERS,
                colalign=("left", "left", *["right"] * 12, "left", "left"),
                disable_numparse=True,
            )
        )
        shown = {step.ledger.execution for step in steps}
        detailed = EFFICIENT if EFFICIENT in shown else NAIVE
        for step in (s for s in steps if s.ledger.execution == detailed):
            lines += ["", f"{step.workload.phase}: {step.times.why()}"]
            lines.append(f"  memory: {memory_line(step)}")
            modules = contributors(step, "module")
            ops = contributors(step, "op")
            blank = ("", "", "", "", "")
            height = max(len(modules), len(ops))
            modules += [blank] * (height - len(modules))
            ops += [blank] * (height - len(ops))
            table = tabulate(
                [(*m[:3], "", *o[:3]) for m, o in zip(modules, ops, strict=True)],
                ("by module", "share", "time", "", "by op", "share", "time"),
                colalign=("left", "right", "right", "left", "left", "right", "right"),
                tablefmt="plain",
                disable_numparse=True,
            )
            lines += ["  " + line for line in table.splitlines()]
    lines += ["", f"coverage: {coverage_line(study.steps)}"]
    lines += [f"convention: {note}" for note in study.notes()]
    return "\n".join(lines)


def chip_line(chip: Chip) -> str:
    """One line of what matters of a chip."""
    peaks = ", ".join(
        f"{name} {si(chip.peak[name])}FLOP/s" for name in ("bf16", "fp8") if name in chip.peak
    )
    return (
        f"{chip.name} ({chip.id}): {peaks}, {si(chip.memory_bandwidth)}B/s, "
        f"{size(chip.memory_capacity)}"
    )


def chip_table(chips: list[Chip]) -> str:
    """All chips, a line each."""
    rows = [
        (
            chip.id,
            chip.name,
            *(f"{chip.peak[p] / 1e12:,.0f}" if p in chip.peak else "-" for p in ("bf16", "fp8")),
            f"{chip.memory_capacity / 1e9:,.0f}",
            f"{chip.memory_bandwidth / 1e12:.2f}",
            f"{chip.link_bandwidth / 1e9:,.0f}" if chip.link_bandwidth else "-",
        )
        for chip in chips
    ]
    headers = ("id", "name", "bf16 TFLOP/s", "fp8 TFLOP/s", "GB", "TB/s", "link GB/s one way")
    return tabulate(rows, headers, colalign=("left", "left", *["right"] * 5), disable_numparse=True)


def cluster_table(clusters: list[Cluster]) -> str:
    """All clusters, a line each."""
    rows = [
        (
            c.id,
            c.name,
            c.chip.id,
            f"{c.domain}",
            f"{c.link_bandwidth / 1e9:,.0f}",
            f"{c.nic_bandwidth / 1e9:,.0f}",
            f"{c.same_leaf * 1e6:.1f} / {c.cross_leaf * 1e6:.1f}",
            f"{c.largest:,}",
            f"{c.chip_hour:.2f}" if c.chip_hour else "-",
        )
        for c in clusters
    ]
    headers = ("id", "name", "chip", "domain", "link GB/s", "NIC GB/s a chip", "us leaf / spine",
               "chips", "USD/h")  # fmt: skip
    align = ("left", "left", "left", *["right"] * 6)
    return tabulate(rows, headers, colalign=align, disable_numparse=True)
