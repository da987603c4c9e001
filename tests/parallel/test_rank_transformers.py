"""Ranks of a Llama: local shapes and collectives by hand, under its own plan and fully_shard.

3 layers, D 64, F 96, V 128, 8 heads of 8, as many KV heads as ranks or more; T = 2·16 tokens, BF16.
"""

import pytest
import torch.distributed as dist
from rank_programs import messages
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from transformers import BloomConfig, GPT2Config, JambaConfig, LlamaConfig, MistralConfig

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.workload import Workload, record
from tracer.cost import price
from tracer.errors import UserError
from tracer.parallel import Plan, rank_trace

LAYERS, D, F, V, T = 3, 64, 96, 128, 32
LAYER = 4 * D * D + 3 * D * F + 2 * D  # with as many KV heads as heads
PARAMETERS = LAYERS * LAYER + 2 * V * D + D
SIZES = {
    "hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS, "vocab_size": V,
    "num_attention_heads": 8, "num_key_value_heads": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    return HuggingFaceProgram(
        "llama",
        LlamaConfig(**SIZES),
    )


def ledger(program, words: str, phase: str, rank: int = 0):
    plan = Plan.parse(f"{words} micro_batch=2")
    return price(rank_trace(program, Workload(phase, 2, 16, 16), plan, rank=rank), strict=True)


@pytest.mark.parametrize("tp", [2, 8])
def test_local_shapes(llama, tp):
    trace = ledger(llama, f"tp{tp}", "prefill").trace
    shapes = {p.name.removeprefix("model.layers.0."): p.shape for p in trace.parameters}
    assert shapes["self_attn.q_proj.weight"] == (D // tp, D)
    assert shapes["self_attn.o_proj.weight"] == (D, D // tp)
    assert shapes["mlp.gate_proj.weight"] == (F // tp, D)
    assert shapes["mlp.down_proj.weight"] == (D, F // tp)
    assert shapes["input_layernorm.weight"] == (D,)
    assert shapes["lm_head.weight"] == (V // tp, D)
    products = [
        (tuple(r.shape for r in op.inputs()), op.outputs[0].shape)
        for op in trace.ops
        if op.name == "aten.mm.default" and ".0.mlp.down_proj" in trace.module_of(op)
    ]
    assert products == [(((T, F // tp), (F // tp, D)), (T, D))]  # once, and not on global shapes


@pytest.mark.parametrize("tp", [2, 8])
def test_tp_forward(llama, tp):
    """Embedding, and two all-reduces a layer, of T·D·2 B; the logits are gathered."""
    got = messages(ledger(llama, f"tp{tp}", "prefill"), "tp")
    assert sum(v for k, v in got.items() if "reduce" in k) == (1 + 2 * LAYERS) * T * D * 2
    assert got["all_gather_into_tensor"] == T * V * 2


def test_tp_backward(llama):
    """The input gradients of q, k, v, gate, up and head, each product for itself."""
    priced = ledger(llama, "tp2", "training")
    assert priced.total("backward").messages == {"tp": (5 * LAYERS + 1) * T * D * 2}


@pytest.mark.parametrize("phase", ["prefill", "training", "decode"])
def test_ranks_sum_to_the_whole(llama, phase):
    whole = price(record(llama, Workload(phase, 2, 16, 16))).total()
    assert 4 * ledger(llama, "tp4", phase).total().total_flops == whole.total_flops


def test_tp_beside_data_parallel_replicas(llama):
    trace = ledger(llama, "tp2 dp4", "prefill", rank=5).trace
    groups = trace.header["groups"]
    assert groups["tp"] == {"size": 2, "start": 4, "stride": 1}
    assert groups["dp"] == {"size": 4, "start": 1, "stride": 2}


def test_a_rank_does_not_depend_on_ranks_before_it(llama):
    last, first, again = (ledger(llama, "tp2 dp4", "prefill", rank) for rank in (7, 0, 7))
    assert messages(first, "tp") == messages(last, "tp") == messages(again, "tp")
    assert set(first.total().messages) == {"tp"}


def test_fully_shard(llama):
    """All parameters before the forward, the layers' again before the backward, gradients once.

    The root's (embedding, norm, head) stay gathered in between.
    """
    priced = ledger(llama, "dp4 fsdp", "training")
    assert messages(priced, "dp") == {
        "_allgather_base_": 2 * PARAMETERS + 2 * LAYERS * LAYER,
        "_reduce_scatter_base_": 2 * PARAMETERS,
    }
    assert 4 * sum(p.numel for p in priced.trace.parameters if not p.buffer) == PARAMETERS
    whole = price(record(llama, Workload("training", 2, 16, 16))).total()
    assert priced.total().total_flops == whole.total_flops
    # Three FP32 numbers for each element that the rank owns, and the steps.
    state = sum(s.nbytes for s in priced.trace.storages if s.role == "optimizer")
    assert state == pytest.approx(12 * PARAMETERS // 4, abs=8 * len(priced.trace.parameters))


@pytest.mark.parametrize("attention", ["fused", "naive"])
def test_context_parallel(llama, attention):
    """Two chunks of two tokens a rank; keys and values, 2·D elements, gathered in every layer."""
    whole = price(record(llama, Workload("prefill", 2, 16, 16), attention=attention)).total()
    plan, work = Plan(cp=4, micro_batch=2), Workload("prefill", 2, 16, 16)
    over_ranks = 0
    for rank in range(4):
        trace = rank_trace(llama, work, plan, rank=rank, attention=attention)
        priced = price(trace, strict=True)
        assert messages(priced, "cp") == {"all_gather_into_tensor": LAYERS * T * 2 * D * 2}
        over_ranks += priced.total().total_flops
        held = {s.nbytes for s in trace.storages if s.role == "kv"}
        assert held == {T // 4 * D * 2}  # a rank caches its own tokens
    # Naive attention computes all pairs of a query's chunk: 1 + ... + 8 of 64 pairs of chunks.
    masked = 0 if attention == "fused" else (64 - 36) * 2 * 2 * 2
    assert over_ranks == whole.total_flops - LAYERS * 2 * 2 * D * masked


def test_context_and_tensor_parallel(llama):
    """A TP rank gathers its own heads, and all-reduces its own tokens."""
    priced = ledger(llama, "cp4 tp2", "prefill")
    gathered = messages(priced, "cp")["all_gather_into_tensor"]
    assert gathered == LAYERS * T * 2 * (D // 2) * 2
    reduced = sum(v for k, v in messages(priced, "tp").items() if "reduce" in k)
    assert reduced == (1 + 2 * LAYERS) * (T // 4) * D * 2
    assert priced.trace.header["groups"]["cp"] == {"size": 4, "start": 0, "stride": 2}
    whole = price(record(llama, Workload("prefill", 2, 16, 16))).total()
    assert 8 * priced.total().total_flops == whole.total_flops


@pytest.mark.parametrize("words", ["cp4 fsdp", "cp2 dp2 fsdp"])
def test_context_parallel_training(llama, words):
    """Gradients of keys and values come back; parameters are sharded over DP and CP ranks."""
    priced = ledger(llama, words, "training")
    keys = LAYERS * T * 2 * D * 2
    assert messages(priced, "cp") == {
        "all_gather_into_tensor": keys, "reduce_scatter_tensor": keys,
    }  # fmt: skip
    assert messages(priced, "dp")["_reduce_scatter_base_"] == 2 * PARAMETERS
    assert 4 * sum(p.numel for p in priced.trace.parameters if not p.buffer) == PARAMETERS
    whole = price(record(llama, Workload("training", 2, 16, 16))).total()
    assert Plan.parse(words).cp * priced.total().total_flops == whole.total_flops


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(sliding_window=8, **SIZES), "layers with windows, recurrent states"),
        (BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=96), "takes no position_ids"),
        (JambaConfig(**SIZES, num_experts=2, mamba_d_state=4, use_mamba_kernels=False), "cp=2: "),
        (GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=96, n_positions=8), "for 8 tokens"),
    ],
)  # fmt: skip
def test_models_whose_tokens_meet_elsewhere_are_refused(config, reason):
    program = HuggingFaceProgram("other", config)
    with pytest.raises(UserError, match=reason):
        ledger(program, "cp2", "prefill")
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("words", "phase", "reason"),
    [
        ("cp3", "prefill", "16 tokens of a sequence do not divide into the 6 chunks of CP=3"),
        ("cp2", "decode", "CP=2 cuts the tokens of a sequence, decode has one"),
        ("cp2 zero=1", "training", "dp=1 cp=2 with zero=1: a transformers model is traced with"),
        ("tp3", "prefill", "8 heads do not divide by TP=3"),
    ],
)  # fmt: skip
def test_what_is_not_traced_says_so(llama, words, phase, reason):
    with pytest.raises(UserError, match=reason):
        ledger(llama, words, phase)
    assert not dist.is_initialized()


def test_a_model_without_a_plan():
    program = HuggingFaceProgram(
        "gpt2", GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=96, tie_word_embeddings=False)
    )
    before = ShardingPropagator._propagate_tensor_meta_non_cached
    with pytest.raises(UserError, match="has no tensor-parallel plan"):
        ledger(program, "tp2", "prefill")
    assert not dist.is_initialized()
    assert ShardingPropagator._propagate_tensor_meta_non_cached is before
