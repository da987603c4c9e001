"""A released checkpoint into the model, and a model into a checkpoint of that layout.

Loading builds on meta, then reads every tensor into the memory that it will keep: the model and
one strip of a tensor are all that is ever held. Nothing of the model is touched before the last
tensor is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from . import fp8
from .builder import build
from .config import Config, ConfigError
from .deepseek import DeepSeek
from .layout import Slot, agreement, expected, is_fp8, of_mtp, place, slots
from .shard_writer import Planned, ShardWriter, finish, split, writing
from .shards import CONFIG, SCALE, Checkpoint, CheckpointError, Entry, Reader, open_checkpoint
from .strips import TORCH, as_bytes, numbers, stored


def config_of(checkpoint: Checkpoint) -> Config:
    """The config of a checkpoint, checked.

    Raises:
        CheckpointError: there is none, or it is not of this family.
    """
    if checkpoint.config is None:
        raise CheckpointError(f"{checkpoint.where}: no {CONFIG} in it")
    try:
        return Config.from_hf(checkpoint.config, f"{checkpoint.where}/{CONFIG}")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def load_model(
    folder: str | Path,
    *,
    precision: Literal["bf16", "fp16", "fp32", "fp8"] | None = None,
    mtp: bool = False,
) -> DeepSeek:
    """The model of a checkpoint, on CPU, for inference.

    Args:
        folder: with `config.json`, index and shards.
        precision: None keeps what is stored, FP8 or BF16. "bf16" (or "fp16", "fp32") of an FP8
            checkpoint dequantises on the way, "fp8" of a BF16 one quantises. For FP8 decode call
            `prepare_decode()` on the result.
        mtp: load the MTP layers too. Their copies of embedding and head, which the model shares,
            must be copies.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or not what its config asks for.
        ConfigError: `mtp` without MTP layers, or FP8 blocks other than 128×128.
    """
    checkpoint = open_checkpoint(folder)
    config = config_of(checkpoint)
    have_fp8 = is_fp8(checkpoint)
    model = build(config, precision=precision or ("fp8" if have_fp8 else "bf16"), mtp=mtp)
    _require(checkpoint, config, expected(config, fp8=have_fp8, mtp=mtp), mtp)
    meta = model.state_dict()
    if config.tie_word_embeddings:
        del meta["lm_head.weight"]
    state = {key: torch.empty_like(tensor, device="cpu") for key, tensor in meta.items()}
    wanted = slots(model)
    with Reader(checkpoint) as reader:
        for name, entry in checkpoint.entries.items():
            if name in wanted and not wanted[name].copy:
                _fill(reader, entry, wanted[name], wanted, state)
        for name, slot in wanted.items():
            if slot.copy:
                _same(reader, checkpoint.entries[name], checkpoint.entries[slot.key])
    model.load_state_dict(state, strict=not config.tie_word_embeddings, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.inv_freq = torch.empty_like(model.model.inv_freq, device="cpu")
    model.model.fill_inv_freq()
    return model


def _require(checkpoint: Checkpoint, config: Config, want: Mapping[str, Slot], mtp: bool) -> None:
    """Refuse a checkpoint that lacks something or holds what nobody would read."""
    found = agreement(checkpoint, want)
    where = checkpoint.where
    if found.missing:
        raise CheckpointError(
            f"{where}: {len(found.missing):,} tensors that its config asks for are missing, such "
            f"as {found.missing[0]}"
        )
    if found.mismatched:
        name, shard, have, expect = found.mismatched[0]
        raise CheckpointError(f"{where}/{shard}: {name} is {have}; its config asks for {expect}")
    left_out = set() if mtp else of_mtp(found.unexpected, config)
    unexpected = [name for name in found.unexpected if name not in left_out]
    if unexpected:
        shard = checkpoint.entries[unexpected[0]].shard
        raise CheckpointError(
            f"{where}/{shard}: {unexpected[0]} has no place in the model of its config"
        )


def _fill(
    reader: Reader,
    entry: Entry,
    slot: Slot,
    wanted: Mapping[str, Slot],
    state: Mapping[str, torch.Tensor],
) -> None:
    """Read one tensor to where it belongs, converting strip by strip where dtypes differ."""
    target = place(state, slot)
    if TORCH.get(entry.dtype) == target.dtype:
        reader.into(entry, as_bytes(target))
        return
    rows = target.view(-1, target.shape[-1])
    if target.dtype != fp8.E4M3:
        for span, strip in numbers(reader, entry):
            rows[span.first : span.last] = strip
        return
    scales = place(state, wanted[entry.name + SCALE]).view(-1, fp8.tiles(target.shape[-1]))
    for span, strip in numbers(reader, entry):
        values, scale = fp8.quantize_blocks(strip)
        rows[span.first : span.last] = values
        scales[span.block : span.block + len(scale)] = scale


def _same(reader: Reader, copy: Entry, original: Entry) -> None:
    """Two stored tensors are equal byte by byte."""
    equal = copy.dtype == original.dtype and all(
        torch.equal(left.view(torch.uint8), right.view(torch.uint8))
        for (_, left), (_, right) in zip(
            stored(reader, copy), stored(reader, original), strict=True
        )
    )
    if not equal:
        where = reader.checkpoint.where
        raise CheckpointError(
            f"{where}/{copy.shard}: {copy.name} differs from {original.name} "
            f"({original.shard}), which the model uses for both"
        )


def save_model(
    model: DeepSeek,
    folder: str | Path,
    config: Mapping[str, Any],
    *,
    shard_bytes: int = 4_300_000_000,
) -> None:
    """Write a model in the released layout: a tensor for each expert, several shards, an index.

    Args:
        model: on CPU, for inference or BF16 training.
        folder: is made; must not hold a checkpoint.
        config: the `config.json` to write.
        shard_bytes: of a shard, at most, unless one tensor is larger (default: the release's).

    Raises:
        CheckpointError: the folder holds a checkpoint, or cannot be written.
    """
    folder, state, released = Path(folder), model.state_dict(), slots(model)
    plan = split((Planned(n, s.dtype, s.shape) for n, s in released.items()), shard_bytes)
    with writing(folder):
        for shard, tensors in plan.items():
            with ShardWriter(folder / shard, tensors, {}) as writer:
                for tensor in tensors:
                    source = place(state, released[tensor.name])
                    writer.put(tensor.name, as_bytes(source.contiguous()))
        finish(folder, config, plan)
