"""FP8 by module: which products are FP8, one byte a weight plus its scales, and where FP8 pads.

The release multiplies in FP8 in all projections of attention and all feed-forward matrices, and
keeps head, gate and attention itself in BF16 (arXiv 2412.19437, section 3.3.1).
"""

import math

import pytest
from family_traces import (
    KIMI,
    MODELS,
    V2_LITE,
    V3,
    by_module,
    dims,
    ledger,
    passing_bytes,
    weights_read,
)
from mla_formulas import (
    BF16,
    FP8,
    FP32,
    TILE,
    Dims,
    decode_flops,
    distinct_experts,
    forward_flops,
    fp8_matrix_bytes,
    is_fp8,
    linear_flops,
    linears,
    routed_flops,
    weight_bytes,
)

from tracer.capture.records import BACKWARD
from tracer.cost import EXECUTIONS
from tracer.cost.work import GEMM, GROUPED_GEMM

PREFILL = [(1, 1), (2, 16), (3, 255)]
DECODE = [(1, 2), (8, 4096)]
SHARED = "model.layers.3.mlp.shared_experts."  # V3's first MoE layer


def every(shapes):
    names = ("model", "batch", "length")
    return pytest.mark.parametrize(names, [(m, *shape) for m in MODELS for shape in shapes])


def fp8_flops(cost):
    return cost.flops.get("fp8", 0)


def bf16_flops(cost):
    return cost.flops.get("bf16", 0)


def products(d: Dims) -> set[str]:
    """Modules that multiply in FP8."""
    experts = {f"model.layers.{layer}.mlp.experts" for layer in range(d.dense_layers, d.layers)}
    return {path for path in linears(d) if is_fp8(path)} | experts


def split(d: Dims, whole: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """(FP8, BF16) FLOPs by module."""
    chosen = products(d)
    return (
        {m: f for m, f in whole.items() if m in chosen},
        {m: f for m, f in whole.items() if m not in chosen},
    )


def fp8_weight_bytes(d: Dims, tokens: int, *, decode: bool = False) -> dict[str, int]:
    """As in BF16, but for the FP8 matrices, whose scales come along."""
    found = weight_bytes(d, tokens, decode=decode)
    for path, (k, n) in linears(d, decode=decode).items():
        if is_fp8(path):
            found[path] = fp8_matrix_bytes(k, n)
    share = distinct_experts(d, tokens) / d.experts
    stack = d.experts * d.hidden * d.expert_width * FP8
    blocks = math.ceil(d.hidden / TILE) * math.ceil(d.expert_width / TILE)
    scales = d.experts * blocks * FP32
    for layer in range(d.dense_layers, d.layers):
        # Values and scales are two arguments of the kernel, each a whole number of bytes.
        experts = 3 * (round(share * stack) + round(share * scales))
        found[f"model.layers.{layer}.mlp.experts"] = experts
    return found


@every(PREFILL)
def test_prefill_flops_by_precision(model, batch, length):
    d = dims(model)
    fp8, bf16 = split(d, forward_flops(d, batch, length))
    priced = ledger(model, "prefill", batch, length, "fp8")
    assert by_module(priced, fp8_flops) == fp8
    assert by_module(priced, bf16_flops) == bf16
    assert set(priced.total().flops) == {"fp8", "bf16"}


@every(DECODE)
def test_decode_flops_by_precision(model, batch, length):
    """W_UK and W_UV are kept dequantised, so all of the absorbed core is BF16."""
    d = dims(model)
    fp8, bf16 = split(d, decode_flops(d, batch, length))
    priced = ledger(model, "decode", batch, length, "fp8")
    assert by_module(priced, fp8_flops) == fp8
    assert by_module(priced, bf16_flops) == bf16


def test_which_modules_of_a_v3_layer_are_fp8():
    """By name, one layer of each kind: nothing here comes from `is_fp8`."""
    names = by_module(ledger(V3, "prefill", 2, 16, "fp8"), fp8_flops)
    attention = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
    ffn = ["gate_proj", "up_proj", "down_proj"]
    want = {f"model.layers.{i}.self_attn.{n}" for i in (0, 3) for n in attention}
    want |= {f"model.layers.0.mlp.{n}" for n in ffn}
    want |= {f"model.layers.3.mlp.shared_experts.{n}" for n in ffn} | {"model.layers.3.mlp.experts"}
    assert {n for n in names if n.startswith(("model.layers.0.", "model.layers.3."))} == want


@every(PREFILL)
def test_prefill_reads_one_byte_a_weight_and_its_scales(model, batch, length):
    priced = ledger(model, "prefill", batch, length, "fp8")
    assert by_module(priced, weights_read) == fp8_weight_bytes(dims(model), batch * length)


@every(DECODE)
def test_decode_reads_one_byte_a_weight_but_two_for_the_absorbed_ones(model, batch, length):
    priced = ledger(model, "decode", batch, length, "fp8")
    assert by_module(priced, weights_read) == fp8_weight_bytes(dims(model), batch, decode=True)


@every(PREFILL)
def test_products_read_fp8_and_scales_and_write_bf16(model, batch, length):
    """X is [T, K] of one byte with a scale for every 128 of K; y is [T, N] of two bytes."""
    d, tokens = dims(model), batch * length
    want = {}
    for path, (k, n) in linears(d).items():
        x = k * FP8 + math.ceil(k / TILE) * FP32 if is_fp8(path) else k * BF16
        want[path] = tokens * (x + n * BF16)
    priced = ledger(model, "prefill", batch, length, "fp8")
    assert by_module(priced, passing_bytes, kinds=(GEMM,)) == want


@pytest.mark.parametrize(("model", "batch", "length"), [(V3, 1, 128), (V2_LITE, 2, 192)])
def test_training_flops_by_precision(model, batch, length):
    """Whole tiles of tokens: all three products of each FP8 matrix are FP8, and none is padded."""
    d = dims(model)
    fp8, bf16 = split(d, forward_flops(d, batch, length))
    priced = ledger(model, "training", batch, length, "fp8")
    assert by_module(priced, fp8_flops) == fp8
    assert by_module(priced, bf16_flops) == bf16
    assert by_module(priced, fp8_flops, phase=BACKWARD) == {m: 2 * f for m, f in fp8.items()}
    assert by_module(priced, bf16_flops, phase=BACKWARD) == {m: 2 * f for m, f in bf16.items()}


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 16), (3, 255)])
def test_training_pads_weight_gradients_to_whole_tiles(batch, length):
    """Difference named: a weight gradient contracts over tokens, which FP8 scales 128 at a time.

    So T is rounded up to whole tiles there (T·k for the experts), and only there. At the sizes
    that people train with nothing is added.
    """
    d, tokens = dims(KIMI), batch * length

    def padded(count: int) -> int:
        return math.ceil(count / TILE) * TILE

    want = {}
    for path, size in linears(d).items():
        if is_fp8(path):
            want[path] = linear_flops(tokens, size) + linear_flops(padded(tokens), size)
    per_row = routed_flops(d, 1) // d.top_k
    rows = tokens * d.top_k
    for layer in range(d.dense_layers, d.layers):
        want[f"model.layers.{layer}.mlp.experts"] = per_row * (rows + padded(rows))
    priced = ledger(KIMI, "training", batch, length, "fp8")
    assert by_module(priced, fp8_flops, phase=BACKWARD) == want


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_training_reads_master_weights_in_bf16(execution):
    """Weights stay BF16 and are quantised at every use, all experts, hit or not.

    Difference named: the trace reads such a weight at most twice, for the largest element of each
    block and to scale by it. A quantiser that keeps 128 x 128 blocks on chip reads it once, and so
    does fusion where it sees through; the gate, the norms, head and embedding are read once.
    """
    d = dims(V3)
    priced = ledger(V3, "training", 1, 128, "fp8", execution=execution)
    want = weight_bytes(d, 128)
    for layer in range(d.dense_layers, d.layers):
        stack = d.experts * d.hidden * d.expert_width * BF16
        want[f"model.layers.{layer}.mlp.experts"] = 3 * stack
    read = by_module(priced, weights_read)
    assert set(read) == set(want)
    for path, nbytes in want.items():
        # A matrix that does not fill its last block (576 rows) is copied into one that does, and
        # the copy is what is read again.
        times = (1, 2) if path in products(d) else (1,)
        assert read[path] in [n * nbytes for n in times], path


def test_training_backward_uses_the_quantised_copies():
    """What the forward kept, which are activations by then: no FP8 product reads a weight again."""
    priced = ledger(V3, "training", 1, 128, "fp8")
    again = by_module(priced, weights_read, phase=BACKWARD)
    assert not products(dims(V3)) & set(again)
    assert again["lm_head"] == dims(V3).hidden * dims(V3).vocab * BF16


def test_gradients_of_fp8_training_are_bf16_and_written_once():
    d = dims(V3)
    priced = ledger(V3, "training", 1, 128, "fp8")
    written = by_module(priced, lambda c: c.write.get("gradients", 0), phase=BACKWARD)
    for path, (k, n) in linears(d).items():
        assert written[path] == k * n * BF16, path
    experts = 3 * d.experts * d.hidden * d.expert_width * BF16
    assert written["model.layers.3.mlp.experts"] == experts


@pytest.mark.parametrize("phase", ["prefill", "training"])
def test_scaling_costs_a_dense_product_what_it_costs_a_grouped_one(phase):
    """Both add a partial sum, times its scales, for every 128 of K: 2 vector FLOPs an output.

    Same recipe, same kernel family (section 3.3.2), so the same count.
    """
    d, tokens = dims(V3), 128
    priced = ledger(V3, phase, 1, tokens, "fp8")

    def vector(cost):
        return cost.vector_flops

    dense = by_module(priced, vector, kinds=(GEMM,))
    grouped = by_module(priced, vector, kinds=(GROUPED_GEMM,))
    wide = math.ceil(d.hidden / TILE)
    narrow = math.ceil(d.expert_width / TILE)
    swiglu = 2 * (2 * d.expert_width * wide + d.hidden * narrow)  # gate and up, then down
    assert grouped["model.layers.3.mlp.experts"] == tokens * d.top_k * swiglu
    shared = sum(v for m, v in dense.items() if m.startswith(SHARED))
    assert shared == tokens * d.shared * swiglu


def test_scaling_costs_the_same_in_the_backward():
    """Input gradients contract over N, weight gradients over rows: 2 for every 128 of either.

    256 tokens, two tiles: a single one needs no partial sums.
    """
    d, tokens = dims(V3), 256
    priced = ledger(V3, "training", 1, tokens, "fp8")

    def vector(cost):
        return cost.vector_flops

    dense = by_module(priced, vector, phase=BACKWARD, kinds=(GEMM,))
    grouped = by_module(priced, vector, phase=BACKWARD, kinds=(GROUPED_GEMM,))

    def by_hand(rows: int) -> int:
        total = 0
        for k, n in ((d.hidden, d.expert_width),) * 2 + ((d.expert_width, d.hidden),):
            total += 2 * rows * k * math.ceil(n / TILE)  # dx is [rows, K], a sum over N
            total += 2 * n * k * math.ceil(rows / TILE)  # dw is [N, K], a sum over rows
        return total

    assert sum(v for m, v in dense.items() if m.startswith(SHARED)) == by_hand(tokens)
    assert grouped["model.layers.3.mlp.experts"] == by_hand(tokens * d.top_k)
