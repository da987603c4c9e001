"""The dispatch hook: runs the op, writes down what it saw, keeps nothing alive.

Nothing is priced here. The hook's own cost is what limits how large a model can be traced, so it
does no more than read shapes, strides, dtypes and storage ids into tuples.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    written: tuple[tuple[int, str], ...]  # (position, name) of arguments that the op writes


class Recorder(compat.TorchDispatchMode):
    """Notes every dispatched op, in any phase, on any device.

    Works under `no_grad`, `inference_mode`, autocast, activation checkpointing and an active
    `FakeTensorMode`. DTensor ops are passed on, so that only the local ops behind them are seen.
    """

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.tensors = TensorTable()
        self.optimizers = 0  # optimizer steps that are open
        self.paused = False
        self.pointwise: set[str] = set()
        self._notes: list[tuple[Any, ...]] = []
        self._stack = stack
        self._schemas: dict[Any, _Schema] = {}
        self._call_of_node: dict[int, int] = {}
        self._last_backward_call = OUTSIDE

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        schema = self._schemas.get(func)
        if schema is None:
            schema = self._schemas[func] = _read_schema(func)
            if torch.Tag.pointwise in getattr(func, "tags", ()):
                self.pointwise.add(schema.name)
        if schema.silent or self.paused:
            return func(*args, **(kwargs or {}))
        if schema.composite:
            # inference_mode hands over composite ops whole (`linear`, `matmul`): look inside.
            run = sdpa if func is _SDPA else func.decompose
            with self:
                out = run(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        for kind in types:
            if kind.__name__ == "DTensor":
                return NotImplemented
        # Inputs are read before the op runs: `t_()` and `resize_()` change them under our hands.
        seen = tuple([self._describe(value) for value in args])
        named = (
            tuple([(name, self._describe(value)) for name, value in kwargs.items()])
            if kwargs
            else ()
        )
        out = func(*args, **kwargs) if kwargs else func(*args)

        if compat.current_graph_task_id() == compat.NO_GRAPH_TASK:
            call = self._stack.current
            phase = OPTIMIZER if self.optimizers else FORWARD
            # The node of this op exists already, so the next number minus one is its own. The
            # first op to see a number made the node; later ops without a node see it again.
            self._call_of_node.setdefault(compat.next_sequence_nr() - 1, call)
        elif self._stack.inside or torch.is_grad_enabled():
            # A forward inside of a backward node: autograd itself runs without grad mode.
            call = self._stack.current
            phase = RECOMPUTE
            self._call_of_node.setdefault(compat.next_sequence_nr() - 1, call)
        else:
            phase = BACKWARD
            call = self._call_of_current_node()

        outputs: Any = ()
        if isinstance(out, Tensor):
            outputs = (self.tensors.see(out, self.tensors.clock),)
        elif isinstance(out, (tuple, list)):
            outputs = tuple(_tensors(self._describe(out, self.tensors.clock)))
        mutates = self._written(schema.written, seen, named) if schema.written else ()
        self._notes.append((schema.name, seen, named, outputs, mutates, call, phase))
        self.tensors.clock += 1
        return out

    def ops(self) -> list[Op]:
        """What was noted, as records."""
        refs = self.tensors.refs()
        none: dict[str, Any] = {}
        return [
            Op(
                name,
                _resolve(seen, refs),
                {key: _resolve_one(value, refs) for key, value in named} if named else none,
                tuple([refs[at] for at in outputs]),
                mutates,
                call,
                phase,
            )
            for name, seen, named, outputs, mutates, call, phase in self._notes
        ]

    def _call_of_current_node(self) -> int:
        node = compat.current_autograd_node()
        if node is not None:
            call = self._call_of_node.get(node._sequence_nr())
            if call is not None:
                self._last_backward_call = call
        # AccumulateGrad and the engine's own additions run right after the node they serve.
        return self._last_backward_call

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


def _name(value: Any) -> Any:
    """Names for dtypes, layouts and devices; shapes become tuples; the rest its `repr`."""
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, (int, float, complex)):
        return value
    if isinstance(value, torch.dtype):
        return DTYPES[value]
    if isinstance(value, (torch.layout, torch.memory_format)):
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, torch.device) else repr(value)


def _tensors(value: Any) -> list[At]:
    if type(value) is At:
        return [value]
    if type(value) is tuple:
        return [at for item in value for at in _tensors(item)]
    return []


def _resolve(values: tuple[Any, ...], refs: list[TensorRef]) -> tuple[Any, ...]:
    return tuple([_resolve_one(value, refs) for value in values])


def _resolve_one(value: Any, refs: list[TensorRef]) -> Any:
    kind = type(value)
    if kind is At:
        return refs[value]
    return _resolve(value, refs) if kind is tuple else value


def _read_schema(func: Any) -> _Schema:
    arguments = getattr(func, "_schema", None)
    if arguments is None:  # a higher-order operator
        return _Schema(f"higher_order.{func}.default", False, False, ())
    written = tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    silent = func.namespace in ("profiler", "prim", "debugprims")
    return _Schema(str(func), silent, compat.is_composite(func), written)
