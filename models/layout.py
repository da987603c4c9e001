"""Which tensors the released checkpoint of a config holds, and where in our model each belongs.

Names are ours but for two things: the release has one tensor for each routed expert where the
model has a stack, and an MTP layer of the release carries its own copies of embedding and head,
which the model shares.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from .builder import build
from .config import Config
from .deepseek import DeepSeek
from .shards import Checkpoint
from .strips import CODES

_STACK = re.compile(r"(.*\.experts)\.((?:gate|up|down)_proj)(_scale_inv)?")
# Rotary frequencies that some releases store (Moonlight); the model computes them.
_COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")


class Slot(NamedTuple):
    """Where a released tensor goes.

    key: in the model's `state_dict`.
    expert: index into a stack, None for a tensor of its own.
    shape, dtype: of the released tensor; dtype is a safetensors code.
    copy: the model shares `key`, and the released tensor must equal the one that fills it.
    """

    key: str
    expert: int | None
    shape: tuple[int, ...]
    dtype: str
    copy: bool = False


def slots(model: DeepSeek) -> dict[str, Slot]:
    """Every tensor of the release, by name, for a model that may be on meta."""
    found: dict[str, Slot] = {}
    for key, tensor in model.state_dict().items():
        shape, code = tuple(tensor.shape), CODES[tensor.dtype]
        stack = _STACK.fullmatch(key)
        if stack:
            prefix, name, scale = stack.groups("")
            for expert in range(shape[0]):
                released = f"{prefix}.{expert}.{name}.weight{scale}"
                found[released] = Slot(key, expert, shape[1:], code)
        elif not (model.config.tie_word_embeddings and key == "lm_head.weight"):
            found[key] = Slot(key, None, shape, code)
    embed = found["model.embed_tokens.weight"]
    head = found.get("lm_head.weight", embed)
    main = model.config.num_hidden_layers
    for index in range(main, len(model.model.layers)):
        prefix = f"model.layers.{index}"
        found[f"{prefix}.embed_tokens.weight"] = embed._replace(copy=True)
        found[f"{prefix}.shared_head.head.weight"] = head._replace(copy=True)
    return found


class Mismatch(NamedTuple):
    """A tensor that is stored with another shape (or kind of dtype) than the config says."""

    name: str
    shard: str
    stored: str
    expected: str


class Agreement(NamedTuple):
    """What a checkpoint holds beside what its config asks for; all empty when they agree."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]

    @property
    def complete(self) -> bool:
        """Nothing to remark."""
        return not (self.missing or self.unexpected or self.mismatched)


def is_fp8(checkpoint: Checkpoint) -> bool:
    """Whether any tensor is stored in E4M3."""
    return any(entry.dtype == "F8_E4M3" for entry in checkpoint.entries.values())


def expected(config: Config, *, fp8: bool, mtp: bool) -> dict[str, Slot]:
    """Every tensor of the release of a config, by name; nothing is allocated.

    Raises:
        ConfigError: `mtp` without MTP layers.
    """
    return slots(build(config, precision="fp8" if fp8 else "bf16", mtp=mtp))


def agreement(checkpoint: Checkpoint, want: Mapping[str, Slot]) -> Agreement:
    """Compare names, shapes, and FP8 or not; other float dtypes may stand for each other."""
    have = checkpoint.entries
    mismatched = []
    for name, slot in want.items():
        entry = have.get(name)
        if entry is None:
            continue
        as_fp8 = "F8_E4M3" in (entry.dtype, slot.dtype) and entry.dtype != slot.dtype
        if entry.shape != slot.shape or as_fp8:
            mismatched.append(Mismatch(
                name, entry.shard, f"{entry.dtype} {list(entry.shape)}",
                f"{slot.dtype} {list(slot.shape)}",
            ))  # fmt: skip
    return Agreement(
        tuple(name for name in want if name not in have),
        tuple(name for name in have if name not in want and not _COMPUTED.fullmatch(name)),
        tuple(mismatched),
    )


def of_mtp(names: Iterable[str], config: Config) -> set[str]:
    """Those names that belong to MTP layers."""
    prefixes = tuple(
        f"model.layers.{config.num_hidden_layers + i}."
        for i in range(config.num_nextn_predict_layers)
    )
    return {name for name in names if prefixes and name.startswith(prefixes)}


def place(state: Mapping[str, torch.Tensor], slot: Slot) -> torch.Tensor:
    """The part of the model's tensor that a released one fills, a view."""
    tensor = state[slot.key]
    return tensor if slot.expert is None else tensor[slot.expert]


def quantized_config(config: Mapping[str, Any], fp8: bool) -> dict[str, Any]:
    """A `config.json` with the FP8 recipe of the release in it, or without any."""
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    if fp8:
        kept["quantization_config"] = {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
            "weight_block_size": [128, 128],
        }  # fmt: skip
    return kept
