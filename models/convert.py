"""BF16 <-> FP8 with 128×128 block scales, one strip of a tensor after the other.

Which tensors become FP8 follows from the config, as in the release: projections of attention and
feed-forward matrices; embedding, head, norms, gate and `eh_proj` stay as they are. A shard of the
source becomes a shard of the same name.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from . import fp8
from .checkpoint import config_of
from .layout import expected, is_fp8, quantized_config
from .shard_writer import Planned, ShardWriter, finish, writing
from .shards import CONFIG, INDEX, SCALE, Checkpoint, CheckpointError, Entry, Reader
from .strips import as_bytes, matrix_shape, numbers, stored, torch_dtype

# Tokenizer, licence, code and the like come along; anything larger is no such file.
_LARGEST_COMPANION = 64_000_000


class Written(NamedTuple):
    """A shard that is whole; `kept` when an earlier, interrupted conversion had written it."""

    shard: str
    nbytes: int
    kept: bool


class _Step(NamedTuple):
    """A source tensor and what becomes of it: itself, BF16, or FP8 (then with its scales)."""

    entry: Entry
    dtype: str

    @property
    def outputs(self) -> list[Planned]:
        name, shape = self.entry.name, self.entry.shape
        tensor = Planned(name, self.dtype, shape)
        if self.dtype != "F8_E4M3" or self.entry.dtype == self.dtype:
            return [tensor]
        blocks = (*shape[:-2], fp8.tiles(shape[-2]), fp8.tiles(shape[-1]))
        return [tensor, Planned(name + SCALE, "F32", blocks)]


def convert(
    source: Checkpoint, folder: str | Path, dtype: Literal["bf16", "fp8"]
) -> Iterator[Written]:
    """Write `source` in another precision to `folder`; yields shard by shard as they get whole.

    The index is written last. When interrupted, whole shards stay, no part of one does, and the
    same call picks up behind them.

    Raises:
        CheckpointError: the source is in that precision already, is damaged or holds a dtype that
            cannot be converted; the folder holds a checkpoint, is the source's, or cannot be
            written.
    """
    folder = Path(folder)
    if source.folder is None:
        raise CheckpointError(f"{source.where}: on the hub: download it first")
    if folder.resolve() == source.folder.resolve():
        raise CheckpointError(f"{folder}: source and destination are the same folder")
    if source.config is None:
        raise CheckpointError(f"{source.where}: no {CONFIG} in it")
    if is_fp8(source) == (dtype == "fp8"):
        raise CheckpointError(
            f"{source.where}: is {'FP8' if dtype == 'fp8' else 'not FP8'} already"
        )
    steps = _steps(source, dtype)
    shards = {
        shard: [output for step in of_shard for output in step.outputs]
        for shard, of_shard in steps.items()
    }
    config = quantized_config(source.config, dtype == "fp8")
    metadata = {"converted_from": _fingerprint(source)}
    with writing(folder), Reader(source) as reader:
        for shard, of_shard in steps.items():
            writer = ShardWriter(folder / shard, shards[shard], metadata)
            kept = writer.is_there()
            if not kept:
                with writer:
                    for step in of_shard:
                        _write(reader, step, writer)
            yield Written(shard, writer.size, kept)
        _companions(source.folder, folder)
        finish(folder, config, shards)


def _steps(source: Checkpoint, dtype: str) -> dict[str, list[_Step]]:
    """By shard, what becomes of each tensor; doubts are raised here, before anything is read."""
    to_fp8: set[str] = set()
    if dtype == "fp8":
        config = config_of(source)
        mtp = bool(config.num_nextn_predict_layers)
        slots = expected(config, fp8=True, mtp=mtp)
        to_fp8 = {name for name, slot in slots.items() if slot.dtype == "F8_E4M3"}
    steps: dict[str, list[_Step]] = {}
    for name, entry in source.entries.items():
        scaled = source.entries.get(name.removesuffix(SCALE)) if name.endswith(SCALE) else None
        if scaled is not None and scaled.dtype == "F8_E4M3":
            continue  # its weight takes it in
        target = entry.dtype
        if name in to_fp8:
            torch_dtype(source, entry)
            if len(entry.shape) < 2:
                raise CheckpointError(f"{source.where}/{entry.shard}: {name} is no matrix")
            target = "F8_E4M3"
        elif entry.dtype == "F8_E4M3":
            source.scale_of(entry)
            target = "BF16"
        else:
            torch_dtype(source, entry)
        steps.setdefault(entry.shard, []).append(_Step(entry, target))
    if dtype == "fp8" and not to_fp8 & set(source.entries):
        raise CheckpointError(f"{source.where}: no tensor of it is FP8 in the release")
    return steps


def _write(reader: Reader, step: _Step, writer: ShardWriter) -> None:
    entry, (planned, *scales) = step.entry, step.outputs
    columns = matrix_shape(entry.shape)[2]
    itemsize = planned.nbytes // max(entry.numel, 1)
    if step.dtype == entry.dtype:
        for span, strip in stored(reader, entry):
            writer.put(entry.name, as_bytes(strip), span.first * columns * itemsize)
        return
    for span, strip in numbers(reader, entry):
        values = strip
        if scales:
            values, scale = fp8.quantize_blocks(strip)
            at = span.block * scale.shape[-1] * 4
            writer.put(scales[0].name, as_bytes(scale.contiguous()), at)
        else:
            values = strip.to(torch.bfloat16)
        writer.put(entry.name, as_bytes(values), span.first * columns * itemsize)


def _fingerprint(source: Checkpoint) -> str:
    """Changes with the source, so that shards of another conversion are not taken for ours."""
    digest = hashlib.sha256()
    for shard, size in source.shards.items():
        stat = (source.folder / shard).stat()
        digest.update(f"{shard} {size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _companions(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors" or path.name in (CONFIG, INDEX) or not path.is_file():
            continue
        if path.name.startswith(".") or path.stat().st_size > _LARGEST_COMPANION:
            continue
        part = folder / f".{path.name}.part"
        try:
            shutil.copyfile(path, part)
            part.replace(folder / path.name)
        finally:
            part.unlink(missing_ok=True)
