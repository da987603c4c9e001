"""Embedding tables: rows are read, and gradients scattered, for the indices that occur."""

from __future__ import annotations

from typing import Any

from ...algebra import least
from ...capture.records import TensorRef
from ..registry import cost
from ..work import ESTIMATED, GATHER, ROW, Work
from .common import Out, given

_MEAN, _MAX = 1, 2  # mode of embedding_bag; 0 is the sum


def _rows(weight: TensorRef, indices: TensorRef) -> int:
    """Bytes of a row for every index, at most the whole table."""
    touched: int = least((indices.numel * weight.shape[-1] * weight.itemsize, weight.nbytes))
    return touched


@cost("aten::embedding")
def embedding(
    weight: TensorRef, indices: TensorRef, padding_idx: int = -1, scale_grad_by_freq: bool = False,
    sparse: bool = False, *, out: Out,
) -> Work:  # fmt: skip
    """No arithmetic.

    Bytes: a row of the table for every index, at most the whole table.
    """
    return Work(kind=GATHER, read={"weight": _rows(weight, indices)})


@cost("aten::embedding_dense_backward")
def embedding_dense_backward(
    grad_output: TensorRef, indices: TensorRef, num_weights: Any, padding_idx: Any,
    scale_grad_by_freq: Any, *, out: Out,
) -> Work:  # fmt: skip
    """An add for every element of the gradient.

    Bytes: the whole table's gradient is written, zeros first, and the rows with tokens again.
    Estimated: data decide how often an index repeats.
    """
    touched = least((grad_output.numel * out[0].itemsize, out[0].nbytes))
    return Work(
        vector=grad_output.numel, kind=GATHER, write={0: out[0].nbytes + touched},
        confidence=ESTIMATED,
    )  # fmt: skip


@cost("aten::embedding_renorm", "aten::embedding_renorm_")
def embedding_renorm(
    self: TensorRef, indices: TensorRef, max_norm: float, norm_type: float, *, out: Out
) -> Work:
    """Norm and scale of the rows that occur: 3 an element.

    Bytes: those rows.
    Estimated: data decide how many rows are too long.
    """
    rows = _rows(self, indices)
    vector = 3 * rows // self.itemsize
    in_place = out[0].storage == self.storage
    return Work(
        vector=vector,
        kind=ROW,
        read={"self": rows if in_place else self.nbytes},
        write={0: rows if in_place else self.nbytes},
        confidence=ESTIMATED,
    )


@cost("aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag(
    weight: TensorRef, indices: TensorRef, offsets: TensorRef, scale_grad_by_freq: bool = False,
    mode: int = 0, sparse: bool = False, per_sample_weights: TensorRef | None = None,
    include_last_offset: bool = False, padding_idx: int = -1, *, out: Out,
) -> Work:  # fmt: skip
    """An add (or comparison) for every element of every row; 1 more with weights, mean divides.

    Bytes: a row of the table for every index, at most the whole table.
    """
    elements = indices.numel * weight.shape[-1]
    vector = elements * (1 + given(per_sample_weights)) + out[0].numel * (mode == _MEAN)
    return Work(vector=vector, kind=GATHER, read={"weight": _rows(weight, indices)})


@cost("aten::_embedding_bag_dense_backward")
def embedding_bag_dense_backward(
    grad: TensorRef, indices: TensorRef, offset2bag: TensorRef, bag_size: TensorRef,
    maximum_indices: TensorRef, num_weights: int, scale_grad_by_freq: bool, mode: int,
    per_sample_weights: TensorRef | None, padding_idx: int = -1, *, out: Out,
) -> Work:  # fmt: skip
    """An add for every element of every row, and a factor for weights or the mean.

    Bytes: the whole table's gradient is written, zeros first, and the rows that occur again.
    Estimated: data decide how often an index repeats.
    """
    return _bag_backward(grad, indices, mode, per_sample_weights, out)


@cost("aten::_embedding_bag_backward")
def embedding_bag_backward(
    grad: TensorRef, indices: TensorRef, offsets: TensorRef, offset2bag: TensorRef,
    bag_size: TensorRef, maximum_indices: TensorRef, num_weights: int, scale_grad_by_freq: bool,
    mode: int, sparse: bool, per_sample_weights: TensorRef | None, padding_idx: int = -1, *,
    out: Out,
) -> Work:  # fmt: skip
    """An add for every element of every row, and a factor for weights or the mean.

    Bytes: the whole table's gradient is written, zeros first, and the rows that occur again.
    Estimated: data decide how often an index repeats.
    """
    return _bag_backward(grad, indices, mode, per_sample_weights, out)


def _bag_backward(
    grad: TensorRef, indices: TensorRef, mode: int, per_sample_weights: Any, out: Out
) -> Work:
    # The maximum sends its gradient to one row a bag and column.
    elements = grad.numel if mode == _MAX else indices.numel * grad.shape[-1]
    steps = 1 + given(per_sample_weights) + (mode == _MEAN)
    touched = least((elements * out[0].itemsize, out[0].nbytes))
    return Work(
        vector=steps * elements, kind=GATHER, write={0: out[0].nbytes + touched},
        confidence=ESTIMATED,
    )  # fmt: skip


@cost("aten::_embedding_bag_per_sample_weights_backward")
def embedding_bag_weights_backward(
    grad: TensorRef, weight: TensorRef, indices: TensorRef, offsets: TensorRef,
    offset2bag: TensorRef, mode: int, padding_idx: int = -1, *, out: Out,
) -> Work:  # fmt: skip
    """A dot product of a row and its bag's gradient for every index.

    Bytes: a row of the table for every index, at most the whole table.
    """
    elements = indices.numel * weight.shape[-1]
    return Work(vector=2 * elements, kind=GATHER, read={"weight": _rows(weight, indices)})
