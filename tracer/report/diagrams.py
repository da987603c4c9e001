"""Diagrams of the traced program: the stack of layers, and what flows inside one module.

Nodes come from the calls, in the order in which they ran; arrows of `inside` from the storages that
one part writes and another reads. Nothing is drawn that did not run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..capture.records import FORWARD, Op, Trace
from ..cost.roles import storage_roles
from .blocks import Diagram, Node
from .text import plural

_MOST = 16  # boxes that a page holds


class _Unit(NamedTuple):
    """A box in the making: a module path, its class, and how many layers it stands for."""

    first: str
    last: str
    kind: str
    layers: int


def stack(trace: Trace) -> Diagram | None:
    """The model from input to output: modules in order of their first call, equal layers merged."""
    kinds: dict[str, str] = {}
    for call in trace.calls[1:]:
        if "<" not in call.module:
            kinds.setdefault(call.module, call.kind)
    layers = {path for path in kinds if _is_layer(path)}
    containers = {above for path in layers for above in _ancestors(path)} | {""}
    folds = {fold.module: fold.layers for fold in trace.folds}
    units: list[_Unit] = []
    seen: set[str] = set()
    for path in kinds:
        unit = next((p for p in (*_ancestors(path)[::-1], path) if p not in containers), None)
        if unit is None or unit in seen:
            continue
        seen.add(unit)
        here = _Unit(unit, unit, kinds.get(unit, ""), folds.get(unit, 1))
        before = units[-1] if units else None
        alike = before is not None and unit in layers and before.first in layers
        if alike and before is not None and _program(trace, before.last) == _program(trace, unit):
            units[-1] = before._replace(last=unit, layers=before.layers + here.layers)
        else:
            units.append(here)
    if len(units) < 2:
        return None
    if len(units) > _MOST:
        left = len(units) - _MOST
        gap = _Unit(f"{plural(left, 'more module')}", "", "", 1)
        units = [*units[: _MOST // 2], gap, *units[-(_MOST // 2) :]]
    shapes = _shapes(trace)
    nodes = [Node("input", ("input", _given(trace, units[0].first)), "end")]
    nodes += [Node(f"m{i}", _lines(unit, shapes), "module") for i, unit in enumerate(units)]
    keys = [node.key for node in nodes]
    caption = (
        "From input to output in order of execution, as traced; layers made of the same "
        "modules are one box."
    )
    return Diagram("stack", caption, tuple(nodes), tuple(itertools.pairwise(keys)))


def _lines(unit: _Unit, shapes: dict[str, str]) -> tuple[str, ...]:
    title = unit.first
    times = ""
    if unit.layers > 1:
        times = f" x {unit.layers}"
        number = unit.first.rpartition(".")[2]
        if number.isdigit():
            title = f"{unit.first} .. {int(number) + unit.layers - 1}"
    return tuple(
        line for line in (f"{title}", unit.kind + times, shapes.get(unit.last, "")) if line
    )


def inside(trace: Trace, module: str, name: str, title: str) -> Diagram | None:
    """What flows inside `module`: one box a child, or a run of its own ops; arrows from storages.

    None where there are fewer than three boxes or too many to read.
    """
    prefix = f"{module}." if module else ""
    roles = storage_roles(trace)
    nodes: list[Node] = []
    edges: dict[tuple[str, str], None] = {}
    writer: dict[int, str] = {}
    current, kinds = "", {call.module: call.kind for call in trace.calls}
    own: list[str] = []
    seen: dict[str, str] = {}
    for op in _once(trace, module):
        path = trace.module_of(op)
        child = path[len(prefix) :].split(".")[0] if path != module else ""
        inputs = [ref.storage for ref in op.inputs()]
        label = op.overload_packet.removeprefix("aten.").strip("_")
        if not child and (label in _PLUMBING or _carries_nothing(op, roles)):
            source = next((writer[s] for s in inputs if s in writer), None)
            if source is not None:  # a copy stands for what it copies
                writer |= {out.storage: source for out in op.outputs}
            if not op.mutates:
                continue
        if child:
            key = seen.setdefault(child, f"n{len(nodes)}")
            if key == f"n{len(nodes)}":
                nodes.append(Node(key, (child, kinds.get(prefix + child, "")), "module"))
            current, own = "", []
        else:
            weighty = any(word in label for word in _WEIGHTY)
            if not current or weighty or any(word in own[0] for word in _WEIGHTY if own):
                current, own = f"n{len(nodes)}", []
                nodes.append(Node(current, (), "op"))
            key = current
            if label not in own:
                own.append(label)
            nodes[int(key[1:])] = Node(key, (_few(own),), "op")
        for storage in inputs:
            role = roles[storage]
            source = writer.get(storage)
            if source is None:
                source = {"kv": "cache", "weights": ""}.get(role, "input")
            if source and source != key:
                edges[(source, key)] = None
        for storage in {*(o.storage for o in op.outputs if o.storage not in inputs), *op.mutates}:
            writer[storage] = key
            if roles[storage] == "kv":
                edges[(key, "cache")] = None
    if not 3 <= len(nodes) <= _MOST:
        return None
    ends = {key for edge in edges for key in edge}
    extra = [Node("input", ("from outside",), "end")] if "input" in ends else []
    if "cache" in ends:
        nodes.append(Node("cache", ("KV cache",), "state"))
        edges = {e: None for e in edges if e != ("cache", "cache")}
        loops = {b for a, b in edges if a == "cache"} & {a for a, b in edges if b == "cache"}
        for key in loops:  # written and read by one box: the arrow into it is enough
            edges.pop((key, "cache"), None)
    return Diagram(name, title, (*extra, *nodes), tuple(edges))


def _once(trace: Trace, module: str) -> Iterator[Op]:
    """Forward ops of the first call of `module` and of all below it."""
    started = False
    for op in trace.ops:
        call = trace.calls[op.call]
        inside_of = call.module == module or call.module.startswith(f"{module}.") or not module
        if op.phase != FORWARD:
            continue
        if inside_of and call.nth == 0:
            started = True
            yield op
        elif started and not inside_of:
            return


def _carries_nothing(op: Op, roles: list[str]) -> bool:
    """A constant in the making (a mask, a scale), not something that flows through."""
    return not any(roles[ref.storage] != "weights" for ref in op.inputs())


_PLUMBING = {
    "view", "reshape", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice", "select",
    "t", "split", "split_with_sizes", "unsafe_view", "alias", "detach", "as_strided", "to_copy",
    "clone", "empty", "empty_like", "arange", "chunk", "unbind", "lift_fresh",
}  # fmt: skip
_WEIGHTY = ("attention", "softmax", "mm", "conv", "topk")  # ops that get a box of their own


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", {len(names) - 4} more" if len(names) > 4 else "")


def _is_layer(path: str) -> bool:
    """The outermost member of a list of modules."""
    names = path.split(".")
    return names[-1].isdigit() and not any(name.isdigit() for name in names[:-1])


def _ancestors(path: str) -> list[str]:
    """Longest first, without the top."""
    names = path.split(".")
    return [".".join(names[:i]) for i in range(len(names) - 1, 0, -1)]


def _program(trace: Trace, layer: str) -> tuple[tuple[str, str], ...]:
    """Classes below `layer` with their relative paths: equal for layers that are alike."""
    return tuple(
        (call.module[len(layer) :], call.kind)
        for call in trace.calls
        if call.nth == 0 and (call.module == layer or call.module.startswith(layer + "."))
    )


def _shapes(trace: Trace) -> dict[str, str]:
    """The shape of the last result that each module made in its forward."""
    found: dict[str, str] = {}
    for op in trace.ops:
        if op.phase != FORWARD:
            continue
        if op.outputs and len(op.outputs[0].shape) > 1:
            text = _shape(op.outputs[0].shape)
            path = trace.module_of(op)
            for above in (path, *_ancestors(path)):
                if above:
                    found[above] = text
    return found


def _given(trace: Trace, module: str) -> str:
    """The shape of the first tensor that `module` is given."""
    roles = storage_roles(trace)
    for op in _once(trace, module):
        for ref in op.inputs():
            if roles[ref.storage] != "weights":
                return _shape(ref.shape)
    return ""


def _shape(shape: Iterable[int]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
