"""Prefill and decode, module by module, against hand formulas: FLOPs, weights, KV, activations."""

import pytest
from family_traces import (
    MODELS,
    V3,
    by_module,
    dims,
    flops,
    ledger,
    passing_bytes,
    trace,
    weights_read,
)
from mla_formulas import (
    BF16,
    FP32,
    Dims,
    absorbed_core_flops,
    attention_matrices,
    decode_flops,
    distinct_experts,
    forward_flops,
    kv_bytes_per_token,
    linears,
    naive_core_flops,
    reexpanded_core_flops,
    routed_flops,
    weight_bytes,
)

from tracer.capture.records import BACKWARD
from tracer.cost import EXECUTIONS, Conventions, price
from tracer.cost.work import ATTENTION, GEMM, GROUPED_GEMM

PREFILL = [(1, 1), (3, 255), (1, 4096)]
DECODE = [(1, 2), (8, 4096), (128, 1000)]
# A random seed and an offset, 8 bytes each: fused attention returns them with its result.
SEEDS = 16


def every(shapes):
    names = ("model", "batch", "length")
    return pytest.mark.parametrize(names, [(m, *shape) for m in MODELS for shape in shapes])


def layer_paths(d: Dims, suffix: str) -> list[str]:
    return [f"model.layers.{layer}.{suffix}" for layer in range(d.layers)]


def test_the_formulas_give_the_published_sizes_of_a_v3_layer():
    """The second route itself, against figures of the V3 report's own tables (per layer)."""
    d = dims(V3)
    assert sum(k * n for k, n in attention_matrices(d).values()) == 187_105_280
    assert 3 * d.hidden * d.dense_width == 396_361_728
    assert 3 * d.hidden * d.expert_width == 44_040_192
    assert d.hidden * d.experts == 1_835_008
    assert d.hidden * d.vocab == 926_679_040
    assert naive_core_flops(d, 1, 2) == 128 * 3 * 2 * (192 + 128)
    assert absorbed_core_flops(d, 1, 1) - absorbed_core_flops(d, 1, 0) == 128 * (2 * 576 + 2 * 512)
    # Head by head, the absorbed core does 3.4 times the work of the naive one for a pair.
    assert absorbed_core_flops(d, 1, 10**9) / naive_core_flops(d, 1, 1) / 1e9 == pytest.approx(
        (576 + 512) / (192 + 128)
    )
    assert reexpanded_core_flops(d, 1, 4096) > 50 * absorbed_core_flops(d, 1, 4096)


@every(PREFILL)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_prefill_flops_of_every_module(model, batch, length, execution):
    """All modules: one that is missing on either side, or extra, fails too."""
    priced = ledger(model, "prefill", batch, length, execution=execution)
    assert by_module(priced, flops) == forward_flops(dims(model), batch, length)
    assert by_module(priced, flops, phase=BACKWARD) == {}
    assert priced.total().recompute_flops == {}


@every(PREFILL)
def test_prefill_counts_all_pairs_where_asked(model, batch, length):
    """As a convention (`causal="full"`), and as a fact where no causal kernel runs."""
    full = forward_flops(dims(model), batch, length, causal="full")
    assert by_module(ledger(model, "prefill", batch, length, causal="full"), flops) == full
    # Unfused attention multiplies all of S x S and masks afterwards, whatever the convention.
    unfused = ledger(model, "prefill", batch, length, attention="naive")
    assert by_module(unfused, flops) == full


@every(DECODE)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_decode_flops_of_every_module(model, batch, length, execution):
    priced = ledger(model, "decode", batch, length, execution=execution)
    assert by_module(priced, flops) == decode_flops(dims(model), batch, length)


@pytest.mark.parametrize("model", MODELS)
def test_decode_without_a_past_is_prefill_of_one_token(model):
    """At context 1 there is no cache to absorb into: the naive form, and kv_b_proj, run."""
    assert by_module(ledger(model, "decode", 3, 1), flops) == forward_flops(dims(model), 3, 1)


@pytest.mark.parametrize("model", MODELS)
def test_decode_computes_the_same_pairs_unfused(model):
    """One query sees every key: with or without a score matrix, causal or full."""
    want = decode_flops(dims(model), 2, 300)
    assert by_module(ledger(model, "decode", 2, 300, attention="naive"), flops) == want
    assert by_module(ledger(model, "decode", 2, 300, causal="full"), flops) == want


@every(PREFILL)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_prefill_reads_every_touched_weight_once(model, batch, length, execution):
    priced = ledger(model, "prefill", batch, length, execution=execution)
    assert by_module(priced, weights_read) == weight_bytes(dims(model), batch * length)


@every(DECODE)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_decode_reads_every_touched_weight_once(model, batch, length, execution):
    priced = ledger(model, "decode", batch, length, execution=execution)
    assert by_module(priced, weights_read) == weight_bytes(dims(model), batch, decode=True)


def test_distinct_experts_at_the_ends():
    """One token chooses exactly k; very many choose all; two choose less than 2 k of V3's 256."""
    d = dims(V3)
    assert distinct_experts(d, 1) == pytest.approx(8, abs=1e-12)
    assert distinct_experts(d, 10_000) == pytest.approx(256, abs=1e-12)
    # Two tokens: 8 + 8 * (1 - 8/256) = 15.75.
    assert distinct_experts(d, 2) == pytest.approx(15.75, abs=1e-12)


@pytest.mark.parametrize("law", ["all", "same"])
def test_other_routing_laws(law):
    """Every expert, or just k of them, whatever the tokens."""
    d = dims(V3)
    priced = price(trace(V3, "decode", 8, 4096), Conventions(routing=law))
    read = by_module(priced, weights_read)["model.layers.3.mlp.experts"]
    hit = {"all": 256, "same": 8}[law]
    assert read == hit * 3 * d.hidden * d.expert_width * BF16


@every(PREFILL)
def test_prefill_writes_the_cache_and_never_reads_it(model, batch, length):
    """C + R elements of 2 bytes for every token, in each layer."""
    d = dims(model)
    priced = ledger(model, "prefill", batch, length)
    latent = batch * length * d.latent * BF16
    written = by_module(priced, lambda cost: cost.write.get("kv", 0))
    assert written == dict.fromkeys(layer_paths(d, "self_attn"), latent)
    assert by_module(priced, lambda cost: cost.read.get("kv", 0)) == {}
    assert priced.total().bytes_by_role["kv"] == batch * length * kv_bytes_per_token(d)


@every(DECODE)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_decode_reads_the_cache_once_and_adds_a_token(model, batch, length, execution):
    """All heads share the latents and values are a part of the keys: one read of L latents."""
    d = dims(model)
    priced = ledger(model, "decode", batch, length, execution=execution)
    latent = d.latent * BF16
    read = by_module(priced, lambda cost: cost.read.get("kv", 0))
    written = by_module(priced, lambda cost: cost.write.get("kv", 0))
    assert read == dict.fromkeys(layer_paths(d, "self_attn"), batch * length * latent)
    assert written == dict.fromkeys(layer_paths(d, "self_attn"), batch * latent)


@pytest.mark.parametrize("model", MODELS)
def test_unfused_decode_reads_the_values_again(model):
    """Difference named: with a score matrix in memory, keys and values are read by two products.

    C + R elements of each cached latent for the scores, and the first C of them for the values.
    """
    d = dims(model)
    priced = ledger(model, "decode", 2, 300, attention="naive", execution="naive")
    read = by_module(priced, lambda cost: cost.read.get("kv", 0))
    both = 2 * 300 * (d.latent + d.kv_rank) * BF16
    assert read == dict.fromkeys(layer_paths(d, "self_attn"), both)


@every(PREFILL)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_projections_read_their_input_and_write_their_output(model, batch, length, execution):
    """[T, K] in and [T, N] out, 2 bytes each. Products are never fused with what surrounds them."""
    tokens = batch * length
    priced = ledger(model, "prefill", batch, length, execution=execution)
    moved = by_module(priced, passing_bytes, kinds=(GEMM,))
    want = {path: tokens * (k + n) * BF16 for path, (k, n) in linears(dims(model)).items()}
    assert moved == want


@every(DECODE)
def test_decode_projections_and_absorbed_weights_move_one_token_a_sequence(model, batch, length):
    d = dims(model)
    moved = by_module(ledger(model, "decode", batch, length), passing_bytes, kinds=(GEMM,))
    want = {p: batch * (k + n) * BF16 for p, (k, n) in linears(d, decode=True).items()}
    # Per head: the query's nope part to a latent (W_UK), and a latent to a value (W_UV).
    absorb = batch * d.heads * ((d.nope + d.kv_rank) + (d.kv_rank + d.v)) * BF16
    want |= dict.fromkeys(layer_paths(d, "self_attn"), absorb)
    assert moved == want


@every(PREFILL)
def test_fused_core_moves_queries_keys_values_and_output_once(model, batch, length):
    """No score matrix. Besides: one FP32 log-sum-exp a row, and the two seeds."""
    d = dims(model)
    moved = by_module(ledger(model, "prefill", batch, length), passing_bytes, kinds=(ATTENTION,))
    rows = batch * length * d.heads
    core = rows * (2 * d.qk + 2 * d.v) * BF16 + rows * FP32 + SEEDS
    assert moved == dict.fromkeys(layer_paths(d, "self_attn"), core)


@every(DECODE)
def test_absorbed_core_moves_one_query_row_a_head(model, batch, length):
    """Queries of C + R and outputs of C a head; the keys come from the cache and count as KV."""
    d = dims(model)
    moved = by_module(ledger(model, "decode", batch, length), passing_bytes, kinds=(ATTENTION,))
    rows = batch * d.heads
    core = rows * (d.latent + d.kv_rank) * BF16 + rows * FP32 + SEEDS
    assert moved == dict.fromkeys(layer_paths(d, "self_attn"), core)


@every([(1, 1), (3, 255)])
def test_embedding_moves_rows_of_the_table(model, batch, length):
    """A row read (as weights, elsewhere) and written for each token; an index of 8 bytes read."""
    tokens, d = batch * length, dims(model)
    moved = by_module(ledger(model, "prefill", batch, length), passing_bytes)
    assert moved["model.embed_tokens"] == tokens * d.hidden * BF16 + tokens * 8


@every([(3, 255), (1, 4096)])
def test_experts_move_rows_for_every_choice(model, batch, length):
    """Grouped products alone: T·k rows in and out of three matrices, and E offsets of 4 bytes."""
    d = dims(model)
    priced = ledger(model, "prefill", batch, length)
    moved = by_module(priced, passing_bytes, kinds=(GROUPED_GEMM,))
    rows = batch * length * d.top_k
    one = 3 * (rows * (d.hidden + d.expert_width) * BF16 + d.experts * 4)
    assert moved == {
        f"model.layers.{layer}.mlp.experts": one for layer in range(d.layers) if d.is_moe(layer)
    }


def test_routed_work_is_that_of_the_chosen_experts_only():
    """V3, 4 tokens: 8 of 256 experts each, 44,040,192 parameters an expert."""
    experts = by_module(ledger(V3, "decode", 4, 100), flops)["model.layers.3.mlp.experts"]
    assert experts == 4 * 8 * 2 * 44_040_192 == routed_flops(dims(V3), 4)
