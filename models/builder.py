"""From a config to a model."""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from .config import Config, ConfigError
from .deepseek import DeepSeek
from .fp8 import TILE
from .linear import Precision

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8": torch.bfloat16,  # of all that is not E4M3
}


def build(
    config: Mapping[str, Any] | Config,
    *,
    precision: Literal["bf16", "fp16", "fp32", "fp8"] = "bf16",
    training: bool = False,
    mtp: bool = False,
    device: torch.device | str = "meta",
) -> DeepSeek:
    """Allocate a model; on a real device its weights still have to be filled or loaded.

    Args:
        config: a `Config` or the parsed `config.json`.
        precision: "fp8" is E4M3 for attention projections and feed-forward matrices, BF16 for
            embedding, head, norms, gate and `eh_proj`, as released.
        training: weights require gradients; in FP8 they stay BF16 and are quantised at every use.
            Otherwise nothing requires a gradient.
        mtp: build the MTP layers as well.
        device: "meta" allocates nothing.

    Raises:
        ConfigError: the config is not usable, or has no MTP layers, or its FP8 blocks are not
            128×128.
        ValueError: unknown precision.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision is {precision!r}; supported are {', '.join(DTYPES)}")
    if not isinstance(config, Config):
        config = Config.from_hf(config)
    prefix = f"{config.name}: " if config.name else ""
    if mtp and not config.num_nextn_predict_layers:
        raise ConfigError(f"{prefix}num_nextn_predict_layers is 0: there is no MTP layer")
    fp8 = precision == "fp8"
    if fp8 and config.weight_block_size not in (None, (TILE, TILE)):
        raise ConfigError(f"{prefix}weight_block_size is not {TILE}x{TILE}")
    recipe = Precision(DTYPES[precision], fp8=fp8, training=training)
    model = DeepSeek(config, recipe, mtp=mtp, device=device)
    return model.train() if training else model.eval().requires_grad_(False)
