"""What a checkpoint holds, from its headers alone; local or on the hub.

Beside it, whether that is what its config asks for, when the config is of this family.
"""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .config import supports
from .shards import CONFIG, Checkpoint, CheckpointError, Entry, open_checkpoint, parse_json, pattern


class PatternLine(NamedTuple):
    """All tensors of one name pattern, dtype and shape."""

    pattern: str
    dtype: str
    shape: tuple[int, ...]
    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True)
class Inventory:
    """A checkpoint in numbers.

    Attributes:
        where: the folder or hub id.
        lines: by name pattern, in the order of the files.
        elements, nbytes: by dtype.
        shards: bytes of each file; those of its tensors alone on the hub.
        missing, unexpected, mismatched: against the config; None where it is not of this family.
            `mismatched` says what is stored and what was expected.
        unindexed: names of tensors in the files that the index does not have.
    """

    where: str
    lines: tuple[PatternLine, ...]
    elements: dict[str, int]
    nbytes: dict[str, int]
    shards: dict[str, int]
    missing: tuple[str, ...] | None
    unexpected: tuple[str, ...] | None
    mismatched: tuple[str, ...] | None
    unindexed: tuple[str, ...]

    @property
    def agrees(self) -> bool | None:
        """Whether it holds exactly what its config asks for; None if that is unknown."""
        if self.missing is None:
            return None
        return not (self.missing or self.unexpected or self.mismatched or self.unindexed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **vars(self),
            "lines": [{**line._asdict(), "shape": list(line.shape)} for line in self.lines],
            "agrees": self.agrees,
        }


def inventory(checkpoint: Checkpoint) -> Inventory:
    """Count a checkpoint; reads no tensor.

    Raises:
        CheckpointError: the config is of this family and cannot be used.
    """
    entries = list(checkpoint.entries.values())
    elements, nbytes = Counter[str](), Counter[str]()
    for entry in entries:
        elements[entry.dtype] += entry.numel
        nbytes[entry.dtype] += entry.nbytes
    return Inventory(
        checkpoint.where, _lines(entries), dict(elements), dict(nbytes), dict(checkpoint.shards),
        *_against_config(checkpoint), tuple(entry.name for entry in checkpoint.unindexed),
    )  # fmt: skip


def _lines(entries: Sequence[Entry]) -> tuple[PatternLine, ...]:
    groups: dict[tuple[str, str, tuple[int, ...]], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((pattern(entry.name), entry.dtype, entry.shape), []).append(entry)
    return tuple(
        PatternLine(*key, len(of), sum(e.numel for e in of), sum(e.nbytes for e in of))
        for key, of in groups.items()
    )


def _against_config(
    checkpoint: Checkpoint,
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] | tuple[None, None, None]:
    if checkpoint.config is None or not supports(checkpoint.config):
        return None, None, None
    from .checkpoint import config_of  # with torch, which nothing else here needs
    from .layout import agreement, expected, is_fp8

    config = config_of(checkpoint)
    mtp = bool(config.num_nextn_predict_layers)
    found = agreement(checkpoint, expected(config, fp8=is_fp8(checkpoint), mtp=mtp))
    mismatched = tuple(
        f"{m.name} ({m.shard}): {m.stored}, expected {m.expected}" for m in found.mismatched
    )
    return found.missing, found.unexpected, mismatched


def find_checkpoint(where: str) -> Checkpoint:
    """A folder, or else a hub id such as `deepseek-ai/DeepSeek-V3`: headers alone.

    Raises:
        CheckpointError: neither, or the hub cannot be reached.
    """
    if Path(where).exists() or where.count("/") != 1 or where.startswith((".", "/", "~")):
        return open_checkpoint(where)
    return hub_checkpoint(where)


def hub_checkpoint(repo_id: str) -> Checkpoint:
    """The headers of a checkpoint on the hub; a few kB a shard are transferred.

    Raises:
        CheckpointError: there is none, or the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        HFValidationError,
        NotASafetensorsRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    config: dict[str, Any] | None = None
    try:
        metadata = huggingface_hub.get_safetensors_metadata(repo_id)
        with contextlib.suppress(RemoteEntryNotFoundError):
            config = parse_json(Path(huggingface_hub.hf_hub_download(repo_id, CONFIG)))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo_id}: no such folder, and the hub has no such repository (or only for members)"
        ) from error
    except (HFValidationError, NotASafetensorsRepoError) as error:
        raise CheckpointError(f"{repo_id}: {_first_line(error)}") from error
    except CheckpointError:
        raise
    except Exception as error:
        # The hub's client lets through whatever its HTTP library of the day raises.
        raise CheckpointError(
            f"{repo_id}: no such folder, and the hub cannot be asked "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    entries: dict[str, Entry] = {}
    unindexed: list[Entry] = []
    for shard, file in sorted(metadata.files_metadata.items()):
        for name, info in sorted(file.tensors.items(), key=lambda item: item[1].data_offsets):
            entry = Entry(name, info.dtype, tuple(info.shape), shard, *info.data_offsets)
            if metadata.weight_map.get(name) == shard:
                entries[name] = entry
            else:
                unindexed.append(entry)
    lacking = [name for name in metadata.weight_map if name not in entries]
    if lacking:
        shard = metadata.weight_map[lacking[0]]
        raise CheckpointError(
            f"{repo_id}/{shard}: holds no {lacking[0]}, which the index has there"
        )
    shards = {
        shard: sum(e.nbytes for e in (*entries.values(), *unindexed) if e.shard == shard)
        for shard in sorted(metadata.files_metadata)
    }
    return Checkpoint(repo_id, None, entries, shards, config, tuple(unindexed))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""
