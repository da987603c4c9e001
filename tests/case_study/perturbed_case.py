"""A case in which everything differs from DeepSeek-V3's run: no answer may be the same."""

import json

import torch
from case_claims import Case

from tracer.models import bundled_config

SMALLER = {
    "hidden_size": 5120, "intermediate_size": 10240, "moe_intermediate_size": 1280,
    "num_hidden_layers": 33, "num_attention_heads": 80, "num_key_value_heads": 80,
    "q_lora_rank": 1024, "kv_lora_rank": 384, "qk_nope_head_dim": 96, "qk_rope_head_dim": 32,
    "v_head_dim": 96, "n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2,
    "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.0, "first_k_dense_replace": 1,
}  # fmt: skip

RUNS = {
    "deepseek_v3": {
        "source": "made up", "gpus": 512, "tokens": 5e12, "pretraining_hours": 700e3,
        "context_extension_hours": 40e3, "post_training_hours": 2e3,
        "hours_per_trillion_tokens": 141e3, "days_per_trillion_tokens": 11.0,
        "plan": "pp8 ep16 dp64 tp2 zero=1", "sequence": 2048, "sequences_first": 1024,
        "sequences_last": 6400, "bias_speed": 0.002, "auxiliary_alpha": 0.0003,
    },
    "deepseek_v3_step": {
        "source": "made up", "step": 11.0, "forward_only": 1.0, "bubble": 1.9,
        "backward_only": 1.0, "weights_only": 0.3, "forward_and_backward": 6.5, "optimizer": 0.3,
        "tokens_per_day": 90e9, "mfu_causal": 0.3,
    },
    "llama_405b": {"source": "made up", "hours": 9e6, "parameters": 200e9, "tokens": 9e12},
}  # fmt: skip


def perturbed() -> Case:
    """Another model, run, cluster, pipeline, context and seed; the two formats exchanged."""
    config = {**bundled_config("deepseek-ai/DeepSeek-V3"), **SMALLER}
    return Case(
        config=json.dumps(config), runs=json.dumps(RUNS), cluster_id="b200_ib", ranks=12,
        microbatches=30, small=(6, 14), context=50_000, seed=1,
        formats=(torch.float8_e5m2, torch.float8_e4m3fn),
    )  # fmt: skip
