"""Small transformers models, built from configs on meta, in all three phases."""

import functools
import json
import tempfile
from pathlib import Path

import pytest
from flop_counters import FULL, compare
from torch.utils.flop_counter import FlopCounterMode

from tracer.capture.program import Program, load_program
from tracer.capture.workload import Workload, record
from tracer.cost import price

_SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
DENSE = {
    "llama": _SIZES,
    "qwen3": _SIZES | {"head_dim": 16},
    "gemma2": _SIZES | {"head_dim": 16, "sliding_window": 128},
    "olmo2": _SIZES,
    "phi": _SIZES,
    "gpt_neox": _SIZES,
    "gpt2": {"vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "opt": _SIZES | {"ffn_dim": 112, "word_embed_proj_dim": 64},
    "bloom": {"vocab_size": 96, "hidden_size": 64, "n_layer": 3, "n_head": 4},
}
_MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROUTED = {
    "mixtral": _SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": _SIZES | _MOE | {"shared_expert_intermediate_size": 64},
    "qwen3_moe": _SIZES | _MOE | {"head_dim": 16},
}
# Multiply-adds of one expert: three matrices between 64 and its width.
EXPERT = {"mixtral": 3 * 64 * 112, "qwen2_moe": 3 * 64 * 48, "qwen3_moe": 3 * 64 * 48}
BATCH, LENGTH, LAYERS = 2, 16, 3
PHASES = ["prefill", "decode", "training"]


@functools.cache
def program(kind: str) -> Program:
    config = (DENSE | ROUTED)[kind] | {"model_type": kind}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        return load_program(folder)


def run(kind: str, phase: str, attention: str = "fused"):
    work = Workload(phase, batch=BATCH, seq=LENGTH, context=LENGTH, optimizer="none")
    model = program(kind)
    with FlopCounterMode(display=False) as torch_counter:
        trace = record(model, work, attention=attention, fold=False)
    return compare(price(trace, FULL), torch_counter)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", DENSE)
def test_dense(kind, phase):
    counts = run(kind, phase)
    assert counts.ours == counts.theirs > 0
    assert counts.ledger.unmodelled() == {}


@pytest.mark.parametrize("kind", DENSE)
def test_dense_with_unfused_attention(kind):
    """Forward and backward hold the forward of prefill, so training is enough."""
    counts = run(kind, "training", attention="naive")
    assert counts.ours == counts.theirs > 0
    assert counts.ledger.unmodelled() == {}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ROUTED)
def test_routed(kind, phase):
    """As dense ones, but that torch reads zero for the grouped products of the experts."""
    counts = run(kind, phase)
    tokens = BATCH * (1 if phase == "decode" else LENGTH)
    passes = 3 if phase == "training" else 1
    routed = passes * LAYERS * tokens * 2 * 2 * EXPERT[kind]  # two experts a token
    assert counts.by_op()["aten._grouped_mm"] == routed
    assert counts.ours - counts.theirs == routed
    assert counts.ledger.unmodelled() == {}


def test_a_llama_by_hand():
    """One of them without torch's help: projections, head and causal attention.

    Four query heads and two key heads of 16, three layers, 2 x 16 tokens.
    """
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 112
    matrices = 2 * (BATCH * LENGTH) * (LAYERS * layer + 64 * 96)
    pairs = LAYERS * BATCH * 4 * LENGTH * LENGTH
    counts = run("llama", "prefill")
    assert counts.ours == matrices + pairs * 4 * 16
    causal = price(counts.ledger.trace).total().total_flops
    assert causal == matrices + LAYERS * BATCH * 4 * (LENGTH * (LENGTH + 1) // 2) * 4 * 16


def test_causal_attention_is_causal_in_every_model():
    """One query of the last token sees all keys; a prefill must not count the upper triangle.

    `causal="pairs"` takes S(S-1)/2 pairs off, of four heads of 16 in three layers.
    """
    left_out = LAYERS * BATCH * 4 * (LENGTH * (LENGTH - 1) // 2) * 4 * 16
    for kind in DENSE.keys() - {"bloom"}:  # bloom multiplies out its own attention, all of S x S
        counts = run(kind, "prefill")
        assert counts.ours - price(counts.ledger.trace).total().total_flops == left_out, kind
