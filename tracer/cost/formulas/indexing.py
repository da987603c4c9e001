"""Gathers and scatters: bytes of the rows that are touched, not of the table they come from."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import ESTIMATED, GATHER, Work

Out = tuple[TensorRef, ...]


@cost("aten::embedding")
def embedding(
    weight: TensorRef, indices: TensorRef, padding_idx: int = -1, scale_grad_by_freq: bool = False,
    sparse: bool = False, *, out: Out,
) -> Work:  # fmt: skip
    """A row of the table for every index, at most the whole table."""
    return Work(kind=GATHER, read={"weight": min(_bytes_like(out[0], weight), weight.nbytes)})


@cost("aten::embedding_dense_backward")
def embedding_dense_backward(
    grad_output: TensorRef, indices: TensorRef, num_weights: Any, padding_idx: Any,
    scale_grad_by_freq: Any, *, out: Out,
) -> Work:  # fmt: skip
    """The whole table's gradient is written, zeros first; rows with tokens are added to."""
    touched = min(grad_output.nbytes, out[0].nbytes)
    return Work(
        vector=grad_output.numel, kind=GATHER, write={0: out[0].nbytes + touched},
        confidence=ESTIMATED,
    )  # fmt: skip


@cost("aten::index", "aten::_unsafe_index")
def index(self: TensorRef, indices: Any, *, out: Out) -> Work:
    """Advanced indexing reads what it returns."""
    return Work(kind=GATHER, read={"self": min(_bytes_like(out[0], self), self.nbytes)})


@cost("aten::gather", "aten::index_select", "aten::take", "aten::take_along_dim")
def gather(self: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """Reads one element for every one it returns."""
    return Work(kind=GATHER, read={"self": min(_bytes_like(out[0], self), self.nbytes)})


@cost("aten::masked_select", "aten::nonzero")
def select(self: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """Data decide how much comes out; the trace's own size is taken."""
    return Work(vector=self.numel, kind=GATHER, confidence=ESTIMATED)


@cost("aten::index_put", "aten::_unsafe_index_put", "aten::index_put_", "aten::_index_put_impl_")
def index_put(
    self: TensorRef, indices: Any, values: TensorRef, accumulate: bool = False,
    unsafe: bool = False, *, out: Out,
) -> Work:  # fmt: skip
    """Writes the values' rows; the out-of-place form copies `self` first."""
    moved = _broadcast_bytes(self, indices, values)
    return _scatter(self, moved, accumulate, in_place=out[0].storage == self.storage)


@cost("aten::scatter", "aten::scatter_", "aten::scatter_add", "aten::scatter_add_",
      "aten::scatter_reduce", "aten::scatter_reduce_")  # fmt: skip
def scatter(
    self: TensorRef, dim: int, index: TensorRef, src: Any = None, *rest: Any, out: Out, **_: Any
) -> Work:
    """One element of `self` for every index."""
    moved = index.numel * self.itemsize
    source = src if isinstance(src, TensorRef) else None
    work = _scatter(self, moved, accumulate=True, in_place=out[0].storage == self.storage)
    if source is not None and work.read is not None:
        work = work._replace(read={**work.read, "src": index.numel * source.itemsize})
    return work


@cost("aten::index_add", "aten::index_add_", "aten::index_copy", "aten::index_copy_",
      "aten::index_reduce", "aten::index_reduce_")  # fmt: skip
def index_add(
    self: TensorRef, dim: int, index: TensorRef, source: TensorRef, *rest: Any, out: Out, **_: Any
) -> Work:
    """A row of `self` for every row of `source`."""
    moved = source.numel * self.itemsize
    return _scatter(self, moved, accumulate=True, in_place=out[0].storage == self.storage)


@cost("aten::index_fill", "aten::index_fill_", "aten::masked_scatter", "aten::masked_scatter_")
def index_fill(self: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """Data decide how much is written; the whole tensor is the bound taken."""
    return Work(kind=GATHER, confidence=ESTIMATED)


def _scatter(self: TensorRef, moved: int, accumulate: bool, in_place: bool) -> Work:
    touched = min(moved, self.nbytes)
    vector = moved // self.itemsize if accumulate else 0
    if in_place:
        return Work(
            vector=vector,
            kind=GATHER,
            read={"self": touched if accumulate else 0},
            write={0: touched},
            confidence=ESTIMATED,
        )
    read = {"self": self.nbytes + (touched if accumulate else 0)}
    return Work(
        vector=vector,
        kind=GATHER,
        read=read,
        write={0: self.nbytes + touched},
        confidence=ESTIMATED,
    )


def _bytes_like(shape_of: TensorRef, dtype_of: TensorRef) -> int:
    return shape_of.numel * dtype_of.itemsize


def _broadcast_bytes(self: TensorRef, indices: Any, values: TensorRef) -> int:
    """Bytes that `self[indices] = values` writes: the index shape times the dims left over."""
    indexed, points = 1, 1
    for position, index in enumerate(indices):
        if isinstance(index, TensorRef):
            indexed *= self.shape[position]
            points = max(points, index.numel)
    return (self.numel // max(indexed, 1)) * points * self.itemsize
