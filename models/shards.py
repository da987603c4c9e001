"""The files of a released checkpoint: `config.json`, an index, shards of safetensors.

A shard is eight bytes with the length of a JSON header, the header (name -> dtype, shape, byte
range), then the tensors. The header is read here and not by the safetensors library, which says of
a damaged file neither which tensor is damaged nor where tensors lie, and both are needed: for
errors, and to stream a tensor in pieces without mapping the file.

No torch in this file.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SCALE = "_scale_inv"  # behind the name of a weight: the name of its block scales

# Bits of an element by safetensors' own codes (github.com/huggingface/safetensors, tensor.rs).
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "BOOL": 8,
    "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; one line that names the file, and the tensor if any."""


@dataclass(frozen=True)
class Entry:
    """One stored tensor: bytes `start` to `end` of the file `shard`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    start: int
    end: int

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.start


@dataclass(frozen=True)
class Checkpoint:
    """What the headers of a checkpoint say.

    Attributes:
        where: the folder or hub id, as it was given.
        folder: None for a checkpoint on the hub.
        entries: by name, in the order of the files.
        shards: bytes of each file; those of its tensors alone on the hub.
        config: the parsed `config.json`, None where there is none.
        unindexed: tensors in a shard that the index does not name; nothing reads them.
    """

    where: str
    folder: Path | None
    entries: Mapping[str, Entry]
    shards: Mapping[str, int]
    config: Mapping[str, Any] | None
    unindexed: tuple[Entry, ...] = ()

    def scale_of(self, entry: Entry) -> Entry:
        """The entry of the 128×128 block scales that belong to an FP8 weight.

        Raises:
            CheckpointError: there are none, or their shape or dtype is not that of the blocks.
        """
        name = entry.name + SCALE
        scale = self.entries.get(name)
        if scale is None:
            raise CheckpointError(f"{self._at(entry)} is {entry.dtype} but {name} is not there")
        if len(entry.shape) < 2:
            raise CheckpointError(
                f"{self._at(entry)} is {entry.dtype} and no matrix: {entry.shape}"
            )
        want = (*entry.shape[:-2], -(-entry.shape[-2] // 128), -(-entry.shape[-1] // 128))
        if scale.shape != want or scale.dtype != "F32":
            raise CheckpointError(
                f"{self._at(scale)} is {scale.dtype} {list(scale.shape)}; the 128x128 blocks of "
                f"{list(entry.shape)} need F32 {list(want)}"
            )
        return scale

    def _at(self, entry: Entry) -> str:
        return f"{self.where}/{entry.shard}: {entry.name}"


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the index and the header of every shard; no tensor is read.

    Raises:
        CheckpointError: no checkpoint, or one whose files are missing, damaged or disagree.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    config = parse_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if (folder / INDEX).is_file():
        weight_map = _weight_map(folder / INDEX)
    elif (folder / SINGLE).is_file():
        weight_map = dict.fromkeys(read_header(folder / SINGLE), SINGLE)
    else:
        raise CheckpointError(f"{folder}: not a checkpoint: {_what_lacks(folder)}")
    entries: dict[str, Entry] = {}
    shards: dict[str, int] = {}
    unindexed: list[Entry] = []
    of_shard: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        of_shard.setdefault(shard, []).append(name)
    for shard, names in sorted(of_shard.items()):
        path = folder / shard
        if not path.is_file():
            raise CheckpointError(
                f"{path}: missing; the index has {len(names):,} of its tensors there, such as "
                f"{names[0]}"
            )
        header = read_header(path, names[0])
        lacking = [name for name in names if name not in header]
        if lacking:
            raise CheckpointError(f"{path}: holds no {lacking[0]}, which the index has there")
        shards[shard] = path.stat().st_size
        for name, entry in sorted(header.items(), key=lambda item: item[1].start):
            if weight_map.get(name) == shard:
                entries[name] = entry
            else:
                unindexed.append(entry)
    return Checkpoint(str(folder), folder, entries, shards, config, tuple(unindexed))


def _what_lacks(folder: Path) -> str:
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        return f"{shards[0].name} but no {INDEX} (a conversion that was cut short?)"
    return f"neither {INDEX} nor {SINGLE} in it"


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = parse_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: no weight_map from tensor to file in it")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{path}: {name} lies in {shard!r}, which is no file name")
    return weight_map


def parse_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        CheckpointError: it is none.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: a JSON {type(found).__name__}, not an object")
    return found


def read_header(path: Path, expected: str = "its tensors") -> dict[str, Entry]:
    """The entries of one shard, by name. `expected` is what the index has there, for errors.

    Raises:
        CheckpointError: cut short, not safetensors, or byte ranges that do not fit.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # A cut can fall into the eight bytes, the header or the tensors; a length that makes no
        # sense at all is another kind of file.
        if size < 8 or (8 + length > size and length <= LONGEST_HEADER):
            raise CheckpointError(
                f"{path}: truncated: {size:,} bytes end inside the header, so {expected} cannot "
                "be found"
            )
        if length > LONGEST_HEADER:
            raise CheckpointError(f"{path}: not a safetensors file, so {expected} cannot be found")
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = [
            _entry(path, name, item) for name, item in header.items() if name != "__metadata__"
        ]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: its header is no safetensors header ({error})") from error
    at = 8 + length
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        begin, end = entry.start + 8 + length, entry.end + 8 + length
        if begin != at:
            raise CheckpointError(f"{path}: {entry.name} begins at byte {begin:,}, not at {at:,}")
        if end > size:
            raise CheckpointError(
                f"{path}: truncated: {entry.name} ends at byte {end:,} of a file of {size:,}"
            )
        at = end
    if at != size:
        raise CheckpointError(f"{path}: {size - at:,} bytes behind its last tensor")
    return {
        e.name: Entry(e.name, e.dtype, e.shape, e.shard, e.start + 8 + length, e.end + 8 + length)
        for e in entries
    }


def _entry(path: Path, name: str, item: Mapping[str, Any]) -> Entry:
    dtype, shape, (start, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
    if dtype not in BITS:
        raise CheckpointError(
            f"{path}: {name} has dtype {dtype!r}; safetensors knows {', '.join(BITS)}"
        )
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise CheckpointError(f"{path}: {name} has shape {shape} at {start}..{end}")
    entry = Entry(name, dtype, shape, path.name, start, end)
    if entry.nbytes * 8 != entry.numel * BITS[dtype]:
        raise CheckpointError(
            f"{path}: {name} is {dtype} {list(shape)}, which is not {entry.nbytes:,} bytes"
        )
    return entry


@dataclass
class Reader:
    """Reads pieces of tensors of a local checkpoint; a context manager that closes its files."""

    checkpoint: Checkpoint
    _open: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def into(self, entry: Entry, buffer: memoryview, offset: int = 0) -> None:
        """Fill `buffer` (bytes) from byte `offset` of the tensor on.

        Raises:
            CheckpointError: the file ends before that, or cannot be read.
        """
        at, path = entry.start + offset, f"{self.checkpoint.where}/{entry.shard}"
        try:
            descriptor = self._descriptor(entry.shard)
            done = 0
            while done < len(buffer):
                got = os.preadv(descriptor, [buffer[done:]], at + done)
                if not got:
                    raise CheckpointError(f"{path}: truncated: it ends inside {entry.name}")
                done += got
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read {entry.name} ({error.strerror})") from error

    def _descriptor(self, shard: str) -> int:
        if shard not in self._open:
            # One file after the other is the rule: keep a few open, not hundreds.
            while len(self._open) >= 8:
                os.close(self._open.pop(next(iter(self._open))))
            folder = self.checkpoint.folder
            if folder is None:
                raise CheckpointError(f"{self.checkpoint.where}: on the hub: only headers are read")
            self._open[shard] = os.open(folder / shard, os.O_RDONLY)
            os.posix_fadvise(self._open[shard], 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self._open[shard]


def pattern(name: str) -> str:
    """A tensor name with its layer and expert numbers as `*`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
