"""What formulas of every family share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...capture.records import TensorRef

Out = tuple[TensorRef, ...]
Refs = tuple[TensorRef, ...]


def multiply_add(operand: TensorRef) -> int:
    """FLOPs of one multiply-add: 2, and 8 for complex operands (4 multiplies, 4 adds)."""
    return 8 if is_complex(operand) else 2


def is_complex(value: Any) -> bool:
    """A complex tensor or a complex number."""
    if isinstance(value, TensorRef):
        return value.dtype.startswith("complex")
    return isinstance(value, complex)


def elements(tensors: Iterable[TensorRef]) -> int:
    """Elements of all `tensors`."""
    return sum(ref.numel for ref in tensors)


def nbytes(tensors: Iterable[TensorRef]) -> int:
    """Bytes of all `tensors`."""
    return sum(ref.nbytes for ref in tensors)


def bytes_like(shape_of: TensorRef, dtype_of: TensorRef) -> int:
    """Bytes of so many elements as `shape_of` has, of the type of `dtype_of`."""
    return shape_of.numel * dtype_of.itemsize


def given(value: Any) -> int:
    """1 for an optional tensor that is there, else 0: counts the adds of a bias."""
    return int(isinstance(value, TensorRef))


def wanted(mask: Any) -> tuple[int, ...]:
    """An `output_mask` as zeros and ones."""
    return tuple(int(bool(flag)) for flag in mask)


def product(sizes: Iterable[int]) -> int:
    """Product that keeps symbols, which `math.prod` also does but starts as an int."""
    n = 1
    for size in sizes:
        n *= size
    return n


def as_dims(dim: Any, rank: int) -> tuple[int, ...]:
    """Non-negative dimensions of an argument `dim`: an int, a list, or nothing for all."""
    if dim is None or dim == () or rank == 0:
        return tuple(range(rank))
    listed = (dim,) if isinstance(dim, int) else tuple(dim)
    return tuple(d % rank for d in listed)
