"""Reference models in plain PyTorch: the DeepSeek-V3 family.

    from tracer.models import build, bundled_config

    model = build(bundled_config("deepseek-ai/DeepSeek-V3"))  # on meta: 671B parameters, no memory

One file, one thing: `config` what a model is made of, `deepseek` the model, `attention` MLA in
both forms, `moe` gate and experts, `linear` and `fp8` the products, `cache` the latent KV cache,
`rope`, `norm`, `builder`. Released files: `checkpoint` loads and saves, `convert` between BF16 and
FP8, `inventory` and `weight_stats` look into them; `shards` and `shard_writer` are the format,
`strips` pieces of tensors, `layout` which tensor belongs where.

Names are imported on first use: listing models costs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .builder import build
    from .cache import KVCache
    from .checkpoint import load_model, save_model
    from .config import Config, ConfigError, bundled_config, bundled_ids, supports
    from .deepseek import DeepSeek
    from .shards import CheckpointError

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "DeepSeek",
    "KVCache",
    "build",
    "bundled_config",
    "bundled_ids",
    "load_model",
    "save_model",
    "supports",
]

_HOME = {
    "CheckpointError": "shards",
    "DeepSeek": "deepseek",
    "KVCache": "cache",
    "build": "builder",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME.get(name, 'config')}", __name__), name)
