"""Sizes of images, audio and positions, read from configs that name them differently."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from .config import text_config

_SUBCONFIGS = (
    "vision_config", "vision_tower_config", "image_config", "audio_config", "audio_encoder_config",
    "speech_encoder_config", "encoder_config", "backbone_config", "text_config", "encoder",
)  # fmt: skip
_POSITIONS = (
    "max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions",
    "seq_length",
)  # fmt: skip
_HOP = 320  # samples a frame where a speech model's config does not tell: 20 ms at 16 kHz
_IMAGE = 224  # pixels a side, ImageNet's, where a convolutional model's config names no size


def find(config: Any, *names: str, default: Any = None) -> Any:
    """The first of `names` that `config` or one of its sub-configs sets; breadth first."""
    level = [config]
    while level:
        for item in level:
            for name in names:
                value = _get(item, name)
                if value is not None:
                    return value
        level = [
            sub
            for item in level
            for key in _SUBCONFIGS
            if hasattr(sub := _get(item, key), "to_dict") or isinstance(sub, dict)
        ]
    return default


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def image_size(config: Any) -> tuple[int, int]:
    """Height and width of the images that the config is made for."""
    size = find(config, "image_size", "img_size", "crop_size", "input_image_size")
    if isinstance(size, dict):
        size = (size.get("height", _IMAGE), size.get("width", _IMAGE))
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[-1])
    return (int(size), int(size)) if size else (_IMAGE, _IMAGE)


def tiles(model: Any) -> int:
    """Tiles that an image of the config's size is cut into, with the small one of the whole."""
    count = getattr(sys.modules[type(model).__module__], "image_size_to_num_patches", None)
    pinpoints = getattr(model.config, "image_grid_pinpoints", None)
    if count is None or not pinpoints:
        return 1
    height, width = image_size(model.config)
    return int(count([height, width], pinpoints, model.config.vision_config.image_size))


def channels(config: Any) -> int:
    """Colour channels."""
    return int(find(config, "num_channels", "in_channels", "in_chans", "input_channels", default=3))


def patch_size(config: Any) -> int:
    """Pixels a side of a patch."""
    size = find(config, "patch_size", default=16)
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def audio_samples(config: Any, frames: int) -> int:
    """Raw samples for `frames` steps behind the strided convolutions that read them."""
    kernels, strides = find(config, "conv_kernel"), find(config, "conv_stride")
    if not kernels or not strides:
        hop = find(config, "upsampling_ratios", "hop_length")
        return frames * (math.prod(hop) if isinstance(hop, Iterable) else int(hop or _HOP))
    samples = frames
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def learned_positions(model: Any) -> int | None:
    """How many positions a table of learned ones holds; None if no table was found."""
    limits = []
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if any(word in path for word in ("vision", "visual", "image", "audio")):
            continue
        if isinstance(module, nn.Embedding) and (
            name in ("wpe", "positions_embed", "pos_emb", "embed_positions")
            or (name.startswith("position") and "embed" in name)
        ):
            limits.append(module.num_embeddings)
    if not limits or not hasattr(model, "config"):
        return None
    names = [find(text_config(model.config), key) for key in _POSITIONS]
    stated = [n for n in names if isinstance(n, int) and n > 0]
    # Tables are often padded by an offset of 2 or so: what the config says is what they serve.
    smallest = min(limits)
    return min([smallest, *(n for n in stated if n >= smallest // 2)])
