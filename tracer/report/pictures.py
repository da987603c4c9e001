"""Every figure of a report as SVG and PNG; the SVG also in a form that a page can take in."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from .blocks import Figure, Section, blocks_of
from .figures import empty, plain_style
from .palette import EMPTY, GRID, INK

_DPI = 130  # of the PNG
_AHEAD = 3  # figures that wait at a helper, so that it need not


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
            (EMPTY, "--panel"),
        ):
            svg = svg.replace(drawn, f"var({name})")
        # The white that the figure stands on; the page has its own ground.
        return svg.replace("fill: #ffffff", "fill: var(--ground)")


class Helper(Protocol):
    """Another process, which does what it is given in order (`tracer.beside`)."""

    def start(self, work: Callable[..., Any], *args: Any) -> None: ...

    @property
    def ready(self) -> bool: ...

    def answer(self) -> Any: ...


class Pictures:
    """Every figure of some sections, drawn here and by `helper`, which begins at once.

    A helper that dies costs nothing but its help.
    """

    def __init__(self, sections: Sequence[Section], helper: Helper | None = None) -> None:
        self._left = deque(block for block in blocks_of(sections) if isinstance(block, Figure))
        self._given: deque[Figure] = deque()
        self._helper = helper
        self._give()

    def __iter__(self) -> Iterator[Picture]:
        while self._left or self._given:
            picture = self._take() if self._given else None
            self._give()
            if picture is not None:
                yield picture
            elif self._left:
                yield draw(self._left.pop())

    def _give(self) -> None:
        try:
            while self._helper is not None and self._left and len(self._given) < _AHEAD:
                self._helper.start(draw, self._left[0])
                self._given.append(self._left.popleft())
        except RuntimeError:
            self._alone()

    def _take(self) -> Picture | None:
        """What the helper has drawn; None if it is still at it, and there is something to do."""
        assert self._helper is not None
        if self._left and not self._helper.ready:
            return None
        try:
            picture: Picture = self._helper.answer()
        except RuntimeError:
            self._alone()
            return None
        self._given.popleft()
        return picture

    def _alone(self) -> None:
        self._left.extend(self._given)
        self._given.clear()
        self._helper = None


def draw(block: Figure) -> Picture:
    """One figure as both files: laid out once, drawn once for each.

    Straight through the canvases: `Figure.savefig` draws everything once more, to throw it away.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    settings = {"svg.fonttype": "none", "svg.hashsalt": "tracer", "font.size": 9}
    with plain_style(**settings):
        figure = empty(block.size)
        block.draw(figure)
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
        svg, png = io.StringIO(), io.BytesIO()
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
        figure.dpi = _DPI
        FigureCanvasAgg(figure).print_png(png)
    return Picture(block.name, svg.getvalue(), png.getvalue())


def warm() -> None:
    """Import what drawing needs, while there is time."""
    empty((1.0, 1.0))
