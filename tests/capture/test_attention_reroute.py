"""SDPA on meta becomes the fused op that a GPU would run; real tensors and `naive` do not."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import tracer
from tracer.models import context_parallel

BF16, FP32 = torch.bfloat16, torch.float32
PREFIX = "aten._scaled_dot_product_"


def tensors(shape_q, shape_k, shape_v, dtype, device="meta", grad=True):
    return [
        torch.zeros(shape, dtype=dtype, device=device, requires_grad=grad)
        for shape in (shape_q, shape_k, shape_v)
    ]


def attention_ops(t):
    return [(op.overload_packet, op.phase) for op in t.trace.ops if "attention" in op.name]


def fused(name):
    return [(f"{PREFIX}{name}_attention", "forward"),
            (f"{PREFIX}{name}_attention_backward", "backward")]  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "head", "head_v", "expected"),
    [
        (BF16, 64, 64, "flash"),
        (torch.float16, 128, 128, "flash"),
        (BF16, 256, 256, "flash"),
        (BF16, 192, 128, "cudnn"),  # MLA: no other fused op takes another v size
        (BF16, 64, 128, "cudnn"),
        (FP32, 64, 64, "efficient"),
        (FP32, 192, 128, "efficient"),
    ],
)
def test_the_op_follows_dtype_and_head_sizes(dtype, head, head_v, expected):
    b, h, s = 2, 3, 8
    q, k, v = tensors((b, h, s, head), (b, h, s, head), (b, h, s, head_v), dtype)
    with tracer.trace() as t:
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        out.backward(torch.zeros_like(out))
    assert out.shape == (b, h, s, head_v)
    assert [x.grad.shape for x in (q, k, v)] == [x.shape for x in (q, k, v)]
    assert attention_ops(t) == fused(expected)
    pairs = b * h * s * (s + 1) // 2
    assert t.ledger().total("forward").total_flops == 2 * pairs * (head + head_v)
    assert t.ledger().total("backward").total_flops == 4 * pairs * (head + head_v)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("mask_shape", [(6, 8), (2, 1, 6, 8), (1, 4, 6, 8)])
def test_a_mask_keeps_the_op_fused(dtype, kind, mask_shape):
    q, k, v = tensors((2, 4, 6, 16), (2, 4, 8, 16), (2, 4, 8, 16), dtype)
    mask = torch.zeros(mask_shape, dtype=torch.bool if kind == "bool" else dtype, device="meta")
    with tracer.trace() as t:
        scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
    forward, backward = attention_ops(t)
    assert forward[0] in (f"{PREFIX}efficient_attention", f"{PREFIX}cudnn_attention")
    assert backward[0] == f"{forward[0]}_backward"
    assert t.ledger().total("forward").total_flops == 2 * (2 * 4 * 6 * 8) * 32
    # The mask is read once, however it broadcasts.
    index = next(i for i, op in enumerate(t.trace.ops) if op.overload_packet == forward[0])
    (part,) = [p for p in t.ledger(execution="naive").parts() if p.op == index]
    size = dtype.itemsize
    elements = 2 * 4 * (6 + 8 + 8) * 16 + torch.Size(mask_shape).numel()
    assert sum(part.cost.read.values()) == elements * size


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_a_learned_bias_gets_its_gradient(dtype):
    """T5 and ALiBi-like biases are parameters: the op must be one that differentiates them."""
    q, k, v = tensors((2, 4, 8, 16), (2, 4, 8, 16), (2, 4, 8, 16), dtype)
    bias = torch.zeros(1, 4, 8, 8, dtype=dtype, device="meta", requires_grad=True)
    with tracer.trace():
        scaled_dot_product_attention(q, k, v, attn_mask=bias).sum().backward()
    assert bias.grad.shape == bias.shape


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("head_v", [16, 24])
@pytest.mark.parametrize("masked", [False, True])
def test_gqa_has_gradients_of_the_key_heads(dtype, head_v, masked):
    b, h, hk, s = 2, 4, 2, 8
    q, k, v = tensors((b, h, s, 16), (b, hk, s, 16), (b, hk, s, head_v), dtype)
    mask = torch.zeros(s, s, dtype=torch.bool, device="meta") if masked else None
    with tracer.trace() as t:
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out.sum().backward()
    assert out.shape == (b, h, s, head_v)
    assert (k.grad.shape, v.grad.shape) == (k.shape, v.shape)
    assert t.flops == 3 * 2 * (b * h * s * s) * (16 + head_v)


def test_head_counts_that_do_not_fit_are_refused_as_without_the_tracer():
    q, k, v = tensors((2, 4, 8, 16), (2, 3, 8, 16), (2, 3, 8, 16), FP32)
    with pytest.raises(RuntimeError):
        scaled_dot_product_attention(q, k, v)
    with pytest.raises(RuntimeError), tracer.trace():
        scaled_dot_product_attention(q, k, v)


def test_real_tensors_run_what_their_device_runs():
    q, k, v = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    plain = scaled_dot_product_attention(q, k, v)
    with tracer.trace() as t:
        traced = scaled_dot_product_attention(q, k, v)
        traced.sum().backward()
    assert torch.equal(plain, traced)
    assert attention_ops(t) == [
        (f"{PREFIX}flash_attention_for_cpu", "forward"),
        (f"{PREFIX}flash_attention_for_cpu_backward", "backward"),
    ]
    assert t.flops == 3 * 2 * (2 * 4 * 4) * (8 + 8)


def test_three_dimensional_inputs_still_work():
    q = torch.zeros(4, 8, 16, dtype=BF16, device="meta")
    with tracer.trace() as t:
        out = scaled_dot_product_attention(q, q, q)
    assert out.shape == q.shape
    assert t.flops == 2 * (4 * 8 * 8) * 32


def test_naive_multiplies_in_half_precision_and_restores_the_flag():
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    q, k, v = tensors((2, 3, 8, 16), (2, 3, 8, 16), (2, 3, 8, 16), BF16)
    with tracer.trace(attention="naive") as t:
        scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() is before
    assert attention_ops(t) == []
    products = [op for op in t.trace.ops if op.overload_packet == "aten.bmm"]
    assert len(products) == 2 + 4
    assert {op.outputs[0].dtype for op in products} == {"bfloat16"}
    # Every pair, masked or not: the matrix of scores is there.
    assert t.cost.flops == {"bf16": 3 * 2 * (2 * 3 * 8 * 8) * 32}


@pytest.mark.parametrize("start", [True, False])
def test_naive_restores_either_setting_of_the_flag(start):
    cuda = torch.backends.cuda
    before = cuda.fp16_bf16_reduction_math_sdp_allowed()
    cuda.allow_fp16_bf16_reduction_math_sdp(start)
    try:
        with pytest.raises(ZeroDivisionError), tracer.trace(attention="naive"):
            raise ZeroDivisionError
        assert cuda.fp16_bf16_reduction_math_sdp_allowed() is start
    finally:
        cuda.allow_fp16_bf16_reduction_math_sdp(before)


def test_the_reroute_ends_with_the_block():
    q, k, v = tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), BF16)
    with tracer.trace():
        scaled_dot_product_attention(q, k, v)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        scaled_dot_product_attention(q, k, v)
    assert seen.count("aten.bmm.default") == 2
    assert not any("attention" in name for name in seen)


@pytest.mark.parametrize("order", list(itertools.product(["fused", "naive"], repeat=2)))
def test_the_inner_trace_decides(order):
    q, k, v = tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), BF16)
    outer, inner = order
    with tracer.trace(attention=outer), tracer.trace(attention=inner) as t:
        scaled_dot_product_attention(q, k, v)
    assert bool(attention_ops(t)) is (inner == "fused")


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_recompute_of_a_checkpoint_is_fused_too(reentrant):
    q, k, v = tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), BF16)
    with tracer.trace() as t:
        out = checkpoint(
            lambda a, b, c: scaled_dot_product_attention(a, b, c, is_causal=True),
            q, k, v, use_reentrant=reentrant,
        )  # fmt: skip
        out.sum().backward()
    name = f"{PREFIX}flash_attention"
    assert attention_ops(t) == [
        (name, "forward"), (name, "recompute"), (f"{name}_backward", "backward"),
    ]  # fmt: skip


def test_multihead_attention_module():
    model = nn.MultiheadAttention(32, 4, batch_first=True, device="meta", dtype=BF16)
    x = torch.zeros(2, 8, 32, device="meta", dtype=BF16)
    with tracer.trace(model) as t:
        model(x, x, x, need_weights=False)[0].sum().backward()
    assert attention_ops(t) == fused("flash")
    linears = 2 * 16 * (32 * 96 + 32 * 32)
    scores = 2 * (2 * 8 * 8 * 4) * 16
    # The input needs no gradient: the projection's backward is one product of two.
    assert t.flops == 3 * (linears + scores) - 2 * 16 * 32 * 96


def _suffix(q, k, v, scale=None):
    return torch.ops.deepseek.suffix_attention(q, k, v, scale)


@pytest.mark.parametrize(
    ("dtype", "head_v", "key_heads", "expected"),
    [
        (BF16, 16, 4, "flash"),
        (BF16, 16, 2, "flash"),
        (BF16, 8, 4, "efficient"),  # MLA
        (BF16, 8, 2, "efficient"),
        (FP32, 16, 4, "efficient"),
    ],
)
@pytest.mark.parametrize(("queries", "keys"), [(3, 9), (5, 5), (1, 4)])
def test_suffix_attention_counts_the_pairs_before_each_query(
    dtype, head_v, key_heads, expected, queries, keys
):
    b, h, d = 2, 4, 16
    q, k, v = tensors(
        (b, h, queries, d), (b, key_heads, keys, d), (b, key_heads, keys, head_v), dtype
    )
    with tracer.trace() as t:
        out = _suffix(q, k, v)
        out.backward(torch.zeros_like(out))
    assert out.shape == (b, h, queries, head_v)
    assert [x.grad.shape for x in (q, k, v)] == [x.shape for x in (q, k, v)]
    assert attention_ops(t) == [
        (f"aten._{expected}_attention_forward", "forward"),
        (f"aten._{expected}_attention_backward", "backward"),
    ]
    pairs = b * h * sum(range(keys - queries + 1, keys + 1))
    assert t.flops == 3 * 2 * pairs * (d + head_v)


@pytest.mark.parametrize("reentrant", [True, False])
def test_suffix_attention_is_fused_when_it_runs_again(reentrant):
    q, k, v = tensors((1, 2, 4, 8), (1, 2, 8, 8), (1, 2, 8, 4), BF16)
    with tracer.trace() as t:
        checkpoint(_suffix, q, k, v, use_reentrant=reentrant).sum().backward()
    assert [name for name, _ in attention_ops(t)] == [
        "aten._efficient_attention_forward",
        "aten._efficient_attention_forward",
        "aten._efficient_attention_backward",
    ]


def test_naive_suffix_attention_has_its_score_matrix():
    q, k, v = tensors((2, 4, 3, 16), (2, 4, 9, 16), (2, 4, 9, 16), BF16)
    with tracer.trace(attention="naive") as t:
        _suffix(q, k, v)
    assert attention_ops(t) == []
    assert t.flops == 2 * (2 * 4 * 3 * 9) * 32


def test_suffix_attention_is_the_end_of_causal_attention():
    torch.manual_seed(0)
    q = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 9, 8, dtype=torch.float64)
    whole = context_parallel.causal_attention(q, k, v, 0.3)
    torch.testing.assert_close(_suffix(q[:, :, 5:], k, v, 0.3), whole[:, :, 5:])
    with tracer.trace():  # real tensors run what their device runs
        torch.testing.assert_close(_suffix(q[:, :, 5:], k, v, 0.3), whole[:, :, 5:])


def test_chunks_hold_every_token_once():
    ids = torch.arange(2 * 24).view(2, 24)
    groups = [context_parallel.Group("x", 3, rank) for rank in range(3)]
    assert [context_parallel.own_tokens(ids, g)[0].tolist() for g in groups] == [
        [0, 1, 2, 3, 20, 21, 22, 23], [4, 5, 6, 7, 16, 17, 18, 19], [8, 9, 10, 11, 12, 13, 14, 15],
    ]  # fmt: skip
    for group in groups:
        own = context_parallel.own_tokens(ids, group)[0].tolist()
        assert context_parallel.positions(8, group).tolist() == own
