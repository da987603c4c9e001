"""Studies of small models for the report's tests, each made once a process."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from tracer.full_report import studied
from tracer.report.blocks import Section
from tracer.report.sections import build
from tracer.report.studied import Studied
from tracer.report.summary import Study
from tracer.run import answer, parser

SIZES = ("--batch", "2", "--seq", "32", "--context", "48")

_TEXT = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek": {
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 96,
        "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4,
        "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
        "v_head_dim": 16, "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4,
        "n_group": 4, "topk_group": 2, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 512, "tie_word_embeddings": False,
        "num_nextn_predict_layers": 0,
    },
    "llama": _TEXT | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "mixtral": _TEXT | {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": _TEXT | {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    },
    "gpt_oss": _TEXT | {
        "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_local_experts": 8,
        "num_experts_per_tok": 2, "sliding_window": 16,
    },
    "jamba": _TEXT | {
        "model_type": "jamba", "architectures": ["JambaForCausalLM"], "num_experts": 4,
        "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8,
        "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "mamba": {
        "model_type": "mamba", "architectures": ["MambaForCausalLM"], "vocab_size": 96,
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "state_size": 8,
        "time_step_rank": 4,
    },
    "vit": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    },
}  # fmt: skip

CONFIGS["deepseek_mtp"] = CONFIGS["deepseek"] | {"num_nextn_predict_layers": 1}

OWN = '''
import torch
from torch import nn

class Odd(nn.Module):
    """Its names are what an attacker, or a careless person, may choose."""

    def __init__(self):
        super().__init__()
        self.add_module("<img src=x onerror=alert(1)>", nn.Linear(64, 256))
        self.add_module("a|b`c", nn.Linear(256, 10))

    def forward(self, x):
        first, second = self.children()
        return torch.sin(second(torch.relu(first(x)))).cumsum(-1)

class Nothing(nn.Module):
    def forward(self, x):
        return x * 2 + 1

class Convnet(nn.Module):
    """In FP32, which runs on vector units."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.stem(x))).mean((2, 3)))

class Block(nn.Module):
    """Attends itself, as many a person's block does, with an MLP beside."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.scale = nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))

    def forward(self, x, c):
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        heads = [t.unflatten(-1, (4, 8)).transpose(1, 2) for t in parts]
        mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.scale(c)[:, None] * self.out(mixed)
        return x + self.mlp(x)

class Denoiser(nn.Module):
    """Patches and an embedding of time, as a diffusion transformer has them."""

    def __init__(self):
        super().__init__()
        self.patch, self.time = nn.Conv2d(3, 32, 4, 4), nn.Linear(16, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(32, 48)

    def forward(self, x, t):
        angles = t[:, None] * torch.arange(8, device=t.device, dtype=t.dtype)
        c = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        h = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = block(h, c)
        return self.head(h)

def denoiser():
    return Denoiser().bfloat16()

def convnet():
    return Convnet()

def half_convnet():
    return Convnet().bfloat16()

def odd():
    return Odd()

def nothing():
    return Nothing()
'''


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="report-tests-"))


def given(name: str) -> list[str]:
    """Arguments that name a configuration of `CONFIGS`, or a module of `OWN`."""
    if name in CONFIGS:
        place = _folder() / name
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(json.dumps(CONFIGS[name]))
        return ["--hf-config", str(place), *SIZES]
    file = _folder() / "own.py"
    file.write_text(OWN)
    inputs = {"convnet": ["x:fp32[B,3,32,32]"], "half_convnet": ["x:bf16[B,3,32,32]"],
              "denoiser": ["x:bf16[B,3,32,32]", "t:bf16[B]"]}  # fmt: skip
    mine = inputs.get(name, ["x:bf16[B,64]"])
    return ["--module", f"{file}:{name}", *(word for text in mine for word in ("--input", text))]


@functools.cache
def study(name: str, *arguments: str) -> Study:
    """What `given` names, with all its phases."""
    options = parser().parse_args([*given(name), *arguments])
    return answer(options, f"tracer {' '.join(given(name))}")


@functools.cache
def formulas(name: str, *arguments: str) -> Studied:
    """What traces with symbols say of it."""
    return studied(parser().parse_args([*given(name), *arguments]))


@functools.cache
def sections(name: str, *arguments: str) -> tuple[Section, ...]:
    """The report of `study(name)`."""
    return build(study(name, *arguments))
