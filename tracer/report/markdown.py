"""`report.md`: the report to be read on its own. Tables as GitHub has them, diagrams as Mermaid."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .blocks import Block, Diagram, Figure, Formula, Table, Text, code, placed
from .report import Report
from .units import UNITS, show


def render(report: Report, figures: str = "figures") -> str:
    """The report; `figures` is the folder that the pictures are in."""
    lines = [f"# {report.title}", "", report.lead, "", f"Made by {code(report.command)}.", ""]
    items = list(placed(report.sections))
    lines += [
        f"{'  ' * (item.depth - 1)}* [{item.number} {item.section.title}](#{_anchor(item)})"
        for item in items
        if item.depth <= 2
    ]
    for item in items:
        lines += ["", f"{'#' * min(item.depth + 1, 5)} {item.number} {item.section.title}"]
        for block in item.section.blocks:
            lines += ["", _block(block, figures)]
    return "\n".join(lines) + "\n"


def _anchor(item: object) -> str:
    """The id that GitHub gives to a heading."""
    text = f"{item.number} {item.section.title}".lower()  # type: ignore[attr-defined]
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def _block(block: Block, figures: str) -> str:
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Table):
        return f"{block.caption}\n\n{table(block)}"
    if isinstance(block, Figure):
        return f"![{_plain(block.caption)}]({figures}/{block.name}.png)\n\n*{block.caption}*"
    if isinstance(block, Diagram):
        return f"{block.caption}\n\n```mermaid\n{mermaid(block)}\n```"
    if isinstance(block, Formula):
        return f"```text\n{block.text}\n```"
    return f"```text\n{block.text}\n```"


def table(block: Table) -> str:
    """A GitHub table; a total is its last row, in bold."""
    units = [column.unit for column in block.columns]
    lines = [
        _row([column.header for column in block.columns]),
        _row(["--:" if UNITS[unit].number else "---" for unit in units]),
    ]
    lines += [_row([_cell(v, u) for v, u in zip(row, units, strict=True)]) for row in block.rows]
    if block.total is not None:
        cells = [_cell(v, u) for v, u in zip(block.total, units, strict=True)]
        lines.append(_row([f"**{cell.strip('`')}**" if cell.strip("-`") else "" for cell in cells]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: object, unit: str) -> str:
    text = " ".join(show(value, unit).split()).replace("|", "\\|")
    if UNITS[unit].code and value is not None and text:
        return code(text)
    return text


def _plain(text: str) -> str:
    return re.sub(r"[`*\[\]]", "", text)


_SHAPES = {"module": ("[", "]"), "op": ("(", ")"), "state": ("[(", ")]"), "end": ("([", "])")}


def mermaid(diagram: Diagram) -> str:
    """The diagram as a Mermaid flowchart."""
    lines = ["flowchart TB"]
    for node in diagram.nodes:
        left, right = _SHAPES[node.kind]
        text = "<br/>".join(_escape(line) for line in node.lines if line)
        lines.append(f'    {node.key}{left}"{text}"{right}')
    lines += [f"    {a} --> {b}" for a, b in diagram.edges]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Mermaid's entities; a label is in quotes, and its text is HTML."""
    for character, name in (("#", "35"), ('"', "quot"), ("<", "lt"), (">", "gt"), ("`", "96")):
        text = text.replace(character, f"\0{name};")
    return text.replace("\0", "#")
