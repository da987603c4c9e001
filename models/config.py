"""What a DeepSeek-V3-family model is made of, read from a Hugging Face `config.json`.

No torch in this file: listing the bundled models and refusing a bad config must be instant.

The bundled files under `configs/<org>/<name>.json` hold the values released on the hub; keys
that only point at remote code or at a library version (`auto_map`, `transformers_version`) are
left out.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"

MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "kimi_k2")
ARCHITECTURES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
SCORING_FUNCS = ("softmax", "sigmoid")
TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")


class ConfigError(ValueError):
    """A config that cannot be built; the message is one line and names the key."""


def bundled_ids() -> list[str]:
    """Ids of the bundled models, such as `deepseek-ai/DeepSeek-V3`, sorted."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/*.json"))


def bundled_config(model_id: str) -> dict[str, Any]:
    """The `config.json` of a bundled model as a dict; upper and lower case are the same.

    Raises:
        ConfigError: no bundled model has this id.
    """
    for known in bundled_ids():
        if known.lower() == model_id.lower():
            return json.loads((CONFIGS / f"{known}.json").read_text())
    raise ConfigError(f"no bundled model {model_id!r}; there are: {', '.join(bundled_ids())}")


def supports(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of this family, by its `model_type` or `architectures`."""
    architectures = config.get("architectures") or ()
    return config.get("model_type") in MODEL_TYPES or any(a in ARCHITECTURES for a in architectures)


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071); names as in `rope_scaling` of `config.json`."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0

    @property
    def attention_factor(self) -> float:
        """Multiplies cos and sin. 1 where both mscales agree, as in every release."""
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    @property
    def softmax_factor(self) -> float:
        """Multiplies the softmax scale. It stands where cos and sin could not reach q_nope."""
        return self._mscale(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _mscale(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True)
class Config:
    """Sizes and switches of one model; field names are the keys of `config.json`.

    Every size is a count of elements. `q_lora_rank` is None where the query is not compressed
    (V2-Lite, Moonlight). `yarn` is None where positions are not rescaled. `weight_block_size` is
    that of the released FP8 checkpoint, None where it was released in BF16.
    """

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    topk_method: str
    scoring_func: str
    norm_topk_prob: bool
    routed_scaling_factor: float
    first_k_dense_replace: int
    moe_layer_freq: int
    rms_norm_eps: float
    rope_theta: float
    yarn: Yarn | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    initializer_range: float
    num_nextn_predict_layers: int
    weight_block_size: tuple[int, int] | None

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head in the naive form (192 in V3)."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Elements cached per token and layer: compressed KV and rotary key (576 in V3)."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor on q·k before the softmax."""
        return self.qk_head_dim**-0.5 * (self.yarn.softmax_factor if self.yarn else 1.0)

    def is_moe(self, layer_idx: int) -> bool:
        """Whether this layer has experts instead of one dense feed-forward."""
        return layer_idx >= self.first_k_dense_replace and layer_idx % self.moe_layer_freq == 0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], name: str = "") -> "Config":
        """Read and check a `config.json` (of the hub, or as transformers 5 writes it).

        Args:
            config: the parsed file.
            name: model id or path, repeated in error messages.

        Raises:
            ConfigError: a key is missing, has the wrong type, or asks for something that this
                family does not have. One line.
        """
        read = _Reader(config, name)
        if not supports(config):
            got = config.get("model_type", config.get("architectures"))
            read.fail(f"model_type is {got!r}; supported are {', '.join(MODEL_TYPES)}")
        # Defaults below are only for keys that transformers itself leaves out when it writes
        # the config of that model type.
        v2 = config.get("model_type") == "deepseek_v2"
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            read.fail(f"rope_scaling is {rope!r}, not an object")
        theta = _Reader(rope if "rope_theta" in rope else config, name)
        result = cls(
            name=name,
            vocab_size=read.integer("vocab_size"),
            hidden_size=read.integer("hidden_size"),
            intermediate_size=read.integer("intermediate_size"),
            moe_intermediate_size=read.integer("moe_intermediate_size"),
            num_hidden_layers=read.integer("num_hidden_layers"),
            num_attention_heads=read.integer("num_attention_heads"),
            q_lora_rank=read.integer("q_lora_rank", null=True),
            kv_lora_rank=read.integer("kv_lora_rank"),
            qk_nope_head_dim=read.integer("qk_nope_head_dim"),
            qk_rope_head_dim=read.integer("qk_rope_head_dim"),
            v_head_dim=read.integer("v_head_dim"),
            n_routed_experts=read.integer("n_routed_experts"),
            n_shared_experts=read.integer("n_shared_experts", least=0, null=True) or 0,
            num_experts_per_tok=read.integer("num_experts_per_tok"),
            n_group=read.integer("n_group", default=1, null=True) or 1,
            topk_group=read.integer("topk_group", default=1, null=True) or 1,
            topk_method=read.choice("topk_method", TOPK_METHODS, "greedy" if v2 else "noaux_tc"),
            scoring_func=read.choice("scoring_func", SCORING_FUNCS, "softmax" if v2 else "sigmoid"),
            norm_topk_prob=read.boolean("norm_topk_prob"),
            routed_scaling_factor=read.number("routed_scaling_factor"),
            first_k_dense_replace=read.integer("first_k_dense_replace", least=0),
            moe_layer_freq=read.integer("moe_layer_freq", default=1),
            rms_norm_eps=read.number("rms_norm_eps"),
            rope_theta=theta.number("rope_theta"),
            yarn=_yarn(rope, name),
            max_position_embeddings=read.integer("max_position_embeddings"),
            tie_word_embeddings=read.boolean("tie_word_embeddings", default=False),
            initializer_range=read.number("initializer_range", default=0.02),
            num_nextn_predict_layers=read.integer("num_nextn_predict_layers", least=0, default=0),
            weight_block_size=_weight_block_size(config, read),
        )
        result._check(config, read)
        return result

    def _check(self, config: Mapping[str, Any], read: "_Reader") -> None:
        """Refuse combinations in which each value alone would be fine."""
        if self.qk_rope_head_dim % 2:
            read.fail(f"qk_rope_head_dim {self.qk_rope_head_dim} is odd; RoPE rotates pairs")
        heads = config.get("num_key_value_heads")
        if heads not in (None, self.num_attention_heads):
            read.fail(
                f"num_key_value_heads {heads!r} differs from num_attention_heads "
                f"{self.num_attention_heads}; MLA has as many"
            )
        for key, only in (
            ("attention_bias", False),
            ("mlp_bias", False),
            ("hidden_act", "silu"),
            ("rope_interleave", True),
        ):
            if config.get(key, only) not in (only, None):
                read.fail(f"{key} is {config[key]!r}; only {only!r} is supported")
        selectable = self.n_routed_experts
        if self.topk_method != "greedy":
            if self.n_routed_experts % self.n_group:
                read.fail(f"n_group {self.n_group} does not divide n_routed_experts {selectable}")
            if self.topk_group > self.n_group:
                read.fail(f"topk_group {self.topk_group} is more than n_group {self.n_group}")
            a_group = self.n_routed_experts // self.n_group
            if self.topk_method == "noaux_tc" and self.n_group > 1 and a_group < 2:
                read.fail(f"n_group {self.n_group} leaves one expert a group; noaux_tc ranks by 2")
            selectable = a_group * self.topk_group
        if self.num_experts_per_tok > selectable:
            read.fail(
                f"num_experts_per_tok {self.num_experts_per_tok} is more than the {selectable} "
                "experts that can be chosen from"
            )


def _yarn(rope: Mapping[str, Any], name: str) -> Yarn | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    read = _Reader(rope, name)
    if kind == "default":
        return None
    if kind != "yarn":
        read.fail(f"rope_scaling type is {kind!r}; supported are 'yarn' and none")
    for key in ("attention_factor", "truncate"):
        if rope.get(key, True if key == "truncate" else None) not in (True, None):
            read.fail(f"rope_scaling {key} {rope[key]!r} is not supported")
    return Yarn(
        factor=read.number("factor"),
        original_max_position_embeddings=read.integer("original_max_position_embeddings"),
        beta_fast=read.number("beta_fast", default=32.0),
        beta_slow=read.number("beta_slow", default=1.0),
        mscale=read.number("mscale", default=0.0, least=0.0),
        mscale_all_dim=read.number("mscale_all_dim", default=0.0, least=0.0),
    )


def _weight_block_size(config: Mapping[str, Any], read: "_Reader") -> tuple[int, int] | None:
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return None
    block = quantization.get("weight_block_size")
    if block is None:
        return None
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(map(_is_int, block)):
        read.fail(f"weight_block_size is {block!r}, not two integers")
    return (block[0], block[1])


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_REQUIRED: Any = object()


class _Reader:
    """Typed access to a parsed JSON object, with errors that name the key and the model."""

    def __init__(self, config: Mapping[str, Any], name: str):
        self.config = config
        self.prefix = f"{name}: " if name else ""

    def fail(self, problem: str) -> None:
        raise ConfigError(self.prefix + problem)

    def _get(self, key: str, default: Any) -> Any:
        if key not in self.config and default is _REQUIRED:
            self.fail(f"config has no key {key!r}")
        return self.config.get(key, default)

    def integer(
        self, key: str, *, least: int = 1, default: Any = _REQUIRED, null: bool = False
    ) -> Any:
        value = self._get(key, default)
        if value is None and null:
            return None
        if not _is_int(value) or value < least:
            self.fail(f"{key} is {value!r}, not an integer of {least} or more")
        return value

    def number(self, key: str, *, default: Any = _REQUIRED, least: float | None = None) -> float:
        value = self._get(key, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if (
            not number
            or not math.isfinite(value)
            or (value <= 0 if least is None else value < least)
        ):
            self.fail(f"{key} is {value!r}, not a number above 0")
        return float(value)

    def boolean(self, key: str, *, default: Any = _REQUIRED) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self.fail(f"{key} is {value!r}, not true or false")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        value = self._get(key, default)
        if value not in allowed:
            self.fail(f"{key} is {value!r}; supported are {', '.join(allowed)}")
        return value
