"""Sorts, selections and histograms: several passes that depend on data; bytes are one pass."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import ESTIMATED, SORT, Work

Out = tuple[TensorRef, ...]


@cost("aten::topk", "aten::sort", "aten::argsort", "aten::kthvalue", "aten::median", "aten::mode",
      "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::msort")  # fmt: skip
def sort(self: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """A comparison an element and pass; one pass is counted."""
    return Work(vector=self.numel, kind=SORT, confidence=ESTIMATED)


@cost("aten::histc", "aten::bincount", "aten::_histogramdd_bin_edges", "aten::histogram")
def histogram(self: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """An increment an element."""
    return Work(vector=self.numel, kind=SORT, confidence=ESTIMATED)


@cost("aten::searchsorted", "aten::bucketize")
def searchsorted(sorted_sequence: TensorRef, self: Any, *_: Any, out: Out, **__: Any) -> Work:
    """A binary search for every element of the output."""
    steps = max(1, sorted_sequence.shape[-1].bit_length() if sorted_sequence.shape else 1)
    return Work(vector=steps * out[0].numel, kind=SORT, confidence=ESTIMATED)
