"""A diagram as SVG: boxes in rows by how far they are from the start, arrows between them."""

from __future__ import annotations

import html
from typing import NamedTuple

from .blocks import Diagram, Node

_CHARACTER, _LINE, _PAD, _GAP, _ROW = 6.7, 15.0, 10.0, 26.0, 34.0
_WIDEST = 42  # characters of a line


class _Box(NamedTuple):
    """Centre and size, pixels."""

    x: float
    y: float
    width: float
    height: float


def draw(diagram: Diagram) -> str:
    """An `<svg>` of `diagram` that takes its colours from the page; text is escaped."""
    boxes, width, height = _place(diagram)
    arrows = "".join(
        _arrow(boxes[a], boxes[b], boxes, number % 5) for number, (a, b) in enumerate(diagram.edges)
    )
    nodes = "".join(_node(node, boxes[node.key]) for node in diagram.nodes)
    marker = f"tip-{diagram.name}"
    arrows = arrows.replace("<path", f'<path marker-end="url(#{marker})"')
    return (
        f'<svg class="flow" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'style="max-width:{width:.0f}px" aria-label="{html.escape(diagram.caption)}">'
        f'<defs><marker id="{marker}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" class="tip"/></marker></defs>'
        f'<g class="arrows">{arrows}</g>{nodes}</svg>'
    )


def _rows(diagram: Diagram) -> dict[str, int]:
    """The row of each box: one below the lowest of those that point to it."""
    order = {node.key: number for number, node in enumerate(diagram.nodes)}
    row = dict.fromkeys(order, 0)
    forward = [(a, b) for a, b in diagram.edges if _before(diagram, order, a, b)]
    for _ in order:  # no path is longer than there are boxes
        for a, b in forward:
            row[b] = max(row[b], row[a] + 1)
    return row


def _before(diagram: Diagram, order: dict[str, int], a: str, b: str) -> bool:
    """Whether the arrow goes down: a state (a cache) stands beside the flow, not in it."""
    kinds = {node.key: node.kind for node in diagram.nodes}
    if kinds[a] == "state":
        return not any(edge == (b, a) for edge in diagram.edges)
    return kinds[b] == "state" or order[a] < order[b]


def _place(diagram: Diagram) -> tuple[dict[str, _Box], float, float]:
    rows = _rows(diagram)
    above: dict[str, list[str]] = {}
    for a, b in diagram.edges:
        above.setdefault(b, []).append(a)
    by_row: dict[int, list[Node]] = {}
    for node in diagram.nodes:
        by_row.setdefault(rows[node.key], []).append(node)
    sizes = {node.key: _size(node) for node in diagram.nodes}
    widest = max(
        sum(sizes[n.key][0] for n in nodes) + _GAP * (len(nodes) - 1) for nodes in by_row.values()
    )
    # Arrows that pass by a row run beside its boxes.
    middle = widest / 2 + 90
    boxes: dict[str, _Box] = {}
    top = 10.0
    for number in sorted(by_row):
        nodes = by_row[number]

        def pull(node: Node) -> float:
            before = [boxes[a].x for a in above.get(node.key, ()) if a in boxes]
            return sum(before) / len(before) if before else middle

        nodes.sort(key=pull)
        total = sum(sizes[n.key][0] for n in nodes) + _GAP * (len(nodes) - 1)
        tall = max(sizes[n.key][1] for n in nodes)
        left = middle - total / 2
        for node in nodes:
            width, height = sizes[node.key]
            boxes[node.key] = _Box(left + width / 2, top + tall / 2, width, height)
            left += width + _GAP
        top += tall + _ROW
    return boxes, 2 * middle, top - _ROW + 10


def _size(node: Node) -> tuple[float, float]:
    lines = [line for line in node.lines if line]
    longest = max((min(len(line), _WIDEST) for line in lines), default=1)
    return longest * _CHARACTER + 2 * _PAD, len(lines) * _LINE + _PAD


def _arrow(a: _Box, b: _Box, boxes: dict[str, _Box], lane: int) -> str:
    """From `a` to `b`; long arrows run beside the boxes, each in a lane of its own."""
    if b.y > a.y:
        start, end = a.y + a.height / 2, b.y - b.height / 2
        between = [box for box in boxes.values() if start < box.y < end]
        if between:  # around all of them, on the right
            ends = a.x + a.width / 4, b.x + b.width / 4
            right = max(*(box.x + box.width / 2 for box in between), *ends) + 14
            x = right + 7 * lane
            return (
                f'<path d="M{ends[0]:.0f} {start:.0f}C{ends[0]:.0f} {start + 18:.0f} {x:.0f} '
                f"{start:.0f} {x:.0f} {start + 26:.0f}L{x:.0f} {end - 26:.0f}C{x:.0f} {end:.0f} "
                f'{ends[1]:.0f} {end - 18:.0f} {ends[1]:.0f} {end:.0f}"/>'
            )
        half = (end - start) / 2
        return (
            f'<path d="M{a.x:.0f} {start:.0f}C{a.x:.0f} {start + half:.0f} {b.x:.0f} '
            f'{end - half:.0f} {b.x:.0f} {end:.0f}"/>'
        )
    side = 1 if a.x <= b.x else -1
    return (
        f'<path d="M{a.x + side * a.width / 2:.0f} {a.y:.0f}L{b.x - side * b.width / 2:.0f} '
        f'{b.y:.0f}"/>'
    )


def _node(node: Node, box: _Box) -> str:
    lines = [line for line in node.lines if line]
    left, top = box.x - box.width / 2, box.y - box.height / 2
    radius = {"end": box.height / 2, "state": 10}.get(node.kind, 4)
    text = "".join(
        f'<text x="{box.x:.0f}" y="{top + _PAD / 2 + _LINE * (i + 0.75):.0f}" '
        f'class="{name}">{html.escape(_cut(line))}</text>'
        for i, (line, name) in enumerate(zip(lines, ("main", *["rest"] * len(lines)), strict=False))
    )
    return (
        f'<g class="{node.kind}"><rect x="{left:.0f}" y="{top:.0f}" width="{box.width:.0f}" '
        f'height="{box.height:.0f}" rx="{radius:.0f}"/>{text}</g>'
    )


def _cut(line: str) -> str:
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 3]}..."
