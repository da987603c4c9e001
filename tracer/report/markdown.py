"""`report.md`: the answer with its tables, to be read on its own."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from .summary import RESULT_HEADERS, Study, contributors, coverage_line, memory_line, result_row
from .terminal import chip_line
from .text import size


def render(study: Study, figures: dict[str, str]) -> str:
    """The report as Markdown; `figures` maps a chip id to the file name of its roofline."""
    inventory = study.inventory
    lines = [
        f"# What limits {study.name}",
        "",
        f"{study.source}, {study.dtype}. Made by `{study.command}`.",
        "",
        _table(
            [
                ("parameters", f"{inventory.parameters:,}"),
                ("active a token", f"{inventory.active_parameters:,}"),
                ("weights", size(inventory.weight_bytes)),
                ("KV cache a token", f"{inventory.kv_bytes_per_token:,} B"),
            ],
            ("", study.name),
        ),
    ]
    for chip in study.chips:
        steps = [step for step in study.steps if step.chip is chip]
        lines += ["", f"## {chip.name}", "", chip_line(chip), ""]
        lines.append(_table([result_row(step) for step in steps], RESULT_HEADERS))
        lines += [
            "",
            "`step` is the sum over kernels of launch + max(compute, memory); `ideal` is the bound "
            "in which everything overlaps. tokens/s in brackets: the step does not fit in a chip.",
        ]
        if chip.id in figures:
            lines += [
                "",
                f"![Roofline of {chip.name}]({figures[chip.id]})",
                "",
                "Left of the ridge memory is the limit, right of it the matrix units. A filled "
                "marker far below its hollow one loses time to kernels that do not overlap.",
            ]
        for step in steps:
            lines += [
                "",
                f"### {step.workload.phase}, {step.ledger.execution}",
                "",
                f"{step.times.why()}.",
                "",
                f"Memory: {memory_line(step)}.",
                "",
                _table(contributors(step, "module", 12), _contributor_headers("module")),
                "",
                _table(contributors(step, "op", 12), _contributor_headers("op")),
            ]
    lines += ["", "## Coverage and conventions", "", f"Coverage: {coverage_line(study.steps)}.", ""]
    lines += [f"* {note}" for note in (*study.notes(), *study.remarks)]
    lines += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in study.versions.items()) + "."]
    return "\n".join(lines) + "\n"


def _contributor_headers(what: str) -> tuple[str, ...]:
    return (what, "share of time", "time", "FLOPs", "bytes")


def _table(rows: Sequence[tuple[str, ...]], headers: tuple[str, ...]) -> str:
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)
