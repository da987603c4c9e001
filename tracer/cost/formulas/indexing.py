"""Gathers: bytes of the rows that are touched, not of the table they come from."""

from __future__ import annotations

from typing import Any

from ...algebra import least, most
from ...capture.records import TensorRef
from ..registry import cost
from ..work import COPY, ESTIMATED, GATHER, Work
from .common import Out, bytes_like


def _read_like(x: TensorRef, y: TensorRef, name: str = "self") -> dict[str, int]:
    """One element of `x` for every element of `y`, at most all of it."""
    return {name: least((bytes_like(y, x), x.nbytes))}


@cost("aten::index", "aten::_unsafe_index")
def index(self: TensorRef, indices: Any, *, out: Out) -> Work:
    """No arithmetic.

    Bytes: one element is read for each that comes out, at most the whole tensor.
    """
    return Work(kind=GATHER, read=_read_like(self, out[0]))


@cost("aten::_unsafe_masked_index")
def masked_index(self: TensorRef, mask: TensorRef, indices: Any, fill: Any, *, out: Out) -> Work:
    """No arithmetic.

    Bytes: one element is read for each that comes out, at most the whole tensor.
    """
    return Work(kind=GATHER, read=_read_like(self, out[0]))


@cost("aten::gather", "aten::index_select")
def gather(
    self: TensorRef, dim: int, index: TensorRef, sparse_grad: bool = False, *, out: Out
) -> Work:
    """No arithmetic.

    Bytes: one element is read for each that comes out, at most the whole tensor.
    """
    return Work(kind=GATHER, read=_read_like(self, out[0]))


@cost("aten::take")
def take(self: TensorRef, index: TensorRef, *, out: Out) -> Work:
    """No arithmetic.

    Bytes: one element is read for each that comes out, at most the whole tensor.
    """
    return Work(kind=GATHER, read=_read_like(self, out[0]))


@cost("aten::masked_select", "aten::nonzero", "aten::argwhere")
def select(self: TensorRef, mask: TensorRef | None = None, /, *, out: Out) -> Work:
    """A test an element.

    Estimated: data decide how much comes out; the size that the trace saw is taken.
    """
    return Work(vector=self.numel, kind=GATHER, confidence=ESTIMATED)


@cost("aten::nonzero_static")
def nonzero_static(self: TensorRef, *, size: int, fill_value: int = -1, out: Out) -> Work:
    """A test an element."""
    return Work(vector=self.numel, kind=GATHER)


def _register_slice_copy(name: str) -> None:
    @cost(f"aten::{name}")
    def slice_copy(self: TensorRef, *rest: Any, out: Out, **_: Any) -> Work:
        """No arithmetic.

        Bytes: only what is copied is read.
        """
        moved = sum(bytes_like(part, self) for part in out)
        return Work(kind=COPY, read={"self": least((moved, self.nbytes))})


for _name in """
    slice_copy select_copy narrow_copy as_strided_copy unfold_copy diagonal_copy split_copy
    split_with_sizes_copy unbind_copy
""".split():
    _register_slice_copy(_name)


@cost("aten::slice_scatter", "aten::select_scatter", "aten::diagonal_scatter",
      "aten::as_strided_scatter")  # fmt: skip
def slice_scatter(self: TensorRef, src: TensorRef, *rest: Any, out: Out, **_: Any) -> Work:
    """No arithmetic.

    Bytes: of `self`, what `src` does not replace.
    """
    return Work(kind=COPY, read={"self": most((0, self.nbytes - bytes_like(src, self)))})


@cost("aten::constant_pad_nd")
def constant_pad(self: TensorRef, pad: Any, value: Any = 0, *, out: Out) -> Work:
    """No arithmetic.

    Bytes: a negative pad crops, and what it cuts off is not read.
    """
    return Work(kind=COPY, read={"self": least((self.nbytes, bytes_like(out[0], self)))})


@cost("aten::_jagged_to_padded_dense_forward", "aten::_padded_dense_to_jagged_forward")
def jagged(self: TensorRef, offsets: Any, /, *rest: Any, out: Out) -> Work:
    """No arithmetic.

    Bytes: at most what comes out is read.
    """
    return Work(kind=COPY, read=_read_like(self, out[0]))
