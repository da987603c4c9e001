"""The dispatch hook: runs the op, writes down what it saw, keeps nothing alive.

Nothing is priced here. The hook's own cost is what limits how large a model can be traced, so it
does no more than read shapes, strides, dtypes and storage ids into tuples.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import compat
from .attention import sdpa
from .modules import OUTSIDE, ModuleStack
from .records import BACKWARD, FORWARD, OPTIMIZER, RECOMPUTE, Op, TensorRef
from .tensors import DTYPES, At, TensorTable

_SDPA = torch.ops.aten.scaled_dot_product_attention.default


class _Schema(NamedTuple):
    """What the hook needs of an op's schema."""

    name: str
    silent: bool  # profiler marks and the like: not work
    composite: bool  # has a decomposition into other aten ops, which are what runs
    written: tuple[tuple[int, str], ...] = ()  # (position, name) of arguments that the op writes
    resizes: bool = False  # changes the size of a storage


class Recorder(compat.TorchDispatchMode):
    """Notes every dispatched op, in any phase, on any device.

    Works under `no_grad`, `inference_mode`, autocast, activation checkpointing and an active
    `FakeTensorMode`. Ops on DTensors, results of collectives that are not waited for yet and jagged
    nested tensors are passed on to these, so that the ops behind them are seen.
    """

    supports_higher_order_operators = True

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.tensors = TensorTable()
        self.optimizers = 0  # optimizer steps that are open
        self.paused = False
        self.simplify: Callable[[Any, Any], tuple[Any, Any]] | None = None
        self.runner: Callable[[Any], Callable[..., Any]] | None = None  # what runs for an op
        self.pointwise: set[str] = set()
        self._notes: list[tuple[Any, ...]] = []
        self._stack = stack
        self._schemas: dict[Any, _Schema] = {}
        self._nodes = _Nodes()
        self._marks: list[bool] = []  # open profiler marks: whether each is an optimizer step

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        schema = self._schemas.get(func)
        if schema is None:
            schema = self._schemas[func] = _read_schema(func)
            if torch.Tag.pointwise in getattr(func, "tags", ()):
                self.pointwise.add(schema.name)
        if schema.silent or self.paused:
            if schema.name.startswith("profiler."):
                self._profiler_mark(schema.name, args)
            return func(*args, **(kwargs or {}))
        for kind in types:
            if kind.__name__ in ("DTensor", "AsyncCollectiveTensor", "NestedTensor"):
                return NotImplemented
        if schema.composite and not any(isinstance(a, Tensor) and a.is_nested for a in args):
            # inference_mode hands composite ops over whole (`linear`, `matmul`): look inside.
            with self:
                if func is _SDPA:
                    return sdpa(*args, **(kwargs or {}))
                return compat.decompose(func, args, kwargs or {})
        if self.simplify is not None:
            func, args = self.simplify(func, args)
            schema = self._schemas.get(func) or _read_schema(func)
        # Inputs are read before the op runs: `t_()` and `resize_()` change them under our hands.
        seen = tuple([self._describe(value) for value in args])
        named = (
            tuple([(name, self._describe(value)) for name, value in kwargs.items()])
            if kwargs
            else ()
        )
        run = func if self.runner is None else self.runner(func)
        out = run(*args, **kwargs) if kwargs else run(*args)

        task = compat.current_graph_task_id()
        node = None if task == compat.NO_GRAPH_TASK else compat.current_autograd_node()
        if task == compat.NO_GRAPH_TASK:
            # A closure of an optimizer runs with grad mode on, the update itself without.
            updating = self.optimizers > 0 and not torch.is_grad_enabled()
            phase = OPTIMIZER if updating else FORWARD
            call = self._nodes.note(self._stack.current)
        elif self._stack.task == task or (torch.is_grad_enabled() and compat.recomputes(node)):
            phase = RECOMPUTE  # a forward that runs inside of a backward
            call = self._nodes.note(self._stack.current)
        else:
            phase = BACKWARD
            call = self._nodes.call_of(node)
            if torch.is_grad_enabled():  # create_graph: this op makes a node that has its own
                self._nodes.note(call)

        outputs: Any = ()
        if isinstance(out, Tensor):
            outputs = (self.tensors.see(out, self.tensors.clock),)
        elif isinstance(out, (tuple, list)):
            outputs = tuple(_tensors(self._describe(out, self.tensors.clock)))
        mutates = self._written(schema.written, seen, named) if schema.written else ()
        if schema.resizes:
            self.tensors.resized(out)
        if node is not None and type(node).__name__ == "AccumulateGrad":
            self._mark_gradient(node, outputs)
        self._notes.append((schema.name, seen, named, outputs, mutates, call, phase))
        self.tensors.clock += 1
        return out

    def ops(self, resolve: Resolve | None = None) -> list[Op]:
        """What was noted, as records; `resolve` turns torch's symbolic sizes into ours."""
        refs = self.tensors.refs(resolve)
        none: dict[str, Any] = {}
        return [
            Op(
                name,
                _resolve(seen, refs, resolve),
                {key: _resolve_one(value, refs, resolve) for key, value in named}
                if named
                else none,
                tuple([refs[at] for at in outputs]),
                mutates,
                call,
                phase,
            )
            for name, seen, named, outputs, mutates, call, phase in self._notes
        ]

    def _profiler_mark(self, name: str, args: Any) -> None:
        """`Optimizer.step` runs inside a profiler mark, which ends also when the step raises."""
        if "_enter" in name:
            optimizer = bool(args) and str(args[0]).startswith("Optimizer.step#")
            self._marks.append(optimizer)
            self.optimizers += optimizer
        elif "_exit" in name and self._marks:
            self.optimizers -= self._marks.pop()

    def _mark_gradient(self, node: Any, outputs: tuple[At, ...]) -> None:
        """What an AccumulateGrad node of a parameter writes is the gradient."""
        parameter = self.tensors.role_of(node.variable)
        if parameter == "weights":
            for at in outputs:
                self.tensors.mark(self.tensors.storage_of(at), "gradients")

    def _describe(self, value: Any, born: int = -1) -> Any:
        """Tensors by their place in the table, lists as tuples, dtypes and the like by name.

        A storage that is new among an op's inputs existed before the trace; one that is new among
        its outputs was `born` by the op.
        """
        kind = type(value)
        if kind is Tensor or isinstance(value, Tensor):
            return self.tensors.see(value, born)
        if value is None or kind is int or kind is float or kind is bool or kind is str:
            return value
        if kind is list or kind is tuple:
            return tuple([self._describe(item, born) for item in value])
        return _name(value)

    def _written(
        self, written: Any, args: tuple[Any, ...], named: tuple[tuple[str, Any], ...]
    ) -> tuple[int, ...]:
        storages: dict[int, None] = {}
        for position, name in written:
            value = args[position] if position < len(args) else dict(named).get(name)
            for at in _tensors(value):
                storages[self.tensors.storage_of(at)] = None
        return tuple(storages)


class _Nodes:
    """Which module call made an autograd node, by the node's sequence number.

    Numbers grow. The node of an op exists when the hook runs, so the next number minus one is its
    own; nodes that autograd adds afterwards (an in-place op on a view makes several) lie between
    it and the next op's, and belong to the same call.
    """

    def __init__(self) -> None:
        self._first = compat.next_sequence_nr()
        self._numbers: list[int] = []
        self._calls: list[int] = []
        self._last = OUTSIDE

    def note(self, call: int) -> int:
        """The op being recorded runs in `call`; returns `call`."""
        number = compat.next_sequence_nr() - 1
        # An op that makes no node sees the number of one that is noted, or older than the trace.
        if number >= self._first and (not self._numbers or number > self._numbers[-1]):
            self._numbers.append(number)
            self._calls.append(call)
        return call

    def call_of(self, node: Any) -> int:
        """The call that made `node`; what has no number runs right after the node it serves."""
        if node is not None:
            number = node._sequence_nr()
            if number != compat.ACCUMULATE_GRAD_NR:
                place = bisect.bisect_right(self._numbers, number) - 1
                self._last = self._calls[place] if place >= 0 else OUTSIDE
        return self._last


def _name(value: Any) -> Any:
    """Names for dtypes, layouts and devices; shapes become tuples; the rest its `repr`."""
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, (int, float, complex, torch.SymInt)):
        return value
    if isinstance(value, torch.dtype):
        return DTYPES[value]
    if isinstance(value, (torch.layout, torch.memory_format)):
        return str(value).removeprefix("torch.")
    if isinstance(value, (torch.device, torch.SymFloat, torch.SymBool)):
        return str(value)
    return compat.group_name(value) or f"<{type(value).__name__}>"


def _tensors(value: Any) -> list[At]:
    if type(value) is At:
        return [value]
    if type(value) is tuple:
        return [at for item in value for at in _tensors(item)]
    return []


Resolve = Callable[[Any], Any]  # torch's symbolic size -> ours


def _resolve(
    values: tuple[Any, ...], refs: list[TensorRef], resolve: Resolve | None
) -> tuple[Any, ...]:
    return tuple([_resolve_one(value, refs, resolve) for value in values])


def _resolve_one(value: Any, refs: list[TensorRef], resolve: Resolve | None) -> Any:
    kind = type(value)
    if kind is At:
        return refs[value]
    if kind is torch.SymInt:
        return str(value) if resolve is None else resolve(value)
    return _resolve(value, refs, resolve) if kind is tuple else value


@functools.lru_cache(maxsize=4096)
def _read_schema(func: Any) -> _Schema:
    arguments = getattr(func, "_schema", None)
    if arguments is None:  # a higher-order operator
        return _Schema(f"higher_order.{func}.default", False, False)
    written = tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    if func.namespace == "c10d" and str(func).endswith("_.default"):
        # In-place collectives write their first argument; their schemas do not say so.
        written = ((0, func._schema.arguments[0].name),)
    silent = func.namespace in ("profiler", "prim", "debugprims")
    return _Schema(str(func), silent, compat.is_composite(func), written, "resize" in str(func))
