"""A small model for the tests of plans: five layers, the first dense, 48 experts."""

from __future__ import annotations

import functools

from tracer.capture.reference import ReferenceProgram
from tracer.models import bundled_config


@functools.cache
def small(dtype: str = "bf16") -> ReferenceProgram:
    config = {
        **bundled_config("deepseek-ai/DeepSeek-V3"),
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512,
        "moe_intermediate_size": 128, "num_hidden_layers": 5, "num_attention_heads": 8,
        "num_key_value_heads": 8, "q_lora_rank": 128, "kv_lora_rank": 128, "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 48,
        "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
    }  # fmt: skip
    return ReferenceProgram("small", config, dtype)
