"""The dispatch hook: runs the op, writes down what it saw, keeps nothing alive.

Nothing is priced here. The hook's own cost is what limits how large a model can be traced, so it
does no more than read shapes, strides, dtypes and storage ids into tuples.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import compat
from .attention import sdpa
from .modules import OUTSIDE, ModuleStack
from .records import BACKWARD, FORWARD, OPTIMIZER, RECOMPUTE, Op, Storage, TensorRef

_NO_KWARGS: Mapping[str, Any] = {}
_new_ref = tuple.__new__
_SDPA = torch.ops.aten.scaled_dot_product_attention.default


class _Schema(NamedTuple):
    """What the hook needs of an op's schema."""

    name: str
    silent: bool  # profiler marks and the like: not work
    composite: bool  # has a decomposition into other aten ops, which are what runs
    written: tuple[tuple[int, str], ...]  # (position, name) of arguments that the op writes


class Recorder(compat.TorchDispatchMode):
    """Appends one `Op` for every dispatched op, in any phase, on any device.

    Works under `no_grad`, `inference_mode`, autocast, activation checkpointing and an active
    `FakeTensorMode`. DTensor ops are passed on, so that only the local ops behind them are seen.
    """

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.storages: list[Storage] = []
        self.optimizers = 0  # optimizer steps that are open
        self.paused = False
        self.pointwise: set[str] = set()
        self._stack = stack
        self._ids: dict[int, int] = {}
        self._refs: list[Any] = []
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
        seen = self._describe(args)
        seen_kwargs = (
            {key: self._describe_one(value) for key, value in kwargs.items()}
            if kwargs
            else _NO_KWARGS
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

        if isinstance(out, Tensor):
            outputs: tuple[Any, ...] = (self._ref(out, len(self.ops)),)
        elif isinstance(out, (tuple, list)):
            outputs = tuple(_tensors_of(self._describe(out, len(self.ops))))
        else:
            outputs = ()
        mutates: tuple[int, ...] = ()
        if schema.written:
            mutates = _written_storages(schema.written, seen, seen_kwargs)
        self.ops.append(Op(schema.name, seen, seen_kwargs, outputs, mutates, call, phase))
        return out

    def _call_of_current_node(self) -> int:
        node = compat.current_autograd_node()
        if node is not None:
            call = self._call_of_node.get(node._sequence_nr())
            if call is not None:
                self._last_backward_call = call
        # AccumulateGrad and the engine's own additions run right after the node they serve.
        return self._last_backward_call

    # -- describing values -------------------------------------------------------------------------

    # A storage that is new among an op's inputs existed before the trace (born -1); one that is new
    # among its outputs was made by the op.

    def _describe(self, values: Iterable[Any], born: int = -1) -> tuple[Any, ...]:
        return tuple([self._describe_one(value, born) for value in values])

    def _describe_one(self, value: Any, born: int = -1) -> Any:
        kind = type(value)
        if kind is Tensor or isinstance(value, Tensor):
            return self._ref(value, born)
        if kind is list or kind is tuple:
            return tuple([self._describe_one(item, born) for item in value])
        if value is None or kind is int or kind is float or kind is bool or kind is str:
            return value
        return self._name(value)

    def _name(self, value: Any) -> Any:
        """Names for dtypes, layouts and devices; shapes become tuples; the rest its `repr`."""
        if isinstance(value, torch.Size):
            return tuple(value)
        if isinstance(value, (int, float, complex)):
            return value
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return str(value).removeprefix("torch.")
        if isinstance(value, torch.device):
            return str(value)
        return repr(value)

    def _ref(self, tensor: Tensor, born: int) -> TensorRef:
        try:
            storage = tensor.untyped_storage()
            sid = self._ids.get(storage._cdata)
            if sid is None:
                sid = self.register(storage, None, born)
            ref: TensorRef = _new_ref(
                TensorRef,
                (
                    tuple(tensor.shape),
                    tensor.stride(),
                    _DTYPES[tensor.dtype],
                    sid,
                    tensor.storage_offset(),
                ),
            )
        except (RuntimeError, NotImplementedError, KeyError):
            return self._opaque(tensor, born)
        return ref

    def _opaque(self, tensor: Tensor, born: int) -> TensorRef:
        """A tensor without strided storage (sparse, nested, mkldnn): its dense description."""
        shape = tuple(int(size) for size in tensor.size()) if not tensor.is_nested else ()
        stride, step = [], 1
        for size in reversed(shape):
            stride.append(step)
            step *= size
        sid = len(self.storages)
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.storages.append(Storage(step * tensor.element_size(), born))
        return TensorRef(shape, tuple(reversed(stride)), dtype, sid, 0)

    # -- storages ----------------------------------------------------------------------------------

    def register(
        self, storage: torch.UntypedStorage, role: str | None = None, born: int = -1
    ) -> int:
        """The id of `storage`, given on first sight; of several roles the first is kept.

        `born` is the op that made it, if it is new here; -1 for what existed before the trace.
        """
        key = compat.storage_key(storage)
        sid = self._ids.get(key)
        if sid is None:
            sid = self._ids[key] = len(self.storages)
            record = Storage(storage.nbytes(), born)
            self.storages.append(record)
            # The address of a dead storage is used again: forget it when it dies, and note when.
            ids, ops = self._ids, self.ops

            def died(_: Any, key: int = key, record: Storage = record) -> None:
                ids.pop(key, None)
                record.died = len(ops)

            self._refs.append(weakref.ref(storage, died))
        if role is not None and self.storages[sid].role is None:
            self.storages[sid].role = role
        return sid

    def detach(self) -> None:
        """Drop the watch on live storages, so that deaths after the trace are not written."""
        self._refs.clear()
        self._ids.clear()


_DTYPES: dict[torch.dtype, str] = {
    value: str(value).removeprefix("torch.")
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}


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


def _written_storages(
    written: tuple[tuple[int, str], ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[int, ...]:
    storages: list[int] = []
    for position, name in written:
        value = args[position] if position < len(args) else kwargs.get(name)
        storages.extend(ref.storage for ref in _tensors_of((value,)))
    return tuple(dict.fromkeys(storages))


def _tensors_of(tree: Iterable[Any]) -> list[TensorRef]:
    found: list[TensorRef] = []
    for item in tree:
        if type(item) is TensorRef:
            found.append(item)
        elif type(item) is tuple:
            found.extend(_tensors_of(item))
    return found
