"""Reading and refusing configs."""

import subprocess
import sys

import pytest
from small_configs import V3

from tracer.models import Config, ConfigError, build, bundled_config, bundled_ids, supports


def test_bundled_models():
    assert bundled_ids() == [
        "deepseek-ai/DeepSeek-R1",
        "deepseek-ai/DeepSeek-V2",
        "deepseek-ai/DeepSeek-V2-Lite",
        "deepseek-ai/DeepSeek-V3",
        "deepseek-ai/DeepSeek-V3-Base",
        "deepseek-ai/DeepSeek-V3.1",
        "moonshotai/Kimi-K2-Instruct",
        "moonshotai/Moonlight-16B-A3B",
    ]


@pytest.mark.parametrize("model_id", bundled_ids())
def test_bundled_config_is_supported(model_id):
    config = bundled_config(model_id.upper())
    assert supports(config)
    assert Config.from_hf(config, model_id).name == model_id


def test_unknown_id_says_what_there_is():
    with pytest.raises(ConfigError, match=r"'deepseek-ai/DeepSeek-V9'.*deepseek-ai/DeepSeek-V3,"):
        bundled_config("deepseek-ai/DeepSeek-V9")


def test_listing_imports_neither_torch_nor_transformers():
    code = (
        "import sys, tracer.models as m; m.bundled_config(m.bundled_ids()[0]);"
        "m.Config.from_hf(m.bundled_config('deepseek-ai/DeepSeek-V3'));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_families_are_not_supported():
    assert not supports({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    assert not supports({"model_type": "deepseek_v32", "architectures": ["DeepseekV32ForCausalLM"]})
    assert not supports({})
    with pytest.raises(ConfigError, match=r"^model_type is 'llama'; supported are deepseek_v2"):
        Config.from_hf({**V3, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_routed_experts",
        "n_shared_experts",
        "num_experts_per_tok",
        "norm_topk_prob",
        "routed_scaling_factor",
        "first_k_dense_replace",
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
    ],
)
def test_missing_key_is_named(key):
    config = {k: v for k, v in V3.items() if k != key}
    with pytest.raises(ConfigError) as error:
        Config.from_hf(config, "org/model")
    assert str(error.value) == f"org/model: config has no key {key!r}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "64"}, "hidden_size is '64', not an integer of 1 or more"),
        ({"hidden_size": True}, "hidden_size is True, not an integer of 1 or more"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0, not an integer of 1 or more"),
        ({"hidden_size": None}, "hidden_size is None, not an integer of 1 or more"),
        ({"kv_lora_rank": 0}, "kv_lora_rank is 0, not an integer of 1 or more"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace is -1, not an integer of 0 or more"),
        ({"norm_topk_prob": 1}, "norm_topk_prob is 1, not true or false"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, not a number above 0"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True, not a number above 0"),
        ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor is nan, not a number"),
        ({"topk_method": "best"}, "topk_method is 'best'; supported are greedy, group_limited_gr"),
        ({"scoring_func": "tanh"}, "scoring_func is 'tanh'; supported are softmax, sigmoid"),
        ({"n_group": 3}, "n_group 3 does not divide n_routed_experts 16"),
        ({"topk_group": 5}, "topk_group 5 is more than n_group 4"),
        ({"n_group": 16}, "n_group 16 leaves one expert a group"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than the 8 experts"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim 7 is odd"),
        ({"num_key_value_heads": 2}, "num_key_value_heads 2 differs from num_attention_heads 4"),
        ({"attention_bias": True}, "attention_bias is True; only False is supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is supported"),
        ({"rope_interleave": False}, "rope_interleave is False; only True is supported"),
        ({"rope_scaling": {"type": "llama3"}}, "rope_scaling type is 'llama3'; supported are"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', not an object"),
        ({"rope_scaling": {"type": "yarn"}}, "config has no key 'factor'"),
        ({"quantization_config": {"weight_block_size": 128}}, "weight_block_size is 128, not two"),
    ],
)
def test_bad_value_is_named(change, message):
    with pytest.raises(ConfigError) as error:
        Config.from_hf({**V3, **change}, "org/model")
    assert str(error.value).startswith(f"org/model: {message}")
    assert "\n" not in str(error.value)


def test_greedy_ignores_groups():
    assert Config.from_hf({**V3, "topk_method": "greedy", "n_group": None}).n_group == 1


def test_rope_parameters_as_transformers_5_writes_them():
    """The same rope in the new place gives the same config."""
    old = Config.from_hf(V3)
    rope = {**V3["rope_scaling"], "rope_theta": V3["rope_theta"], "rope_type": "yarn"}
    new = {k: v for k, v in V3.items() if k not in ("rope_scaling", "rope_theta")}
    assert Config.from_hf({**new, "rope_parameters": rope}) == old


def test_config_written_by_transformers():
    from transformers import DeepseekV3Config

    written = DeepseekV3Config().to_dict()
    ours = Config.from_hf(written)
    released = Config.from_hf(bundled_config("deepseek-ai/DeepSeek-V3"))
    for field in ("hidden_size", "n_group", "topk_group", "topk_method", "scoring_func"):
        assert getattr(ours, field) == getattr(released, field)


def test_moe_layer_freq():
    config = Config.from_hf({**V3, "moe_layer_freq": 2, "first_k_dense_replace": 1})
    assert [config.is_moe(i) for i in range(5)] == [False, False, True, False, True]


def test_builder_refusals():
    with pytest.raises(ValueError, match=r"^precision is 'int4'; supported are bf16, fp16"):
        build(V3, precision="int4")
    with pytest.raises(ConfigError, match="num_nextn_predict_layers is 0"):
        build({**V3, "num_nextn_predict_layers": 0}, mtp=True)
    blocks = {"quantization_config": {"weight_block_size": [64, 64]}}
    with pytest.raises(ConfigError, match="weight_block_size is not 128x128"):
        build({**V3, **blocks}, precision="fp8")
