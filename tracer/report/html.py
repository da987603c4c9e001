"""`report.html`: one file that needs nothing else. What comes from a model is escaped."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .blocks import Block, Diagram, Figure, Formula, Table, Text, placed
from .flow import draw
from .pictures import Picture
from .report import Report
from .units import UNITS, show

if TYPE_CHECKING:
    from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"
_LONG = 36  # characters of a name, from which it may break
_MID = 16  # of one that should not break at every word
_WIDE = 60  # characters of a cell that wants room
_SCRIPTS = ("page.js", "tables.js")
_EXPLORER = ("core.js", "closed.js", "roofline.js", "timeline.js", "tree.js")


def render(report: Report, pictures: Mapping[str, Picture]) -> str:
    """The page: report, figures and, if there is one, the explorer in one document."""
    import jinja2
    from markupsafe import Markup

    def read(name: str) -> Markup:
        return Markup((_TEMPLATES / name).read_text())

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("report.html.j2")
    explorer = report.explorer
    return template.render(
        report=report,
        name=re.sub(r"[`*]", "", report.title),
        inline=lambda text: Markup(inline(text)),
        items=list(placed(report.sections)),
        body=lambda block: Markup(_block(block, pictures, explorer is not None)),
        css=read("report.css"),
        scripts=[read(name) for name in (*_SCRIPTS, *(_EXPLORER if explorer else ()))],
        data=Markup(embedded(explorer())) if explorer else None,
    )


def embedded(document: Any) -> str:
    """JSON that may stand in a script element, whatever is in it."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def inline(text: str) -> str:
    """The marks of `blocks.Text` as HTML; everything else escaped."""
    escaped = html.escape(text)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", escaped)


def _block(block: Block, pictures: Mapping[str, Picture], leads: bool) -> str:
    """`leads`: whether names of modules and ops lead to the explorer."""
    if isinstance(block, Text):
        return _text(block.text)
    if isinstance(block, Table):
        return _table(block, leads)
    if isinstance(block, Figure):
        svg = pictures[block.name].inline
        return f'<figure id="figure-{block.name}">{svg}{_caption(block)}</figure>'
    if isinstance(block, Diagram):
        return f'<figure class="diagram">{draw(block)}{_caption(block)}</figure>'
    if isinstance(block, Formula):
        return f"<pre>{html.escape(block.text)}</pre>"
    text = html.escape(block.text)
    return f'<div id="widget-{block.name}"><noscript><pre>{text}</pre></noscript></div>'


def _caption(block: Figure | Diagram) -> str:
    return f"<figcaption>{inline(block.caption)}</figcaption>"


def _text(text: str) -> str:
    lines = text.split("\n")
    if all(line.startswith("* ") for line in lines):
        return "<ul>" + "".join(f"<li>{inline(line[2:])}</li>" for line in lines) + "</ul>"
    return f"<p>{inline(text)}</p>"


def _table(block: Table, leads: bool) -> str:
    columns = block.columns
    heads = "".join(
        f'<th scope="col" class="{_kind(c.unit)}" title="{html.escape(UNITS[c.unit].meaning)}">'
        f"{html.escape(c.header)}</th>"
        for c in columns
    )
    rows = "".join(f"<tr>{_cells(block, row, leads)}</tr>" for row in block.rows)
    total = f"<tfoot><tr>{_cells(block, block.total, False)}</tr></tfoot>" if block.total else ""
    return (
        f'<div class="table" id="table-{block.name}"><p class="caption">{inline(block.caption)} '
        f'<a class="csv" href="tables/{block.name}.csv">CSV</a></p><div class="scroll"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>{total}</table></div></div>"
    )


def _cells(block: Table, row: tuple[Any, ...], leads: bool) -> str:
    found = []
    for value, column in zip(row, block.columns, strict=True):
        unit = UNITS[column.unit]
        text = show(value, column.unit)
        if unit.number:
            raw = "" if value is None else f' data-v="{float(value)!r}"'
            found.append(f'<td class="n"{raw}>{html.escape(text)}</td>')
        elif leads and column.unit in ("module", "op") and value:
            long = " long" if len(text) > _LONG else ""
            found.append(
                f'<td><button class="trace{long}" data-{column.unit}="{html.escape(str(value))}">'
                f"{html.escape(text)}</button></td>"
            )
        elif unit.code:
            long = ' class="long"' if len(text) > _LONG else ""
            found.append(f"<td><code{long}>{html.escape(text)}</code></td>")
        else:
            wide = (
                ' class="wide"' if len(text) > _WIDE else ' class="mid"' if len(text) > _MID else ""
            )
            found.append(f"<td{wide}>{inline(text)}</td>")
    return "".join(found)


def _kind(unit: str) -> str:
    return "n" if UNITS[unit].number else "t"
