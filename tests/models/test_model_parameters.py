"""Parameter counts: a formula by hand, and published totals.

Published totals are those of the safetensors metadata on the hub, which counts every stored
element; what is stored besides parameters is added here, item by item.
"""

import pytest
import torch

from tracer.models import Config, KVCache, build, bundled_config, bundled_ids

V3 = "deepseek-ai/DeepSeek-V3"


def attention(c: dict) -> int:
    d, h, rank, rope = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"], 64
    qk, v = 128 + rope, 128
    assert (c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]) == (128, rope, v)
    q_rank = c["q_lora_rank"]
    q = d * h * qk if q_rank is None else d * q_rank + q_rank + q_rank * h * qk
    return q + d * (rank + rope) + rank + rank * h * (128 + v) + h * v * d


def expert(c: dict) -> int:
    return 3 * c["hidden_size"] * c["moe_intermediate_size"]


def moe(c: dict, routed: int) -> int:
    gate = c["n_routed_experts"] * c["hidden_size"]
    bias = c["n_routed_experts"] if c["topk_method"] == "noaux_tc" else 0
    return gate + bias + (routed + c["n_shared_experts"]) * expert(c)


def total(c: dict, routed: int) -> int:
    """Parameters with `routed` experts a layer counted: all of them, or those a token meets."""
    d, dense_layers = c["hidden_size"], c["first_k_dense_replace"]
    moe_layers = c["num_hidden_layers"] - dense_layers
    layers = c["num_hidden_layers"] * (attention(c) + 2 * d)
    layers += dense_layers * 3 * d * c["intermediate_size"] + moe_layers * moe(c, routed)
    return 2 * c["vocab_size"] * d + layers + d


def mtp(c: dict) -> int:
    d = c["hidden_size"]
    return attention(c) + 2 * d + moe(c, c["n_routed_experts"]) + 3 * d + 2 * d * d


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("model_id", bundled_ids())
def test_count_is_the_formula(model_id, precision):
    config = bundled_config(model_id)
    built = count(build(config, precision=precision))
    assert built == total(config, config["n_routed_experts"])


@pytest.mark.parametrize(
    ("model_id", "published", "besides"),
    [
        ("deepseek-ai/DeepSeek-V2", 235_741_434_880, 0),
        ("deepseek-ai/DeepSeek-V2-Lite", 15_706_484_224, 0),
        ("moonshotai/Kimi-K2-Instruct", 1_026_408_232_448, 0),
        # Moonlight stores a rotary buffer of 64 elements in each of its 27 layers.
        ("moonshotai/Moonlight-16B-A3B", 15_960_111_936, 27 * 64),
    ],
)
def test_published_total(model_id, published, besides):
    assert count(build(bundled_config(model_id))) == published - besides


def test_v3_integers():
    config = bundled_config(V3)
    model = build(config)
    biases = [p for n, p in model.named_parameters() if n.endswith("e_score_correction_bias")]
    assert all(b.dtype == torch.float32 and not b.requires_grad for b in biases)
    assert sum(b.numel() for b in biases) == 58 * 256
    assert count(model) == 671_026_419_200
    assert count(model) - 58 * 256 == 671_026_404_352
    # A token meets 8 of 256 routed experts in each of 58 layers.
    unhit = 58 * (256 - 8) * 3 * 7168 * 2048
    assert count(model) - unhit == 37_552_297_472 == total(config, 8)


def test_v3_mtp_adds_only_its_own_layer():
    config = bundled_config(V3)
    with_mtp = build(config, mtp=True)
    assert count(with_mtp) - count(build(config)) == 11_610_068_224 == mtp(config)
    assert not any(
        "lm_head" in n or "embed" in n for n, _ in with_mtp.model.layers[61].named_parameters()
    )


def test_v3_fp8_release():
    """All 684,531,386,000 elements of the released FP8 checkpoint of V3, with its MTP layer.

    It repeats embedding and head inside of the MTP layer, and stores a scale per 128×128 block.
    """
    model = build(bundled_config(V3), precision="fp8", mtp=True)
    scales = sum(b.numel() for n, b in model.named_buffers() if n.endswith("scale_inv"))
    assert count(model) + 2 * 129280 * 7168 + scales == 684_531_386_000


def test_v3_fp8_follows_the_release():
    """What is E4M3 and what is not, by name."""
    kept = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "eh_proj")
    model = build(bundled_config(V3), precision="fp8", mtp=True)
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            assert parameter.dtype == torch.float32
        elif any(part in name for part in kept):
            assert parameter.dtype == torch.bfloat16, name
        else:
            assert parameter.dtype == torch.float8_e4m3fn, name


def test_v3_names_are_those_of_the_release():
    """One layer of each kind, as in model.safetensors.index.json (routed experts stacked)."""
    names = set(build(bundled_config(V3), precision="fp8", mtp=True).state_dict())
    mla = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
    fp8 = [f"self_attn.{name}" for name in mla]
    plain = ["self_attn.q_a_layernorm", "self_attn.kv_a_layernorm"]
    plain += ["input_layernorm", "post_attention_layernorm"]
    want = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for idx, kind in ((0, "dense"), (3, "moe"), (61, "mtp")):
        layer = f"model.layers.{idx}"
        ffn = "mlp" if kind == "dense" else "mlp.shared_experts"
        matrices = [*fp8, *(f"{ffn}.{m}_proj" for m in ("gate", "up", "down"))]
        vectors = list(plain)
        if kind != "dense":
            vectors.append("mlp.gate")
            want.add(f"{layer}.mlp.gate.e_score_correction_bias")
            for matrix in ("gate_proj", "up_proj", "down_proj"):
                want |= {f"{layer}.mlp.experts.{matrix}{end}" for end in ("", "_scale_inv")}
        if kind == "mtp":
            vectors += ["enorm", "hnorm", "eh_proj", "shared_head.norm"]
        want |= {f"{layer}.{m}.{end}" for m in matrices for end in ("weight", "weight_scale_inv")}
        want |= {f"{layer}.{v}.weight" for v in vectors}
    seen = ("model.layers.0.", "model.layers.3.", "model.layers.61.")
    assert {n for n in names if not n.startswith("model.layers.") or n.startswith(seen)} == want


def test_v3_cache_bytes():
    """ArXiv 2505.09343, table 1: 70.272 kB per token in BF16 = 61 layers · 576 · 2 bytes."""
    cache = KVCache(Config.from_hf(bundled_config(V3)), batch=3, capacity=100)
    assert cache.bytes_per_token == 70_272
    assert cache.nbytes == 3 * 100 * 70_272
