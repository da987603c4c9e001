"""Attention on every backend: pairs against the mask itself, backends against each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_records import ledger_of, meta, read_bytes, record, ref, work
from torch import nn
from torch.nn.attention.varlen import varlen_attn

from tracer.cost import Conventions
from tracer.cost.formulas.pairs import Mask, count_pairs

aten = torch.ops.aten


def mask_of(queries, keys, left, right, bottom_right):
    """The mask written out: which key each query sees."""
    shift = keys - queries if bottom_right else 0
    position = torch.arange(queries)[:, None] + shift
    key = torch.arange(keys)[None, :]
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if right is not None:
        seen &= key <= position + right
    if left is not None:
        seen &= key >= position - left
    return seen


limits = st.one_of(st.none(), st.integers(0, 12))


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 12), st.integers(1, 12), limits, limits, st.booleans())
def test_pairs_are_the_ones_of_the_mask(queries, keys, left, right, bottom_right):
    counted = count_pairs(queries, keys, Mask(left, right, bottom_right))
    assert counted == int(mask_of(queries, keys, left, right, bottom_right).sum())


B, H, HK, S, L, D, DV = 2, 6, 2, 8, 11, 16, 24
CAUSAL_SQUARE = S * (S + 1) // 2


def heads_first(size_k=D, size_v=DV, keys=S, heads=HK):
    return ref(B, H, S, D), ref(B, heads, keys, size_k), ref(B, heads, keys, size_v)


FORWARD = {
    "_scaled_dot_product_flash_attention": {},
    "_scaled_dot_product_flash_attention_for_cpu": {},
    "_scaled_dot_product_efficient_attention": {},
    "_scaled_dot_product_cudnn_attention": {},
    "_scaled_dot_product_fused_attention_overrideable": {},
}


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("causal", [False, True])
def test_every_sdpa_backend_counts_the_same(name, causal):
    """2·D for a score, 2·Dv for its share of the output; heads are those of the queries."""
    q, k, v = heads_first()
    op = record(
        getattr(aten, name).default, ref(B, H, S, DV), query=q, key=k, value=v, is_causal=causal
    )
    pairs = B * H * (CAUSAL_SQUARE if causal else S * S)
    done = work(op)
    assert done.flops == pairs * (2 * D + 2 * DV)
    assert done.vector == 5 * pairs  # max, subtract, exponential, sum, divide
    # Keys and values of the two key heads, not repeated to six.
    assert read_bytes(op) == 4 * (q.numel + B * HK * S * (D + DV))
    full = work(op, Conventions(causal="full"))
    assert full.flops == B * H * S * S * (2 * D + 2 * DV)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("causal", [False, True])
def test_every_sdpa_backward_is_twice_its_forward(name, causal):
    """dQ, dK and the score gradient dP, dV: four products; the scores again are not published."""
    q, k, v = heads_first()
    y = ref(B, H, S, DV)
    out = {"out": y}
    grads = {"grad_out_" if "efficient" in name else "grad_out": y}
    op = record(
        getattr(aten, f"{name}_backward").default, q, k, v,
        query=q, key=k, value=v, is_causal=causal, **out, **grads,
    )  # fmt: skip
    forward = record(getattr(aten, name).default, y, query=q, key=k, value=v, is_causal=causal)
    assert work(op).flops == 2 * work(forward).flops
    pairs = B * H * (CAUSAL_SQUARE if causal else S * S)
    assert work(op).recompute == pairs * 2 * D


def test_fp8_flash_runs_at_the_rate_of_its_operands():
    q, k, v = (ref(B, H, S, D, dtype="float8_e4m3fn") for _ in range(3))
    op = record(
        aten._scaled_dot_product_flash_attention.quantized, ref(B, H, S, D), query=q, key=k,
        value=v, is_causal=True,
    )  # fmt: skip
    assert work(op).flops == B * H * CAUSAL_SQUARE * 4 * D


def test_bias_and_dropout_are_vector_work():
    q, k, v = heads_first()
    bias = ref(1, 1, S, S)
    shared = bias._replace(shape=(B, H, S, S), stride=(0, 0, S, 1))
    op = record(
        aten._scaled_dot_product_efficient_attention.default, ref(B, H, S, DV),
        query=q, key=k, value=v, attn_bias=shared, dropout_p=0.1,
    )  # fmt: skip
    # 5 for the softmax, 1 for the bias, 2 for dropout's comparison and scale.
    assert work(op).vector == (5 + 1 + 2) * B * H * S * S
    # A bias that is the same for every head is read once.
    assert read_bytes(op) == 4 * (q.numel + k.numel + v.numel + S * S)


# -- the kernels themselves ------------------------------------------------------------------------


def flash(q, k, v, **given):
    return record(
        aten._flash_attention_forward.default, ref(*q.shape[:-1], v.shape[-1]), query=q, key=k,
        value=v, max_q=given.pop("max_q", S), max_k=given.pop("max_k", L), **given,
    )  # fmt: skip


@pytest.mark.parametrize("queries", [1, 3, S])
@pytest.mark.parametrize("window", [None, 0, 2, 5, 100])
def test_flash_aligns_the_last_query_with_the_last_key(queries, window):
    """Decode with a window: one query sees itself and `window` keys before it."""
    q, k = ref(B, queries, H, D), ref(B, L, HK, D)
    left = -1 if window is None else window
    op = flash(q, k, k, is_causal=True, window_size_left=left, window_size_right=-1)
    pairs = int(mask_of(queries, L, window, 0, True).sum())
    assert work(op).flops == B * H * pairs * 4 * D


def test_a_window_without_causality_reaches_both_ways():
    q, k = ref(B, S, H, D), ref(B, L, H, D)
    op = flash(q, k, k, is_causal=False, window_size_left=2, window_size_right=1)
    assert work(op).flops == B * H * int(mask_of(S, L, 2, 1, True).sum()) * 4 * D


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [[6, 6, 6], [5, 5], [9]])
def test_packed_sequences_of_equal_length_are_a_loop_over_sequences(lengths, causal):
    tokens, count = sum(lengths), len(lengths)
    q, k = ref(tokens, H, D), ref(tokens, HK, D)
    ends = ref(count + 1, dtype="int32")
    op = flash(
        q, k, k, cum_seq_q=ends, cum_seq_k=ends, max_q=lengths[0], max_k=lengths[0],
        is_causal=causal,
    )  # fmt: skip
    loop = sum(n * (n + 1) // 2 if causal else n * n for n in lengths)
    assert (work(op).flops, work(op).confidence) == (H * loop * 4 * D, "exact")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.booleans())
def test_packed_sequences_of_unknown_length_cost_at_least_the_estimate(lengths, causal):
    """As squares are convex, equal lengths are the least; the estimate says that it is one."""
    tokens, longest = sum(lengths), max(lengths)
    q = ref(tokens, H, D)
    ends = ref(len(lengths) + 1, dtype="int32")
    op = flash(
        q, q, q, cum_seq_q=ends, cum_seq_k=ends, max_q=longest, max_k=longest, is_causal=causal
    )
    real = sum(n * (n + 1) // 2 if causal else n * n for n in lengths)
    assert work(op).flops <= H * real * 4 * D
    equal = len(set(lengths)) == 1
    assert work(op).confidence == ("exact" if equal else "estimated")
    if max(lengths) - min(lengths) <= 1:  # as equal as they can be
        assert work(op).flops == H * real * 4 * D


def test_a_paged_cache_is_read_by_pages():
    """64 pages of 16 tokens exist; two sequences use at most 40 keys each."""
    pages = ref(64, 16, HK, D, dtype="bfloat16")
    q = ref(2, H, D, dtype="bfloat16")
    op = flash(
        q, pages, pages, cum_seq_q=ref(3, dtype="int32"), max_q=1, max_k=40, is_causal=True,
        block_table=ref(2, 3, dtype="int32"), seqused_k=ref(2, dtype="int32"),
    )  # fmt: skip
    done = work(op)
    assert done.flops == 2 * H * 40 * 4 * D
    assert done.read == dict.fromkeys(("key", "value"), 2 * 40 * HK * D * 2)
    assert done.confidence == "estimated"


@pytest.mark.parametrize("causal", [False, True])
def test_flash_kernel_backward(causal):
    q, k = ref(B, S, H, D), ref(B, L, HK, D)
    op = record(
        aten._flash_attention_backward.default, q, k, k, grad_out=q, query=q, key=k, value=k,
        max_q=S, max_k=L, is_causal=causal, cum_seq_q=None, cum_seq_k=None,
    )  # fmt: skip
    assert work(op).flops == 2 * work(flash(q, k, k, is_causal=causal)).flops


@pytest.mark.parametrize(
    ("kind", "right", "bottom_right"), [(0, None, False), (1, 0, False), (2, 0, True)]
)
@pytest.mark.parametrize("window", [None, 1, 4])
def test_efficient_kernel_mask_types(kind, right, bottom_right, window):
    """0: all pairs; 1: causal from the top left; 2: causal from the bottom right.

    Its window counts the query's own key.
    """
    q, k, v = ref(B, S, H, D), ref(B, L, H, D), ref(B, L, H, DV)
    arguments = {"query": q, "key": k, "value": v, "custom_mask_type": kind, "window_size": window}
    op = record(aten._efficient_attention_forward.default, ref(B, S, H, DV), **arguments)
    left = window - 1 if window and kind else None
    pairs = B * H * int(mask_of(S, L, left, right, bottom_right).sum())
    assert work(op).flops == pairs * 2 * (D + DV)
    back = record(aten._efficient_attention_backward.default, q, k, v, **arguments)
    assert work(back).flops == 2 * work(op).flops


@pytest.mark.parametrize("causal", [False, True])
def test_cudnn_kernel_dense_and_packed(causal):
    q, k, v = heads_first(heads=H)
    arguments = {"query": q, "key": k, "value": v, "is_causal": causal}
    dense = record(aten._cudnn_attention_forward.default, ref(B, H, S, DV), **arguments)
    pairs = B * H * (CAUSAL_SQUARE if causal else S * S)
    assert work(dense).flops == pairs * 2 * (D + DV)
    back = record(
        aten._cudnn_attention_backward.default, q, k, v, cum_seq_q=None, cum_seq_k=None, **arguments
    )
    assert work(back).flops == 2 * work(dense).flops
    packed = record(
        aten._cudnn_attention_forward.default, ref(B * S, H, DV), query=ref(B * S, H, D),
        key=ref(B * S, H, D), value=ref(B * S, H, DV), is_causal=causal, max_q=S, max_k=S,
        cum_seq_q=ref(B + 1, dtype="int32"), cum_seq_k=ref(B + 1, dtype="int32"),
    )  # fmt: skip
    assert work(packed).flops == work(dense).flops


# -- real calls ------------------------------------------------------------------------------------


def test_flash_and_efficient_kernels_as_torch_calls_them():
    q = meta(B, S, H, D, dtype=torch.bfloat16)
    ledger = ledger_of(
        aten._flash_attention_forward, q, q, q, None, None, S, S, 0.0, True, False, scale=0.1
    )
    assert ledger.total().total_flops == B * H * CAUSAL_SQUARE * 4 * D
    ledger = ledger_of(
        aten._efficient_attention_forward, q, q, q, None, None, None, S, S, 0.0, 2, True
    )
    assert ledger.total().total_flops == B * H * CAUSAL_SQUARE * 4 * D


@pytest.mark.parametrize("window", [(-1, 0), (3, 0), (-1, -1), (2, 1)])
def test_torchs_packed_attention(window):
    """Three sequences of S tokens; a window of (-1, 0) is causality."""
    q = meta(3 * S, H, D, dtype=torch.bfloat16, grad=True)
    ends = torch.empty(4, dtype=torch.int32, device="meta")

    def step():
        varlen_attn(q, q, q, ends, ends, S, S, window_size=window).sum().backward()

    left, right = (None if limit < 0 else limit for limit in window)
    pairs = 3 * H * int(mask_of(S, S, left, right, True).sum())
    ledger = ledger_of(step)
    assert ledger.total("forward").total_flops == pairs * 4 * D
    assert ledger.total("backward").total_flops == pairs * 8 * D


def test_the_math_path_is_its_two_products():
    """SDPA with a mask that no CPU kernel takes: scores and values as ordinary products."""
    q, k, v = (torch.randn(B, H, S, D) for _ in range(3))
    ledger = ledger_of(aten._scaled_dot_product_attention_math, q, k, v)
    assert ledger.total().total_flops == B * H * S * S * 4 * D


def test_cpu_flash_forward_and_backward():
    q, k, v = (torch.randn(B, H, S, D, requires_grad=True) for _ in range(3))

    def step():
        attention = nn.functional.scaled_dot_product_attention
        attention(q, k, v, is_causal=True).sum().backward()

    ledger = ledger_of(step)
    assert "_scaled_dot_product_flash_attention_for_cpu" in {k.name for k in ledger.kernels}
    assert ledger.total("forward").total_flops == B * H * CAUSAL_SQUARE * 4 * D
    assert ledger.total("backward").total_flops == B * H * CAUSAL_SQUARE * 8 * D


@pytest.fixture
def fast_path():
    before = torch.backends.mha.get_fastpath_enabled()
    yield torch.backends.mha.set_fastpath_enabled
    torch.backends.mha.set_fastpath_enabled(before)


def test_whole_attention_layer_is_its_slow_path(fast_path):
    """One op with the fast path, a dozen without: the same products."""
    layer = nn.MultiheadAttention(D, 4, batch_first=True).eval()
    x = torch.randn(B, S, D)
    flops = {}
    for fast in (True, False):
        fast_path(fast)
        with torch.no_grad():
            ledger = ledger_of(layer, x, x, x)
        flops[fast] = ledger.total().total_flops
        assert ("_native_multi_head_attention" in {k.name for k in ledger.kernels}) == fast
    assert flops[True] == flops[False]
    assert flops[True] == 2 * B * S * 4 * D * D + 4 * B * S * S * D


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_whole_encoder_layer_is_its_slow_path(fast_path, activation):
    layer = nn.TransformerEncoderLayer(D, 4, 40, batch_first=True, activation=activation).eval()
    x = torch.randn(B, S, D)
    flops = {}
    for fast in (True, False):
        fast_path(fast)
        with torch.no_grad():
            ledger = ledger_of(layer, x)
        flops[fast] = ledger.total().total_flops
        assert ("_transformer_encoder_layer_fwd" in {k.name for k in ledger.kernels}) == fast
    assert flops[True] == flops[False]
    assert flops[True] == 2 * B * S * (4 * D * D + 2 * D * 40) + 4 * B * S * S * D


def test_choosing_a_backend_is_free():
    q = torch.randn(B, H, S, D)
    assert ledger_of(aten._fused_sdp_choice, q, q, q).kernels == ()
