"""Statistics of every weight of a local checkpoint, read once from front to back.

One thread reads strips of a few MB into a ring of buffers, others compute; a tensor is never held
whole. What is held: the ring, the scratch of the threads (four times a strip each), and for FP8 the
block histograms of a tensor (a few percent of it).
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from .shards import BITS, Checkpoint, CheckpointError, Entry, Reader
from .strips import matrix_shape, read, spans, torch_dtype
from .weight_kernels import Accumulator, Block8, Half, Single
from .weight_rows import SIGMA, TensorStats


def measured_entries(checkpoint: Checkpoint) -> list[Entry]:
    """The tensors that get a row, in the order of the files: all but scales of FP8 weights.

    Raises:
        CheckpointError: a dtype that cannot be measured, or FP8 without scales that fit.
    """
    scales = set()
    for entry in checkpoint.entries.values():
        torch_dtype(checkpoint, entry)
        if entry.dtype == "F8_E4M3":
            scales.add(checkpoint.scale_of(entry).name)
    return [entry for entry in checkpoint.entries.values() if entry.name not in scales]


def weight_stats(
    checkpoint: Checkpoint, *, sigma: float = SIGMA, workers: int | None = None
) -> Iterator[TensorStats]:
    """One row a tensor, as it is done.

    Until the last row torch runs on one thread: the strips keep all cores busy already.

    Args:
        checkpoint: a local one.
        sigma: outliers are further than this many standard deviations from zero.
        workers: computing threads (default: one for each core, at most 8).

    Raises:
        CheckpointError: as `measured_entries`, before anything is read; or a file that changed or
            cannot be read, after the rows of the tensors before it.
        ValueError: `sigma` is not above 0.
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}, not above 0")
    entries = measured_entries(checkpoint)
    return _rows(checkpoint, entries, sigma, workers or min(os.cpu_count() or 1, 8))


def _accumulator(reader: Reader, entry: Entry, sigma: float) -> Accumulator:
    if entry.dtype == "F8_E4M3":
        return Block8(entry, sigma, read(reader, reader.checkpoint.scale_of(entry)))
    return Single(entry, sigma) if entry.dtype == "F32" else Half(entry, sigma)


class _Ring:
    """Strips on their way: read into a free buffer, handed to a thread, taken in order."""

    def __init__(self, pool: ThreadPoolExecutor, size: int):
        self.pool, self.size = pool, size
        self.free: list[np.ndarray] = []
        self.made = 0
        self.busy: deque[tuple[Accumulator, Future[object], np.ndarray]] = deque()

    def buffer(self, nbytes: int) -> np.ndarray:
        if self.free:
            found = self.free.pop()
        elif self.made < self.size:
            found, self.made = np.empty(0, np.uint8), self.made + 1
        else:
            self.settle()
            found = self.free.pop()
        return found if len(found) >= nbytes else np.empty(nbytes, np.uint8)

    def settle(self) -> None:
        """Wait for the oldest strip."""
        accumulator, future, buffer = self.busy.popleft()
        accumulator.add(future.result())
        self.free.append(buffer)


def _rows(
    checkpoint: Checkpoint, entries: list[Entry], sigma: float, workers: int
) -> Iterator[TensorStats]:
    waiting: deque[tuple[Accumulator, int]] = deque()  # with the strips that come before its last
    with Reader(checkpoint) as reader, ThreadPoolExecutor(workers) as pool:
        ring, sent = _Ring(pool, workers + 2), 0
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for entry in entries:
                accumulator = _accumulator(reader, entry, sigma)
                row_bytes = matrix_shape(entry.shape)[2] * BITS[entry.dtype] // 8
                for turn in range(accumulator.passes):
                    while turn and ring.busy:  # the second reading needs all of the first
                        ring.settle()
                    for span in spans(entry.shape, BITS[entry.dtype] // 8):
                        nbytes = (span.last - span.first) * row_bytes
                        buffer = ring.buffer(nbytes)
                        reader.into(entry, memoryview(buffer)[:nbytes], span.first * row_bytes)
                        work = pool.submit(accumulator.work, buffer[:nbytes], span, turn)
                        ring.busy.append((accumulator, work, buffer))
                        sent += 1
                waiting.append((accumulator, sent))
                while waiting and waiting[0][1] <= sent - len(ring.busy):
                    yield waiting.popleft()[0].row()
            yield from _finished(ring, waiting)
        except CheckpointError:
            # What was read before the damage is still worth having.
            yield from _finished(ring, waiting)
            raise
        finally:
            torch.set_num_threads(threads)


def _finished(ring: _Ring, waiting: deque[tuple[Accumulator, int]]) -> Iterator[TensorStats]:
    while ring.busy:
        ring.settle()
    while waiting:
        yield waiting.popleft()[0].row()
