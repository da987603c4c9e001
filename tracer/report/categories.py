"""What a module is for, told from what it runs and where it stands, never from its name.

attention: the module that runs the attention product, and all below it (its projections); where a
layer runs it itself, those of its modules whose products go into it or read it, not its MLP.
experts: the module that runs grouped products, with the router and shared experts beside it.
feed-forward: other products inside a repeated layer; products: the same in a model without
attention. convolutions; embedding: a lookup in a table; head: products outside of the layers.
optimizer: the optimizer's step. rest: norms, residual sums, activations, copies of everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..capture.records import FORWARD, Op, Trace
from ..capture.records import OPTIMIZER as OPTIMIZER_PASS
from ..cost import Kernel, Part
from ..cost.dataflow import Dataflow
from ..machine.roofline import KernelTime

ATTENTION, EXPERTS, FEED_FORWARD, PRODUCTS = "attention", "experts", "feed-forward", "products"
CONVOLUTIONS, EMBEDDING, HEAD = "convolutions", "embedding", "head"
OPTIMIZER, REST = "optimizer", "rest"
ORDER = (
    ATTENTION, EXPERTS, FEED_FORWARD, PRODUCTS, CONVOLUTIONS, EMBEDDING, HEAD, REST, OPTIMIZER,
)  # fmt: skip

_COPIES = ("clone", "_to_copy", "copy_", "contiguous", "_unsafe_view", "reshape")
_PRODUCTS = ("aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm", "aten._scaled_mm")


class Categories:
    """The category of every module of a trace."""

    def __init__(self, trace: Trace) -> None:
        runs: dict[str, set[str]] = {}
        for op in trace.ops:
            if op.phase != OPTIMIZER_PASS:
                runs.setdefault(trace.module_of(op), set()).add(_role(op))
        attention = {path for path, roles in runs.items() if _attends(roles)} - {""}
        # Inside of a module that attends as a whole, nothing else is the attention.
        self._attention = {p for p in attention if not any(_below(p, q) for q in attention - {p})}
        self._experts = {
            self._block(path) for path, roles in runs.items() if "grouped" in roles
        } - {""}
        self._runs = runs
        self._projections = _projections(trace, {p for p in self._attention if _is_number(p)})
        self._by_path: dict[str, str] = {}

    def of(self, path: str) -> str:
        """The category of the module at `path`."""
        if path not in self._by_path:
            self._by_path[path] = self._find(path)
        return self._by_path[path]

    def of_part(self, kernel: Kernel, part: Part) -> str:
        """The category of an op: its module's, or the optimizer's."""
        return OPTIMIZER if kernel.phase == OPTIMIZER_PASS else self.of(part.module)

    @property
    def key_of_time(self) -> Callable[[KernelTime, int], str]:
        """For `Times.by`."""
        return lambda timed, number: self.of_part(timed.kernel, timed.kernel.parts[number])

    def _find(self, path: str) -> str:
        if any(self._of_attention(path, top) for top in self._attention):
            return ATTENTION
        if any(_below(path, top) for top in self._experts):
            return EXPERTS
        roles = self._runs.get(path, set())
        if "lookup" in roles:
            return EMBEDDING
        if "convolution" in roles and not roles & {"product", "batched"}:
            return CONVOLUTIONS  # one that also runs products, as a state space, is more than that
        if not _in_layer(path):
            if "product" not in roles:
                return REST
            return HEAD if self._attention or self._experts else PRODUCTS
        # The activation between two products belongs to them.
        block = self._block(path)
        if any(_below(top, block) for top in self._attention):
            return REST  # a layer's own ops, such as the residual sum
        if any("product" in self._runs[p] for p in self._runs if _below(p, block)):
            return FEED_FORWARD if self._attention else PRODUCTS
        return REST

    def _of_attention(self, path: str, top: str) -> bool:
        """Whether `path` belongs to the attention that `top` runs."""
        if not _below(path, top):
            return False
        known = self._projections.get(top)
        return path == top or not known or any(_below(path, child) for child in known)

    def _block(self, path: str) -> str:
        """The highest module around `path` that is neither a layer nor holds the attention."""
        while True:
            above = path.rpartition(".")[0]
            if not above or _is_layer(path) or _is_layer(above):
                return path
            if any(_below(top, above) for top in self._attention):
                return path
            path = above


def _projections(trace: Trace, layers: set[str]) -> dict[str, set[str]]:
    """Of layers that attend themselves: modules whose products feed the attention or read it."""
    found: dict[str, set[str]] = {}
    if not layers:
        return found
    flow = Dataflow(trace.ops)
    readers: dict[int, list[int]] = {}
    for index, before in enumerate(flow.producers):
        for at in before:
            readers.setdefault(at, []).append(index)
    places = [trace.module_of(op) for op in trace.ops]
    roles = [_role(op) for op in trace.ops]

    def walk(start: list[int], steps: Callable[[int], Iterable[int]], layer: str,
             passes: Callable[[int], bool]) -> None:  # fmt: skip
        seen, queue = set(start), list(start)
        while queue:
            for at in steps(queue.pop()):
                if at in seen or not _below(places[at], layer):
                    continue
                seen.add(at)
                if roles[at] == "product":
                    found.setdefault(layer, set()).add(places[at])
                elif passes(at):
                    queue.append(at)

    for layer in layers:
        core = [
            i for i, place in enumerate(places)
            if place == layer and roles[i] in ("attention", "softmax", "batched")
            and trace.ops[i].phase == FORWARD
        ]  # fmt: skip
        walk(core, lambda at: flow.producers[at], layer, lambda at: True)
        # What reads it through copies alone is its output; a residual sum has passed it on.
        walk(
            core,
            lambda at: readers.get(at, ()),
            layer,
            lambda at: roles[at] in ("softmax", "batched") or _base(trace.ops[at]) in _COPIES,
        )
        found.get(layer, set()).discard(layer)
    return found


def _below(path: str, top: str) -> bool:
    return path == top or path.startswith(top + ".")


def _is_number(path: str) -> bool:
    """A member of a list of modules, as layers are."""
    return path.rpartition(".")[2].isdigit()


def _is_layer(path: str) -> bool:
    """A member of the outermost list: those of a list inside of a layer may be parts of an MLP."""
    return _is_number(path) and not _in_layer(path.rpartition(".")[0])


def _in_layer(path: str) -> bool:
    return any(name.isdigit() for name in path.split("."))


def _attends(roles: set[str]) -> bool:
    """A fused attention op, or the softmax and the two products that it stands for."""
    return "attention" in roles or {"softmax", "batched"} <= roles


def _base(op: Op) -> str:
    return op.overload_packet.rpartition(".")[2]


def _role(op: Op) -> str:
    name, base = op.overload_packet, _base(op)
    if "attention" in base:
        return "attention"
    if "grouped" in base:
        return "grouped"
    if "softmax" in base:
        return "softmax"
    if base in ("bmm", "baddbmm"):
        return "batched"
    if base in ("embedding", "embedding_dense_backward", "embedding_bag", "_embedding_bag"):
        return "lookup"
    if "convolution" in base or base.startswith("conv"):
        return "convolution"
    return "product" if name in _PRODUCTS or base in ("_scaled_mm", "linear") else ""
