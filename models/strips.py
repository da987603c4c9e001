"""Tensors of a checkpoint in strips of whole 128-row blocks, so that none has to be held whole.

Shapes: leading dimensions are flattened into rows; a strip is [r, K], r a multiple of 128 but at
the end of a matrix, and never reaches over the end of one unless blocks do so cleanly.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from . import fp8
from .shards import BITS, Checkpoint, CheckpointError, Entry, Reader

TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": fp8.E4M3,
}
CODES = {dtype: code for code, dtype in TORCH.items()}
STRIP_BYTES = 4 << 20


class Span(NamedTuple):
    """Rows `first` to `last` of the flattened tensor; `block` is the row of their first blocks."""

    first: int
    last: int
    block: int


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(matrices, rows, columns); a vector is one row."""
    if len(shape) < 2:
        return 1, 1, shape[0] if shape else 1
    matrices = 1
    for size in shape[:-2]:
        matrices *= size
    return matrices, shape[-2], shape[-1]


def spans(shape: tuple[int, ...], itemsize: int, strip_bytes: int = STRIP_BYTES) -> list[Span]:
    """Cut a tensor into strips of about `strip_bytes`, at least 128 rows each."""
    matrices, rows, columns = matrix_shape(shape)
    if 0 in (matrices, rows, columns):
        return []
    if rows % fp8.TILE == 0:  # blocks do not straddle matrices: one tall matrix
        matrices, rows = 1, matrices * rows
    step = max(strip_bytes // (columns * itemsize) // fp8.TILE, 1) * fp8.TILE
    blocks = fp8.tiles(rows)
    return [
        Span(m * rows + r, m * rows + min(r + step, rows), m * blocks + r // fp8.TILE)
        for m in range(matrices)
        for r in range(0, rows, step)
    ]


def torch_dtype(checkpoint: Checkpoint, entry: Entry) -> torch.dtype:
    """The torch dtype of a tensor.

    Raises:
        CheckpointError: it is none that weights of this family come in.
    """
    if entry.dtype not in TORCH:
        raise CheckpointError(
            f"{checkpoint.where}/{entry.shard}: {entry.name} has dtype {entry.dtype}; supported "
            f"are {', '.join(TORCH)}"
        )
    return TORCH[entry.dtype]


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable."""
    return memoryview(tensor.detach().view(-1).view(torch.uint8).numpy())


def read(reader: Reader, entry: Entry) -> torch.Tensor:
    """One whole tensor; for small ones."""
    tensor = torch.empty(entry.shape, dtype=torch_dtype(reader.checkpoint, entry))
    reader.into(entry, as_bytes(tensor))
    return tensor


def stored(reader: Reader, entry: Entry) -> Iterator[tuple[Span, torch.Tensor]]:
    """Strips [r, K] in the dtype of the file. The memory of a strip is used again for the next."""
    dtype = torch_dtype(reader.checkpoint, entry)
    columns, itemsize = matrix_shape(entry.shape)[2], BITS[entry.dtype] // 8
    cut = spans(entry.shape, itemsize)
    longest = max((span.last - span.first for span in cut), default=0)
    buffer = torch.empty(longest, columns, dtype=dtype)
    for span in cut:
        strip = buffer[: span.last - span.first]
        reader.into(entry, as_bytes(strip), span.first * columns * itemsize)
        yield span, strip


def numbers(reader: Reader, entry: Entry) -> Iterator[tuple[Span, torch.Tensor]]:
    """Strips [r, K] of what the tensor means: FP8 times its block scales in FP32, others as stored.

    Raises:
        CheckpointError: FP8 without scales that fit.
    """
    if entry.dtype != "F8_E4M3":
        yield from stored(reader, entry)
        return
    scales = read(reader, reader.checkpoint.scale_of(entry)).flatten(0, -2)
    for span, values in stored(reader, entry):
        last = span.block + fp8.tiles(span.last - span.first)
        yield span, fp8.dequantize(values, scales[span.block : last])
