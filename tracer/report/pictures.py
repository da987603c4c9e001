"""Every figure of a report as SVG and PNG; the SVG also in a form that a page can take in."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .blocks import Figure, Section, blocks_of
from .figures import empty, plain_style
from .palette import GRID, INK

_DPI = 130  # of the PNG


class Picture(NamedTuple):
    """One figure: `svg` as a file, `png` as bytes."""

    name: str
    svg: str
    png: bytes

    @property
    def inline(self) -> str:
        """The SVG for a page: no XML header, ids of its own, text and axes in the page's colour."""
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        svg = re.sub(r' (width|height)="[\\d.]+pt"', "", svg, count=2)
        prefix = re.sub(r"\W", "-", self.name)
        svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
        svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", svg)
        for drawn, name in (
            (INK, "--ink"),
            ("#000000", "--ink"),
            (GRID, "--line"),
            ("#cccccc", "--line"),
        ):
            svg = svg.replace(drawn, f"var({name})")
        # The white that the figure stands on; the page has its own ground.
        return svg.replace("fill: #ffffff", "fill: var(--ground)")


def draw_all(sections: Sequence[Section]) -> Iterator[Picture]:
    """Every figure of `sections`, one at a time, so that none but one is in memory."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "tracer", "font.size": 9}
    for block in blocks_of(sections):
        if isinstance(block, Figure):
            with plain_style(**settings):
                figure = empty(block.size)
                block.draw(figure)
                figure.draw_without_rendering()  # lays it out, once for both files
                figure.set_layout_engine("none")
                svg, png = io.StringIO(), io.BytesIO()
                figure.savefig(svg, format="svg", metadata={"Date": None})
                figure.savefig(png, format="png", dpi=_DPI)
            yield Picture(block.name, svg.getvalue(), png.getvalue())
