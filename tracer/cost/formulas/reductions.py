"""Reductions and scans: vector FLOPs an input element.

A reduction over trailing dimensions keeps a row on one multiprocessor (kind ROW) and may share its
kernel with what made the row; any other needs the whole tensor first (kind REDUCTION). A complex
element counts twice.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import REDUCTION, ROW, Work
from .common import Out, Refs, as_dims, elements, is_complex

# Steps an element. Variance: mean (1), subtract, square, add. Norm: power, add. Logsumexp: max,
# subtract, exponential, add.
REDUCTION_FLOPS: dict[str, int] = {
    **dict.fromkeys(
        "sum prod amax amin max min argmax argmin any all nansum count_nonzero mean".split(), 1
    ),
    **dict.fromkeys("logsumexp var var_mean std std_mean".split(), 4),
    **dict.fromkeys("aminmax _aminmax".split(), 2),
}
NORM_FLOPS: dict[str, int] = dict.fromkeys(
    "norm native_norm linalg_vector_norm linalg__powsum".split(), 2
)
SCAN_FLOPS: dict[str, int] = {
    **dict.fromkeys("cumsum cumsum_ cumprod cumprod_ cummax cummin".split(), 1),
    **dict.fromkeys("logcumsumexp _logcumsumexp".split(), 3),
}


def row_kind(x: TensorRef, dim: Any) -> str:
    """ROW where only trailing dimensions of `x` are reduced and something is left, by `dim`.

    What is left may be one row, as of one sequence in decode: it is a row like those of many.
    """
    rank = len(x.shape)
    dims = set(as_dims(dim, rank))
    left = [d for d in range(rank) if d not in dims]
    leading = [d for d in left if x.shape[d] != 1]
    trailing = [d for d in dims if x.shape[d] != 1]
    rows = leading or left
    return ROW if rows and (not trailing or max(rows) < min(trailing)) else REDUCTION


def reduction_work(x: TensorRef, dim: Any, flops_per_element: int) -> Work:
    """`flops_per_element` on every element of `x`."""
    steps = flops_per_element * (2 if is_complex(x) else 1)
    return Work(vector=steps * x.numel, kind=row_kind(x, dim))


def _register_reduction(name: str, flops_per_element: int) -> None:
    @cost(f"aten::{name}")
    def reduction(self: TensorRef, dim: Any = None, *rest: Any, out: Out, **_: Any) -> Work:
        return reduction_work(self, dim, flops_per_element)

    reduction.__doc__ = f"{flops_per_element} an input element."


def _register_norm(name: str, flops_per_element: int) -> None:
    @cost(f"aten::{name}")
    def norm(
        self: TensorRef, p: Any = 2, dim: Any = None, /, *rest: Any, out: Out, **_: Any
    ) -> Work:
        return reduction_work(self, dim, flops_per_element)

    norm.__doc__ = f"{flops_per_element} an input element."


def _register_scan(name: str, flops_per_element: int) -> None:
    @cost(f"aten::{name}")
    def scan(self: TensorRef, dim: int, *rest: Any, out: Out, **_: Any) -> Work:
        return Work(vector=flops_per_element * self.numel, kind=ROW)

    scan.__doc__ = f"{flops_per_element} an element."


for _name, _steps in REDUCTION_FLOPS.items():
    _register_reduction(_name, _steps)
for _name, _steps in NORM_FLOPS.items():
    _register_norm(_name, _steps)
for _name, _steps in SCAN_FLOPS.items():
    _register_scan(_name, _steps)


@cost("aten::_cummax_helper", "aten::_cummin_helper")
def cummax_helper(
    self: TensorRef, values: TensorRef, indices: TensorRef, dim: int, *, out: Out
) -> Work:
    """A comparison an element.

    Bytes: both results are written, not read.
    """
    return Work(vector=self.numel, kind=ROW, read={"values": 0, "indices": 0})


@cost("aten::equal", "aten::allclose")
def equal(self: TensorRef, other: TensorRef, *tolerances: Any, out: Out) -> Work:
    """A comparison an element, and the answer to the host."""
    return Work(vector=2 * self.numel, kind=REDUCTION)


@cost("aten::_is_all_true", "aten::_is_any_true")
def is_true(self: TensorRef, *, out: Out) -> Work:
    """1 an input element."""
    return Work(vector=self.numel, kind=REDUCTION)


@cost("aten::trace")
def trace(self: TensorRef, *, out: Out) -> Work:
    """An add for each diagonal element.

    Bytes: the diagonal.
    """
    diagonal = min(self.shape)
    return Work(vector=diagonal, kind=REDUCTION, read={"self": diagonal * self.itemsize})


@cost("aten::dist")
def dist(self: TensorRef, other: TensorRef, p: Any = 2, *, out: Out) -> Work:
    """Subtract, power, add: 3 an element."""
    return Work(vector=3 * max(self.numel, other.numel), kind=REDUCTION)


@cost("aten::_foreach_norm", "aten::_foreach_powsum")
def foreach_norm(self: Refs, ord: Any = 2, dtype: Any = None, *, out: Out) -> Work:
    """Power, add: 2 an element of all tensors."""
    return Work(vector=2 * elements(self), kind=REDUCTION)


@cost("aten::_foreach_max")
def foreach_max(self: Refs, *, out: Out) -> Work:
    """A comparison an element of all tensors."""
    return Work(vector=elements(self), kind=REDUCTION)


@cost("aten::segment_reduce")
def segment_reduce(data: TensorRef, reduce: str, *, out: Out, **_: Any) -> Work:
    """A step an element."""
    return Work(vector=data.numel, kind=REDUCTION)


@cost("aten::_segment_reduce_backward")
def segment_reduce_backward(
    grad: TensorRef, output: TensorRef, data: TensorRef, reduce: str, *, out: Out, **_: Any
) -> Work:
    """A step an element."""
    return Work(vector=data.numel, kind=REDUCTION)


@cost("aten::hash_tensor")
def hash_tensor(self: TensorRef, dim: Any = (), *, out: Out, **_: Any) -> Work:
    """A step an element."""
    return reduction_work(self, dim, 1)
