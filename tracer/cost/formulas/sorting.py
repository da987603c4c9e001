"""Sorts, selections, searches and histograms: several passes that depend on data.

Bytes are one pass; a radix sort of 32-bit keys makes four.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import ESTIMATED, SORT, Work
from .common import Out


def _search_steps(boundaries: TensorRef) -> int:
    """Comparisons of a binary search."""
    return max(1, boundaries.shape[-1].bit_length() if boundaries.shape else 1)


@cost("aten::topk", "aten::sort", "aten::argsort", "aten::kthvalue", "aten::median",
      "aten::nanmedian", "aten::mode", "aten::msort", "aten::_unique", "aten::_unique2",
      "aten::unique_dim", "aten::unique_consecutive", "aten::unique_dim_consecutive")  # fmt: skip
def sort(self: TensorRef, *rest: Any, out: Out, **_: Any) -> Work:
    """A comparison an element and pass; one pass is counted.

    Estimated: the number of passes depends on the kernel and the data.
    """
    return Work(vector=self.numel, kind=SORT, confidence=ESTIMATED)


@cost("aten::histc", "aten::bincount", "aten::histogram", "aten::_histogramdd_bin_edges",
      "aten::_histogramdd_from_bin_cts", "aten::_histogramdd_from_bin_tensors")  # fmt: skip
def histogram(self: TensorRef, *rest: Any, out: Out, **_: Any) -> Work:
    """An increment an element.

    Estimated: finding the bin is not counted.
    """
    return Work(vector=self.numel, kind=SORT, confidence=ESTIMATED)


@cost("aten::searchsorted")
def searchsorted(
    sorted_sequence: TensorRef, self: Any, *, sorter: Any = None, out: Out, **_: Any
) -> Work:
    """A binary search, log2 of the boundaries, for every element that comes out.

    Estimated: the cache decides what a search reads; the boundaries are read once.
    """
    vector = _search_steps(sorted_sequence) * out[0].numel
    return Work(vector=vector, kind=SORT, confidence=ESTIMATED)


@cost("aten::bucketize")
def bucketize(self: Any, boundaries: TensorRef, *, out: Out, **_: Any) -> Work:
    """A binary search, log2 of the boundaries, for every element that comes out.

    Estimated: the cache decides what a search reads; the boundaries are read once.
    """
    vector = _search_steps(boundaries) * out[0].numel
    return Work(vector=vector, kind=SORT, confidence=ESTIMATED)


@cost("aten::isin")
def isin(elements: Any, tests: Any, /, *, out: Out, **_: Any) -> Work:
    """A binary search among the test elements for every element.

    Estimated: small sets are compared one by one.
    """
    steps = _search_steps(tests) if isinstance(tests, TensorRef) else 1
    return Work(vector=steps * out[0].numel, kind=SORT, confidence=ESTIMATED)
