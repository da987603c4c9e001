"""What the hook notes of tensors and their storages, in forms that Python's garbage collector
leaves alone.

A trace of a large model holds hundreds of thousands of small records. Kept as objects, the
collector walks them again and again while the model runs, and that costs more than writing them
down. So the hook keeps plain tuples of plain values, which the collector drops from its lists, and
integers of a type of their own that index them; `records` are made from these at the end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import compat
from .records import Storage, TensorRef


class At(int):
    """Index of a tensor in the table; a type of its own, so that it is not taken for a number."""

    __slots__ = ()


class _Watch(weakref.ref[torch.UntypedStorage]):
    """Tells when a storage dies. `key` is its address, which is used again afterwards."""

    __slots__ = ("key", "sid")
    key: int
    sid: int


class TensorTable:
    """Descriptions of tensors, and the life of the storages behind them.

    `clock` is the number of ops recorded so far; whoever records keeps it up to date.
    """

    def __init__(self) -> None:
        self.clock = 0
        self.rows: list[tuple[Any, ...]] = []  # shape, stride, dtype, storage id, offset
        self._ids: dict[int, int] = {}
        self._watches: list[_Watch] = []
        self._nbytes: list[int] = []
        self._born: list[int] = []
        self._died: dict[int, int] = {}
        self._roles: dict[int, str] = {}

    def see(self, tensor: Tensor, born: int) -> At:
        """Note `tensor`; `born` is the op that made its storage if that is new (-1: no op)."""
        try:
            storage = tensor.untyped_storage()
            sid = self._ids.get(storage._cdata)
            if sid is None:
                sid = self.register(storage, None, born)
            row = (
                tuple(tensor.shape),
                tensor.stride(),
                DTYPES[tensor.dtype],
                sid,
                tensor.storage_offset(),
            )
        except (RuntimeError, NotImplementedError, KeyError):
            row = self._without_storage(tensor, born)
        self.rows.append(row)
        return At(len(self.rows) - 1)

    def storage_of(self, at: At) -> int:
        """Storage id of a noted tensor."""
        sid: int = self.rows[at][3]
        return sid

    def register(
        self, storage: torch.UntypedStorage, role: str | None = None, born: int = -1
    ) -> int:
        """The id of `storage`, given on first sight; of several roles the first is kept.

        `born` is the op that made it, if it is new here; -1 for what existed before the trace.
        """
        key = compat.storage_key(storage)
        sid = self._ids.get(key)
        if sid is None:
            sid = self._new(storage.nbytes(), born)
            self._ids[key] = sid
            watch = _Watch(storage, self._dead)
            watch.key, watch.sid = key, sid
            self._watches.append(watch)
        if role is not None:
            self.mark(sid, role)
        return sid

    def mark(self, sid: int, role: str) -> None:
        """Tell what a storage is for; the first role counts."""
        self._roles.setdefault(sid, role)

    def identify(self, tensor: Tensor, role: str) -> int:
        """The storage id of `tensor`, which existed before the trace or is known, with its role."""
        try:
            sid = self.register(tensor.untyped_storage())
        except (RuntimeError, NotImplementedError):
            sid = self.storage_of(self.see(tensor, -1))
        self.mark(sid, role)
        return sid

    def role_of(self, tensor: Tensor) -> str | None:
        """The role of `tensor`'s storage, if both are known."""
        try:
            sid = self._ids.get(compat.storage_key(tensor.untyped_storage()))
        except (RuntimeError, NotImplementedError):
            return None
        return None if sid is None else self._roles.get(sid)

    def resized(self, tensor: Tensor) -> None:
        """Note the new size of a storage that an op has resized."""
        storage = tensor.untyped_storage()
        sid = self._ids.get(compat.storage_key(storage))
        if sid is not None:
            self._nbytes[sid] = max(self._nbytes[sid], storage.nbytes())

    def freed(self, tensor: Tensor) -> None:
        """The storage of `tensor` gives its memory back and lives on."""
        sid = self._ids.pop(compat.storage_key(tensor.untyped_storage()), None)
        if sid is not None:
            self._died[sid] = self.clock

    def allocated(self, tensor: Tensor) -> None:
        """It has memory again, for the op that comes: a storage of its own."""
        if compat.storage_key(tensor.untyped_storage()) not in self._ids:
            self.register(tensor.untyped_storage(), None, self.clock)

    def detach(self) -> None:
        """Drop the watch on live storages, so that deaths after the trace are not written."""
        self._watches.clear()
        self._ids.clear()

    def refs(self, resolve: Callable[[Any], Any] | None = None) -> list[TensorRef]:
        """The rows as records; `resolve` turns torch's symbolic sizes into ours, if there are."""
        make = TensorRef._make
        if resolve is None:
            return [make(row) for row in self.rows]
        return [
            TensorRef(
                tuple([resolve(n) for n in shape]),
                tuple([resolve(n) for n in stride]),
                dtype,
                storage,
                resolve(offset),
            )
            for shape, stride, dtype, storage, offset in self.rows
        ]

    def storages(self, resolve: Callable[[Any], Any] | None = None) -> list[Storage]:
        """The storages as records, by id."""
        died, roles = self._died, self._roles
        sizes = self._nbytes if resolve is None else [resolve(n) for n in self._nbytes]
        return [
            Storage(nbytes, born, died.get(sid), roles.get(sid))
            for sid, (nbytes, born) in enumerate(zip(sizes, self._born, strict=True))
        ]

    def _new(self, nbytes: int, born: int) -> int:
        self._nbytes.append(nbytes)
        self._born.append(born)
        return len(self._nbytes) - 1

    def _dead(self, watch: Any) -> None:
        # The address of a dead storage is used again: forget it, and note when it died.
        if self._ids.get(watch.key) == watch.sid:
            del self._ids[watch.key]
        self._died.setdefault(watch.sid, self.clock)

    def _without_storage(self, tensor: Tensor, born: int) -> tuple[Any, ...]:
        """A tensor without strided storage (sparse, nested, mkldnn): its dense description."""
        shape = _rows(tensor) if tensor.is_nested else tuple(int(size) for size in tensor.size())
        stride, step = [], 1
        for size in reversed(shape):
            stride.append(step)
            step *= size
        dtype = str(tensor.dtype).removeprefix("torch.")
        sid = self._new(step * tensor.element_size(), born)
        return (shape, tuple(reversed(stride)), dtype, sid, 0)


def _rows(nested: Tensor) -> tuple[int, ...]:
    """A nested tensor as the matrix of all its rows, or flat where the rows differ in length."""
    numel = nested.numel()
    widths = {int(size) for size in nested._nested_tensor_size()[:, -1]}
    width = widths.pop() if len(widths) == 1 else 0
    return (numel // width, width) if width else (numel,)


DTYPES: dict[torch.dtype, str] = {
    value: str(value).removeprefix("torch.")
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}
