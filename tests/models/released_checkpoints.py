"""Small checkpoints in the released layout, written by the safetensors library, and ways to damage
them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from small_configs import FP8

from tracer.models import DeepSeek, build
from tracer.models.linear import Fp8Linear

# One dense, one MoE and one MTP layer, 4 experts.
SMALL = {**FP8, "num_hidden_layers": 2, "n_routed_experts": 4, "n_group": 2, "topk_group": 1}

INDEX = "model.safetensors.index.json"
RECIPE = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def random_model(config: dict, precision: str = "bf16", mtp: bool = True) -> DeepSeek:
    """Weights that all differ: norms and gate biases too."""
    model = build(config, precision=precision, mtp=mtp, device="cpu").init_weights(seed=3)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            parameter.normal_(0.0, 0.3, generator=generator)
        elif "norm" in name:
            parameter.normal_(1.0, 0.2, generator=generator)
    return model


def quantized(model: DeepSeek, config: dict) -> DeepSeek:
    """The FP8 model of a BF16 one, module by module."""
    result = build(config, precision="fp8", mtp=True, device="cpu")
    result.model.fill_inv_freq()
    for name, module in result.named_modules():
        if isinstance(module, Fp8Linear):
            module.quantize_(model.get_parameter(f"{name}.weight"))
        elif name.endswith(".experts"):
            for matrix in ("gate_proj", "up_proj", "down_proj"):
                module.quantize_(matrix, model.get_parameter(f"{name}.{matrix}"))
    for name, parameter in result.named_parameters():
        if parameter.dtype != torch.float8_e4m3fn:
            parameter.copy_(model.get_parameter(name))
    return result


def released_tensors(model: DeepSeek) -> dict[str, torch.Tensor]:
    """What the release holds: single experts, and embedding and head again in the MTP layer."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        prefix, _, matrix = name.partition(".experts.")
        if matrix and "shared" not in name:
            for expert, weight in enumerate(tensor):
                kind = ".weight_scale_inv" if matrix.endswith("_scale_inv") else ".weight"
                stem = matrix.removesuffix("_scale_inv")
                tensors[f"{prefix}.experts.{expert}.{stem}{kind}"] = weight.clone()
        else:
            tensors[name] = tensor.clone()
    if any(name.endswith("eh_proj.weight") for name in tensors):
        mtp = f"model.layers.{model.config.num_hidden_layers}"
        tensors[f"{mtp}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"{mtp}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return tensors


def shard_name(number: int, shards: int = 3) -> str:
    return f"model-{number:05d}-of-{shards:05d}.safetensors"


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict, shards: int = 3) -> Path:
    """`config.json`, index and shards; tensors in turn, so scales lie apart from their weights."""
    folder.mkdir(parents=True)
    weight_map = {name: shard_name(i % shards + 1, shards) for i, name in enumerate(tensors)}
    for shard in sorted(set(weight_map.values())):
        held = {name: t for name, t in tensors.items() if weight_map[name] == shard}
        save_file(held, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    fp8 = any(t.dtype == torch.float8_e4m3fn for t in tensors.values())
    recipe = {"quantization_config": RECIPE} if fp8 else {}
    (folder / "config.json").write_text(json.dumps(config | recipe))
    return folder


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def replace(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Another tensor in the place of one, or none; the index stays as it is."""
    path = shard_of(folder, name)
    tensors = load_file(path)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path)


def same_bytes(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    """Every weight and buffer equal, bit by bit."""
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8))
        for name in a
    )
