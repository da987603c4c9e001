"""Logits equal those of transformers with the same weights, FP32 on CPU."""

from copy import deepcopy

import pytest
import torch
from small_configs import V2, V2_LITE, V3

from tracer.models import KVCache, build

# Largest difference of a logit over the largest logit. Both sides are FP32 (rounding 6e-8) through
# 3 layers with sums of at most 96 terms in different orders; 1e-5 leaves two orders of magnitude,
# and a wrong epsilon, scale, expert or frequency shows at 1e-3 and above.
TOLERANCE = 1e-5


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def transformers_model(config: dict) -> torch.nn.Module:
    from transformers import (
        DeepseekV2Config,
        DeepseekV2ForCausalLM,
        DeepseekV3Config,
        DeepseekV3ForCausalLM,
    )

    v2 = config["model_type"] == "deepseek_v2"
    # A copy, because transformers writes into the nested rope dictionary that it is given.
    hf_config = (DeepseekV2Config if v2 else DeepseekV3Config).from_dict(deepcopy(config))
    return (DeepseekV2ForCausalLM if v2 else DeepseekV3ForCausalLM)(hf_config).eval()


def copy_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Same names, except that transformers fuses gate and up of the routed experts."""
    state = {
        key: value
        for key, value in ours.state_dict().items()
        if ".experts.gate_proj" not in key and ".experts.up_proj" not in key
    }
    for idx, layer in enumerate(ours.model.layers):
        if hasattr(layer.mlp, "experts"):
            both = (layer.mlp.experts.gate_proj, layer.mlp.experts.up_proj)
            state[f"model.layers.{idx}.mlp.experts.gate_up_proj"] = torch.cat(both, dim=1)
    theirs.load_state_dict(state, strict=True)


def pair(config: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    ours = build(config, precision="fp32", device="cpu").init_weights(seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in ours.named_parameters():
        if name.endswith("e_score_correction_bias"):
            parameter.normal_(0.0, 0.3, generator=generator)
        elif name.endswith("norm.weight"):
            parameter.normal_(1.0, 0.2, generator=generator)
    theirs = transformers_model(config)
    copy_weights(ours, theirs)
    return ours, theirs


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(V3, id="v3"),
        pytest.param({**V3, "n_group": 1, "topk_group": 1}, id="kimi-one-group"),
        pytest.param({**V3, "q_lora_rank": None, "n_shared_experts": 2}, id="moonlight"),
        pytest.param({**V3, "rope_scaling": None}, id="no-yarn"),
        pytest.param({**V3, "tie_word_embeddings": True}, id="tied"),
        pytest.param(V2, id="v2"),
        pytest.param(V2_LITE, id="v2-lite"),
    ],
)
def test_logits(config):
    ours, theirs = pair(config)
    ids = torch.randint(
        0, config["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        assert relative_error(ours(ids), theirs(ids).logits) < TOLERANCE


@pytest.mark.parametrize("mscales", [(0.707, 1.0), (1.0, 0.707)])
def test_yarn_mscale(mscales):
    """Where the two mscales differ, cos and sin are scaled too."""
    rope = {**V3["rope_scaling"], "mscale": mscales[0], "mscale_all_dim": mscales[1]}
    ours, theirs = pair({**V3, "rope_scaling": rope})
    ids = torch.arange(24).view(1, 24)
    with torch.no_grad():
        assert relative_error(ours(ids), theirs(ids).logits) < TOLERANCE


def test_decode():
    """The absorbed form against transformers, which expands its whole cache at every step."""
    ours, theirs = pair(V3)
    ids = torch.randint(0, 96, (2, 21), generator=torch.Generator().manual_seed(3))
    cache = KVCache(ours.config, 2, 21, torch.float32, "cpu")
    with torch.no_grad():
        want = theirs(ids).logits
        ours(ids[:, :20], cache)
        got = ours(ids[:, 20:], cache)
    assert relative_error(got, want[:, 20:]) < TOLERANCE


def test_gradients():
    ours, theirs = pair(V3)
    ours.requires_grad_(True)
    ids = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(4))
    ours(ids).square().mean().backward()
    theirs(ids).logits.square().mean().backward()
    for name, parameter in theirs.named_parameters():
        if name.endswith("gate_up_proj"):
            experts = ours.get_submodule(name.removesuffix(".gate_up_proj"))
            got = torch.cat((experts.gate_proj.grad, experts.up_proj.grad), dim=1)
        else:
            got = ours.get_parameter(name).grad
        # Gradients are sums of more terms than logits, some of which cancel.
        assert relative_error(got, parameter.grad) < 10 * TOLERANCE, name
