"""Counts of small models against arithmetic written beside them. One multiply-add is 2 FLOPs."""

from __future__ import annotations

import pytest
from tiny_models import BATCH, SEQ, TEXT, attention_ops, flops, ledger, ops, program, trace

from tracer.capture.huggingface.masks import read_pattern
from tracer.cost.work import ATTENTION

T = BATCH * SEQ
HIDDEN, HEADS, KV_HEADS, HEAD, INNER, VOCAB, LAYERS = 64, 4, 2, 16, 128, 256, 2
CAUSAL_PAIRS = SEQ * (SEQ + 1) // 2


def linears(tokens: int) -> int:
    """Projections, gated MLP and head of a llama-like model."""
    attention = HIDDEN * HEADS * HEAD * 2 + HIDDEN * KV_HEADS * HEAD * 2
    return 2 * tokens * (LAYERS * (attention + 3 * HIDDEN * INNER) + HIDDEN * VOCAB)


def core(pairs: int, heads: int = HEADS, size: int = HEAD) -> int:
    """Scores and weighted values over `pairs` of one head of one sequence."""
    return BATCH * heads * pairs * (2 * size + 2 * size)


def test_llama_with_shared_key_heads() -> None:
    llama = program("llama", **TEXT)
    prefill = trace(llama, "prefill")
    assert flops(prefill) == linears(T) + LAYERS * core(CAUSAL_PAIRS)
    assert flops(prefill, "full") == linears(T) + LAYERS * core(SEQ * SEQ)
    assert flops(trace(llama, "training")) == 3 * flops(prefill)
    assert flops(trace(llama, "decode")) == linears(BATCH) + LAYERS * core(SEQ)


def test_key_heads_are_read_once_and_not_repeated() -> None:
    prefill = trace(program("llama", **TEXT), "prefill")
    fused = attention_ops(prefill)
    assert len(fused) == LAYERS
    assert all(op.args[1].shape == (BATCH, KV_HEADS, SEQ, HEAD) for op in fused)
    # q and out of 4 heads, k and v of 2, two bytes an element, the FP32 log-sum-exp of every row,
    # and the state of the random numbers: three integers of 8 bytes
    moved = T * HEAD * 2 * (2 * HEADS + 2 * KV_HEADS) + 4 * BATCH * HEADS * SEQ + 3 * 8
    kernels = [k for k in ledger(prefill).kernels if k.kind == ATTENTION]
    assert sum(k.cost.total_bytes for k in kernels) == LAYERS * moved


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "cohere2", "olmo3"])
def test_sliding_windows_count_the_pairs_inside(kind: str) -> None:
    window = 8
    layers = ["sliding_attention", "full_attention"]
    fields = {**TEXT, "sliding_window": window, "layer_types": layers}
    alternating = program(kind, **fields)
    full = program(kind, **{**fields, "layer_types": ["full_attention"] * 2})
    inside = sum(min(query + 1, window) for query in range(SEQ))  # its own key and 7 before
    difference = core(CAUSAL_PAIRS) - core(inside)
    found = flops(trace(alternating, "prefill"))
    assert flops(trace(full, "prefill")) - found == difference
    # A decoded token reads a ring of `window` keys in one layer, the whole context in the other.
    lengths = [op.args[1].shape[2] for op in attention_ops(trace(alternating, "decode"))]
    assert lengths == [window, SEQ]


def test_cached_keys_and_values_have_the_role_of_a_cache() -> None:
    llama = program("llama", **TEXT)
    token = LAYERS * 2 * KV_HEADS * HEAD * 2  # keys and values in BF16
    assert ledger(trace(llama, "prefill")).total().write["kv"] == T * token
    step = ledger(trace(llama, "decode")).total()
    assert step.write["kv"] == BATCH * token
    assert step.read["kv"] == BATCH * SEQ * token  # the new one is read back, too


def test_chunks_are_sequences_of_their_own() -> None:
    chunk = 12  # two chunks and a rest of 8
    kinds = ["chunked_attention", "full_attention"]
    moe = {"num_local_experts": 4, "intermediate_size_mlp": 128, "interleave_moe_layer_step": 2}
    fields = {**TEXT, **moe, "attention_chunk_size": chunk, "layer_types": kinds}
    chunked = trace(program("llama4_text", **fields), "prefill")
    full = trace(program("llama4_text", **fields | {"layer_types": kinds[1:] * 2}), "prefill")
    inside = 2 * chunk * (chunk + 1) // 2 + 8 * 9 // 2
    assert flops(full) - flops(chunked) == core(CAUSAL_PAIRS) - core(inside)


def test_bert_attends_both_ways() -> None:
    fields = {k: v for k, v in TEXT.items() if k not in ("num_key_value_heads", "head_dim")}
    bert = program("bert", **fields, max_position_embeddings=SEQ)
    assert bert.phases == ("training", "forward")
    # q, k, v, o; two MLP matrices; the masked-LM head has a transform before the vocabulary
    weights = LAYERS * (4 * HIDDEN**2 + 2 * HIDDEN * INNER) + HIDDEN**2 + HIDDEN * VOCAB
    found = trace(bert, "forward")
    assert flops(found) == 2 * T * weights + LAYERS * core(SEQ * SEQ)
    for op in attention_ops(found):  # is_causal is left out where it has its default, False
        assert op.args[4:] in ((), (False,))


T5 = {
    "vocab_size": 256, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
    "num_decoder_layers": 2, "feed_forward_proj": "relu", "tie_word_embeddings": False,
}  # fmt: skip


def test_t5_decodes_over_cached_keys_of_both_attentions() -> None:
    source, context = 48, 20
    t5 = program("t5", **T5)
    assert t5.phases == ("training", "forward", "decode")
    step = trace(t5, "decode", seq=source, context=context)
    # Of the cross-attention only q and o run: keys and values of the source are cached.
    layer = 4 * HIDDEN**2 + 2 * HIDDEN**2 + 2 * HIDDEN * INNER
    expected = 2 * BATCH * (2 * layer + HIDDEN * VOCAB)
    assert flops(step) == expected + 2 * (core(context) + core(source))
    keys = sorted(op.args[1].shape[2] for op in attention_ops(step))
    assert keys == [context, context, source, source]
    assert not any("encoder" in step.module_of(op).split(".") for op in step.ops)


def test_t5_cross_attention_is_not_causal_and_its_bias_is_read() -> None:
    forward = trace(program("t5", **T5), "forward")
    encoder = 4 * HIDDEN**2 + 2 * HIDDEN * INNER
    decoder = 8 * HIDDEN**2 + 2 * HIDDEN * INNER
    linear = 2 * T * (2 * (encoder + decoder) + HIDDEN * VOCAB)
    attention = 2 * (core(SEQ * SEQ) + core(CAUSAL_PAIRS) + core(SEQ * SEQ))
    assert flops(forward) == linear + attention
    biased = [op for op in attention_ops(forward) if op.args[3] is not None]
    # Two encoder layers, two decoder layers, and two cross-attentions whose bias is zeros.
    assert len(biased) == 6
    assert all(op.args[3].shape == (BATCH, 4, SEQ, SEQ) for op in biased)


def test_vit_counts_patches_and_the_class_token() -> None:
    vit = program(
        "vit", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        image_size=32, patch_size=8, num_labels=10,
    )  # fmt: skip
    assert vit.phases == ("training", "forward")
    found = trace(vit, "forward")
    assert (found.header["batch"], found.header["seq"]) == (BATCH, 1)  # an image is one item
    patches, tokens = 16, 17
    convolution = 2 * BATCH * patches * (3 * 8 * 8) * HIDDEN
    layers = 2 * BATCH * tokens * LAYERS * (4 * HIDDEN**2 + 2 * HIDDEN * INNER)
    head = 2 * BATCH * HIDDEN * 10
    assert flops(found) == convolution + layers + head + LAYERS * core(tokens * tokens)


def test_resnet_backward_leaves_out_the_gradient_of_the_image() -> None:
    resnet = program(
        "resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        num_labels=10,
    )  # fmt: skip
    forward = flops(trace(resnet, "forward"))
    stem = ops(trace(resnet, "forward"), "convolution")[0]
    (out,) = stem.outputs
    first = 2 * out.numel * stem.args[1].numel // stem.args[1].shape[0]
    assert flops(trace(resnet, "training")) == 3 * forward - first


def test_experts_run_as_grouped_matmuls() -> None:
    moe = program("mixtral", **TEXT, num_local_experts=4, num_experts_per_tok=2)
    prefill = trace(moe, "prefill")
    assert len(ops(prefill, "_grouped_mm")) == 2 * LAYERS
    # of 4 experts each token meets 2; the gate is one more matmul of 64 x 4
    dense = linears(T) + LAYERS * core(CAUSAL_PAIRS)
    assert flops(prefill) - dense == 2 * T * LAYERS * (3 * HIDDEN * INNER + HIDDEN * 4)


def test_a_pattern_that_is_not_known_is_no_pattern() -> None:
    def mine(batch: int, head: int, query: int, key: int) -> bool:
        return query > key

    assert read_pattern(mine) is None
