"""Tiny models for the command line, and a way to run it: what it printed, and its exit code."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NoReturn

from tracer.run import main

DEEPSEEK = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0,
}


def deepseek(folder: Path, **changes: object) -> str:
    """A `config.json` of the family in `folder`; None as a value drops the key."""
    config = {k: v for k, v in {**DEEPSEEK, **changes}.items() if v is not None}
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def transformers_folder(kind: str, folder: Path) -> str:
    """A folder with the `config.json` of a tiny `kind`, written by transformers."""
    import transformers

    common = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    extra = {
        "llama": {},
        "gemma2": {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
        "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    }[kind]
    name = {"llama": "LlamaConfig", "gemma2": "Gemma2Config", "mixtral": "MixtralConfig"}[kind]
    getattr(transformers, name)(**common, **extra).save_pretrained(folder)
    return str(folder)


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def parse(text: str) -> Any:
    """JSON in the strict sense: no NaN, no Infinity."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def document(*arguments: object) -> Any:
    """The JSON document of a command that must succeed."""
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return parse(out)
