"""What a plan has to divide: the sizes of a model, read from its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts that a plan cuts into pieces; 0 where the model has no such thing.

    `width` is that of a dense feed-forward, `expert_width` that of one expert. `latent` says that
    all heads share one compressed KV (MLA), so that the cache is not cut by heads. `tied`: the
    embedding is the output head. `mtp`: modules of multi-token prediction.
    """

    layers: int
    heads: int
    kv_heads: int
    vocab: int
    width: int
    experts: int = 0
    top_k: int = 0
    expert_width: int = 0
    shared_width: int = 0
    latent: bool = False
    tied: bool = False
    mtp: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes:
        """From a parsed `config.json`, whatever its family calls them.

        Raises:
            UserError: there is no layer, head or vocabulary count under any name that is known.
        """
        text = config.get("text_config")
        if isinstance(text, Mapping):
            config = {**config, **text}

        def first(*names: str, default: int | None = None) -> int:
            for name in names:
                if isinstance(config.get(name), int):
                    return int(config[name])
            if default is None:
                raise UserError(f"the config has none of {', '.join(names)}")
            return default

        heads = first("num_attention_heads", "n_head", "num_heads")
        experts = first("n_routed_experts", "num_local_experts", "num_experts", default=0)
        hidden = first("hidden_size", "n_embd", "d_model")
        width = first("intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * hidden)
        expert_width = first("moe_intermediate_size", default=width) if experts else 0
        shared = first("n_shared_experts", default=0) * expert_width
        return cls(
            layers=first("num_hidden_layers", "n_layer", "num_layers"),
            heads=heads,
            kv_heads=first("num_key_value_heads", default=heads),
            vocab=first("vocab_size"),
            width=width,
            experts=experts,
            top_k=first("num_experts_per_tok", "num_experts_per_token", default=0),
            expert_width=expert_width,
            shared_width=shared or first("shared_expert_intermediate_size", default=0),
            latent=isinstance(config.get("kv_lora_rank"), int),
            tied=bool(config.get("tie_word_embeddings", False)),
            mtp=first("num_nextn_predict_layers", default=0),
        )
