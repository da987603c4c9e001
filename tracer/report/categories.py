"""What a module is for, told from what it runs and where it stands, never from its name.

attention: the module that runs the attention product, and all below it (its projections).
experts: the module that runs grouped products, with the router and shared experts beside it.
feed-forward: other products inside a repeated layer; products: the same in a model without
attention. convolutions; embedding: a lookup in a table; head: products outside of the layers.
optimizer: the optimizer's step. rest: norms, residual sums, activations, copies of everything else.
"""

from __future__ import annotations

from collections.abc import Callable

from ..capture.records import OPTIMIZER as OPTIMIZER_PASS
from ..capture.records import Op, Trace
from ..cost import Kernel, Part
from ..machine.roofline import KernelTime

ATTENTION, EXPERTS, FEED_FORWARD, PRODUCTS = "attention", "experts", "feed-forward", "products"
CONVOLUTIONS, EMBEDDING, HEAD = "convolutions", "embedding", "head"
OPTIMIZER, REST = "optimizer", "rest"
ORDER = (
    ATTENTION, EXPERTS, FEED_FORWARD, PRODUCTS, CONVOLUTIONS, EMBEDDING, HEAD, REST, OPTIMIZER,
)  # fmt: skip

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
        if any(_below(path, top) for top in self._attention):
            return ATTENTION
        if any(_below(path, top) for top in self._experts):
            return EXPERTS
        roles = self._runs.get(path, set())
        if "lookup" in roles:
            return EMBEDDING
        if "convolution" in roles:
            return CONVOLUTIONS
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

    def _block(self, path: str) -> str:
        """The highest module around `path` that is neither a layer nor holds the attention."""
        while True:
            above = path.rpartition(".")[0]
            if not above or _is_number(path) or _is_number(above):
                return path
            if any(_below(top, above) for top in self._attention):
                return path
            path = above


def _below(path: str, top: str) -> bool:
    return path == top or path.startswith(top + ".")


def _is_number(path: str) -> bool:
    """A member of a list of modules, as layers are."""
    return path.rpartition(".")[2].isdigit()


def _in_layer(path: str) -> bool:
    return any(name.isdigit() for name in path.split("."))


def _attends(roles: set[str]) -> bool:
    """A fused attention op, or the softmax and the two products that it stands for."""
    return "attention" in roles or {"softmax", "batched"} <= roles


def _role(op: Op) -> str:
    name = op.overload_packet
    base = name.rpartition(".")[2]
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
