"""Write shards of safetensors piece by piece: a file has its name once it is whole.

A tensor may be written in strips and in any order, since its place is known from the header. The
index comes last, so a folder with an index is a whole checkpoint.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .shards import BITS, CONFIG, INDEX, CheckpointError


class Planned(NamedTuple):
    """A tensor to be written; `dtype` is a safetensors code."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        bits = BITS[self.dtype]
        for size in self.shape:
            bits *= size
        return bits // 8


def split(tensors: Iterable[Planned], shard_bytes: int) -> dict[str, list[Planned]]:
    """Shard names to tensors in the given order, as many to a shard as `shard_bytes` hold."""
    shards: list[list[Planned]] = []
    used = shard_bytes
    for tensor in tensors:
        if not shards or used + tensor.nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.nbytes
    count = len(shards)
    return {f"model-{i + 1:05d}-of-{count:05d}.safetensors": s for i, s in enumerate(shards)}


class ShardWriter:
    """One shard, a context manager; leaving it renames the file, or removes it on an error.

    Args:
        path: of the finished file.
        tensors: what it holds. Wide dtypes come first in the file, so that all are aligned.
        metadata: strings for the header.
    """

    def __init__(self, path: Path, tensors: Iterable[Planned], metadata: Mapping[str, str]):
        self.path, self._part = path, path.with_name(f".{path.name}.part")
        self._offsets: dict[str, int] = {}
        self._left: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
        at = 0
        for tensor in sorted(tensors, key=lambda t: -BITS[t.dtype]):
            end = at + tensor.nbytes
            header[tensor.name] = {
                "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end],
            }  # fmt: skip
            self._offsets[tensor.name], self._left[tensor.name] = at, tensor.nbytes
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._head, self.size = len(text).to_bytes(8, "little") + text, 8 + len(text) + at

    def is_there(self) -> bool:
        """Whether a whole file with this very header exists."""
        if not self.path.is_file() or self.path.stat().st_size != self.size:
            return False
        with self.path.open("rb") as file:
            return file.read(len(self._head)) == self._head

    def __enter__(self) -> "ShardWriter":
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._write(0, memoryview(self._head))
        return self

    def put(self, name: str, data: memoryview, offset: int = 0) -> None:
        """Write bytes of a tensor, `offset` bytes into it. Every byte is written once."""
        self._left[name] -= len(data)
        self._write(len(self._head) + self._offsets[name] + offset, data)

    def _write(self, at: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], at + done)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                wrong = [name for name, left in self._left.items() if left]
                if wrong:
                    raise RuntimeError(f"{self.path}: {wrong[0]} was not written whole")
                os.fsync(self._file)
                self._part.replace(self.path)
        finally:
            os.close(self._file)
            self._part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A small file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def finish(folder: Path, config: Mapping[str, Any], shards: Mapping[str, list[Planned]]) -> None:
    """Write `config.json`, and then the index that makes the folder a checkpoint."""
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    weight_map = {t.name: shard for shard, tensors in shards.items() for t in tensors}
    total = sum(t.nbytes for tensors in shards.values() for t in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make `folder` for a new checkpoint; errors of the system become a `CheckpointError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / INDEX).exists():
            raise CheckpointError(f"{folder}: holds a checkpoint already")
        yield
    except OSError as error:
        place = error.filename or folder
        raise CheckpointError(f"{folder}: cannot write {place} ({error.strerror})") from error
