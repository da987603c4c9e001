"""Scatters: bytes of the rows that are written; the out-of-place forms copy `self` first.

Indices that repeat hit the same row more than once: at most the whole tensor is touched.
"""

from __future__ import annotations

from typing import Any

from ...algebra import least
from ...capture.records import TensorRef
from ..registry import cost
from ..work import ESTIMATED, GATHER, Work
from .common import Out, product


@cost("aten::index_put", "aten::index_put_", "aten::_unsafe_index_put",
      "aten::_index_put_impl", "aten::_index_put_impl_")  # fmt: skip
def index_put(
    self: TensorRef, indices: Any, values: TensorRef, accumulate: bool = False,
    unsafe: bool = False, *, out: Out,
) -> Work:  # fmt: skip
    """An add an element where it accumulates.

    Bytes: the rows that are written; they are read too where it accumulates.
    Estimated: data decide how often an index repeats, and how many a mask selects.
    """
    return scatter_work(self, _indexed(self, indices), bool(accumulate), out)


@cost("aten::_unsafe_masked_index_put_accumulate")
def masked_index_put(
    self: TensorRef, mask: TensorRef, indices: Any, values: TensorRef, *, out: Out
) -> Work:
    """An add an element.

    Bytes: the rows that are added to.
    Estimated: data decide how often an index repeats.
    """
    return scatter_work(self, _indexed(self, indices), True, out)


def _register_scatter(name: str, reduces: bool) -> None:
    @cost(f"aten::{name}")
    def scatter(
        self: TensorRef, dim: int, index: TensorRef, src: Any, /, *rest: Any, out: Out, **_: Any
    ) -> Work:
        """A step an index where it reduces; a plain scatter overwrites.

        Bytes: one element of `self` and of `src` for every index.
        Estimated: data decide how often an index repeats.
        """
        work = scatter_work(self, index.numel, reduces, out)
        if isinstance(src, TensorRef) and len(src.shape) == len(index.shape):
            read = {**(work.read or {}), "src": index.numel * src.itemsize}
            work = work._replace(read=read)
        return work


_register_scatter("scatter", False)
_register_scatter("scatter_", False)
for _name in """
    scatter.reduce scatter.reduce_out scatter.value_reduce scatter.value_reduce_out scatter_.reduce
    scatter_.value_reduce scatter_add scatter_add_ scatter_reduce scatter_reduce_
""".split():
    _register_scatter(_name, True)


def _register_rows(name: str, reduces: bool) -> None:
    @cost(f"aten::{name}")
    def index_rows(
        self: TensorRef, dim: int, index: TensorRef, source: TensorRef, *rest: Any, out: Out,
        **_: Any,
    ) -> Work:  # fmt: skip
        """A step an element of `source` where it adds or reduces.

        Bytes: a row of `self` for every row of `source`.
        Estimated: data decide how often an index repeats.
        """
        return scatter_work(self, source.numel, reduces, out)


for _name in ("index_add", "index_add_", "index_reduce", "index_reduce_"):
    _register_rows(_name, True)
for _name in ("index_copy", "index_copy_"):
    _register_rows(_name, False)


@cost("aten::index_fill", "aten::index_fill_")
def index_fill(self: TensorRef, dim: int, index: TensorRef, value: Any, *, out: Out) -> Work:
    """No arithmetic.

    Bytes: the rows that are filled.
    Estimated: data decide how often an index repeats.
    """
    size = self.shape[dim] if self.shape else 1
    return scatter_work(self, self.numel // max(size, 1) * index.numel, False, out)


@cost("aten::put", "aten::put_")
def put(
    self: TensorRef, index: TensorRef, source: TensorRef, accumulate: bool = False, *, out: Out
) -> Work:
    """An add an index where it accumulates.

    Bytes: one element for every index.
    Estimated: data decide how often an index repeats.
    """
    return scatter_work(self, index.numel, bool(accumulate), out)


@cost("aten::masked_scatter", "aten::masked_scatter_")
def masked_scatter(self: TensorRef, mask: TensorRef, source: TensorRef, *, out: Out) -> Work:
    """A running count of the mask: 1 an element.

    Bytes: of `source`, at most an element a place of the mask.
    Estimated: data decide how much is written; the whole is taken.
    """
    read = {"source": least((source.nbytes, out[0].numel * source.itemsize))}
    return Work(vector=out[0].numel, kind=GATHER, read=read, confidence=ESTIMATED)


@cost("aten::masked_scatter_backward")
def masked_scatter_backward(
    grad_output: TensorRef, mask: TensorRef, sizes: Any, *, out: Out
) -> Work:
    """A test an element.

    Estimated: data decide how much is read; the whole is taken.
    """
    return Work(vector=mask.numel, kind=GATHER, confidence=ESTIMATED)


def scatter_work(self: TensorRef, count: int, accumulate: bool, out: Out) -> Work:
    """`count` elements of `self` written, and read first where it accumulates."""
    touched = least((count * self.itemsize, self.nbytes))
    again = touched if accumulate else 0
    in_place = bool(out) and out[0].storage == self.storage
    return Work(
        vector=count if accumulate else 0,
        kind=GATHER,
        read={"self": again if in_place else self.nbytes + again},
        write={0: touched if in_place else self.nbytes + touched},
        confidence=ESTIMATED,
    )


def _indexed(self: TensorRef, indices: Any) -> int:
    """Elements that `self[indices] = values` writes: the joint index shape times the dims left.

    A boolean mask stands for as many dimensions as it has; at most all of its places are set.
    """
    position, covered = 0, 1
    joint: list[int] = []
    for index in indices:
        if not isinstance(index, TensorRef):
            position += 1
            continue
        mask = index.dtype in ("bool", "uint8")
        width = len(index.shape) if mask else 1
        covered *= product(self.shape[position : position + width])
        position += width
        joint = _broadcast(joint, [index.numel] if mask else list(index.shape))
    return self.numel // max(covered, 1) * product(joint)


def _broadcast(a: list[int], b: list[int]) -> list[int]:
    rank = max(len(a), len(b))
    a = [1] * (rank - len(a)) + a
    b = [1] * (rank - len(b)) + b
    return [y if x == 1 else x for x, y in zip(a, b, strict=True)]
