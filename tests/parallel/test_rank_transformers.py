"""Ranks of a Llama: local shapes and collectives by hand, under its own plan and fully_shard.

3 layers, D 64, F 96, V 128, 8 heads of 8, as many KV heads as ranks or more; T = 2·16 tokens, BF16.
"""

import pytest
import torch.distributed as dist
from rank_programs import messages
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from transformers import GPT2Config, LlamaConfig

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.workload import Workload, record
from tracer.cost import price
from tracer.errors import UserError
from tracer.parallel import Plan, rank_trace

LAYERS, D, F, V, T = 3, 64, 96, 128, 32
LAYER = 4 * D * D + 3 * D * F + 2 * D  # with as many KV heads as heads
PARAMETERS = LAYERS * LAYER + 2 * V * D + D


@pytest.fixture(scope="module")
def llama():
    return HuggingFaceProgram(
        "llama",
        LlamaConfig(
            hidden_size=D, intermediate_size=F, num_hidden_layers=LAYERS, num_attention_heads=8,
            num_key_value_heads=8, vocab_size=V,
        ),
    )  # fmt: skip


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


@pytest.mark.parametrize(
    ("words", "phase", "reason"),
    [
        ("pp3", "prefill", "pp=3 is traced for the reference models only"),
        ("cp2", "prefill", "cp=2 is traced for the reference models only"),
        ("tp2 sp", "prefill", "sequence_parallel is traced for the reference models only"),
        ("recompute=full", "training", "recompute is traced for the reference models only"),
        ("dp2", "training", "trains with zero=3"),
        ("dp2 tp2 fsdp", "training", "goes with tp=1"),
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
