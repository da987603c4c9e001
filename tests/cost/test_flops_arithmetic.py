"""FLOPs of every family against arithmetic written here, and torch's counter as a second witness.

One multiply-add is 2 FLOPs. Matrix products and convolutions are `flops`; the rest is vector work.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import tracer

BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
M, K, N, B = 6, 10, 14, 3
aten = torch.ops.aten


def T(*shape, dtype=FP32, grad=False):
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def trace(program):
    with tracer.trace() as t:
        program()
    return t


MATRIX = {
    "mm": (lambda: T(M, K) @ T(K, N), 2 * M * K * N, 0),
    "mm of a transpose": (lambda: T(M, K) @ T(N, K).t(), 2 * M * K * N, 0),
    "addmm": (lambda: torch.addmm(T(N), T(M, K), T(K, N)), 2 * M * K * N, M * N),
    "bmm": (lambda: torch.bmm(T(B, M, K), T(B, K, N)), 2 * B * M * K * N, 0),
    "baddbmm": (
        lambda: torch.baddbmm(T(B, M, N), T(B, M, K), T(B, K, N)),
        2 * B * M * K * N,
        B * M * N,
    ),
    "addbmm": (lambda: torch.addbmm(T(M, N), T(B, M, K), T(B, K, N)), 2 * B * M * K * N, M * N),
    "mv": (lambda: torch.mv(T(M, K), T(K)), 2 * M * K, 0),
    "addmv": (lambda: torch.addmv(T(M), T(M, K), T(K)), 2 * M * K, M),
    "dot": (lambda: torch.dot(T(K), T(K)), 2 * K, 0),
    "linear with bias": (lambda: F.linear(T(B, M, K), T(N, K), T(N)), 2 * B * M * K * N, B * M * N),
    "matmul broadcast": (lambda: T(B, 1, M, K) @ T(2, K, N), 2 * B * 2 * M * K * N, 0),
    "einsum": (lambda: torch.einsum("bmk,bnk->bmn", T(B, M, K), T(B, N, K)), 2 * B * M * K * N, 0),
    "conv1d": (lambda: F.conv1d(T(B, 4, 20), T(8, 4, 3)), 2 * B * 8 * 18 * 4 * 3, 0),
    "conv2d bias": (
        lambda: F.conv2d(T(B, 4, 9, 9), T(8, 4, 3, 3), T(8), stride=2, padding=1),
        2 * B * 8 * 5 * 5 * 4 * 9,
        B * 8 * 5 * 5,
    ),
    "conv2d grouped": (
        lambda: F.conv2d(T(B, 8, 9, 9), T(12, 2, 3, 3), groups=4),
        2 * B * 12 * 7 * 7 * 2 * 9,
        0,
    ),
    "conv2d depthwise": (
        lambda: F.conv2d(T(B, 8, 9, 9), T(8, 1, 3, 3), groups=8),
        2 * B * 8 * 7 * 7 * 9,
        0,
    ),
    "conv3d": (
        lambda: F.conv3d(T(B, 4, 5, 6, 7), T(8, 4, 2, 3, 3)),
        2 * B * 8 * 4 * 4 * 5 * 4 * 18,
        0,
    ),
    # Transposed: every *input* position meets every weight.
    "conv transposed": (
        lambda: F.conv_transpose2d(T(B, 4, 5, 5), T(4, 8, 3, 3), stride=2),
        2 * B * 25 * 4 * 8 * 9,
        0,
    ),
    "conv transposed grouped": (
        lambda: F.conv_transpose1d(T(B, 4, 5), T(4, 3, 3), groups=2),
        2 * B * 5 * 4 * 3 * 3,
        0,
    ),
    "int8": (
        lambda: torch._int_mm(
            T(32, 16).to(torch.int8), torch.empty(16, 8, dtype=torch.int8, device="meta")
        ),
        2 * 32 * 16 * 8,
        0,
    ),
    "in place": (lambda: T(M, N).addmm_(T(M, K), T(K, N)), 2 * M * K * N, M * N),
}


@pytest.mark.parametrize("name", MATRIX)
def test_matrix_products_and_convolutions(name):
    program, flops, vector = MATRIX[name]
    t = trace(program)
    assert t.flops == flops
    assert t.cost.vector_flops == vector
    assert t.ledger().coverage().keys() == {"exact"}


UNKNOWN_TO_TORCH = ("addbmm", "mv", "addmv", "dot", "int8", "in place")


@pytest.mark.parametrize("name", MATRIX)
def test_torch_agrees_where_it_knows_the_op(name):
    program, flops, _ = MATRIX[name]
    counter = FlopCounterMode(display=False)
    with counter:
        program()
    # einsum and the rest reach bmm; what torch does not know it counts as zero, silently.
    assert counter.get_total_flops() == (0 if name in UNKNOWN_TO_TORCH else flops)


CONVS = {
    "plain": lambda x: F.conv2d(x, T(8, 4, 3, 3, grad=True), T(8, grad=True), stride=2),
    "grouped": lambda x: F.conv2d(x, T(8, 2, 3, 3, grad=True), groups=2),
    "transposed": lambda x: F.conv_transpose2d(x, T(4, 8, 3, 3, grad=True), stride=2),
}


@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize("input_grad", [True, False])
def test_conv_backward_is_one_forward_for_each_gradient(kind, input_grad):
    t = trace(lambda: CONVS[kind](T(B, 4, 9, 9, grad=input_grad)).sum().backward())
    forward = t.ledger().total("forward").total_flops
    assert t.ledger().total("backward").total_flops == forward * (1 + input_grad)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(BF16, "bf16"), (torch.float16, "fp16"), (FP32, "fp32"), (torch.float64, "fp64")],
)
def test_precision_is_that_of_the_operands(dtype, precision):
    t = trace(lambda: T(M, K, dtype=dtype) @ T(K, N, dtype=dtype))
    assert t.cost.flops == {precision: 2 * M * K * N}


def test_scaled_mm_runs_at_the_rate_of_its_operands():
    a, b = T(32, 64, dtype=FP8), T(48, 64, dtype=FP8).t()
    one = T(dtype=FP32)
    t = trace(lambda: torch._scaled_mm(a, b, one, one, out_dtype=BF16))
    assert t.cost.flops == {"fp8": 2 * 32 * 64 * 48}
    # Operands one byte, result two; the scale is one FP32 scalar, read once for both.
    assert t.cost.total_bytes == 32 * 64 + 64 * 48 + 2 * 32 * 48 + 4


def test_addmm_takes_the_precision_of_the_matrices_not_of_the_bias():
    t = trace(
        lambda: aten.addmm.default(T(N, dtype=BF16), T(M, K, dtype=BF16), T(K, N, dtype=BF16))
    )
    assert t.cost.flops == {"bf16": 2 * M * K * N}


SDPA_B, H, S, L, D, DV = 2, 4, 6, 9, 8, 12


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("dv", [D, DV])
def test_sdpa_forward_backward_and_recompute(causal, dtype, dv):
    q, k, v = (T(SDPA_B, H, S, size, dtype=dtype, grad=True) for size in (D, D, dv))
    with tracer.trace() as t:
        F.scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward()
    ledger = t.ledger()
    pairs = SDPA_B * H * (S * (S + 1) // 2 if causal else S * S)
    assert ledger.total("forward").total_flops == 2 * pairs * (D + dv)
    assert ledger.total("backward").total_flops == 4 * pairs * (D + dv)
    # A flash backward computes the scores once more: real work, not in published counts.
    assert sum(ledger.total("backward").recompute_flops.values()) == 2 * pairs * D
    full = t.ledger(tracer.Conventions(causal="full"))
    square = SDPA_B * H * S * S
    assert full.total("forward").total_flops == 2 * square * (D + dv)


@pytest.mark.parametrize(("queries", "keys"), [(S, S), (S, L), (L, S), (1, L), (L, 1)])
def test_causal_pairs_by_counting_the_mask(queries, keys):
    """The mask of torch's causal attention, top left aligned, summed."""
    q, k = T(1, 1, queries, D), T(1, 1, keys, D)
    t = trace(lambda: F.scaled_dot_product_attention(q, k, k, is_causal=True))
    pairs = int(torch.ones(queries, keys).tril().sum())
    assert t.flops == 2 * pairs * 2 * D


def test_gqa_counts_query_heads_and_reads_key_heads():
    q, k = T(SDPA_B, H, S, D, dtype=BF16), T(SDPA_B, 2, L, D, dtype=BF16)
    v = T(SDPA_B, 2, L, D, dtype=BF16)
    with torch.no_grad():
        t = trace(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    assert t.flops == 2 * SDPA_B * H * S * L * 2 * D
    read = 2 * SDPA_B * D * (H * S + 2 * 2 * L)
    assert sum(t.cost.read.values()) == read


EXPERTS, ROWS = 4, 16


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((ROWS, 16), (EXPERTS, 16, 8)),  # rows by experts
        ((16, ROWS), (ROWS, 8)),  # weight gradient
        ((EXPERTS, 5, 16), (EXPERTS, 16, 8)),  # batched
        ((EXPERTS, 5, 16), (16, ROWS)),  # columns by experts
    ],
)
def test_grouped_products_against_a_loop_over_experts(a, b):
    sizes = [2, 9, 1, 4]  # of the ragged dimension; they sum to ROWS
    assert sum(sizes) == ROWS
    offs = torch.empty(EXPERTS, dtype=torch.int32, device="meta")
    x, w = T(*a, dtype=BF16), T(*b, dtype=BF16)
    with_offsets = not (len(a) == 3 and len(b) == 3)
    t = trace(lambda: torch._grouped_mm(x, w, offs if with_offsets else None))
    looped = 0
    for size in sizes:
        if len(a) == 2 and len(b) == 3:
            looped += 2 * size * a[1] * b[2]
        elif len(a) == 2:
            looped += 2 * a[0] * size * b[1]
        elif len(b) == 3:
            looped += 2 * a[1] * a[2] * b[2]
        else:
            looped += 2 * a[1] * a[2] * size
    assert t.cost.flops == {"bf16": looped}


VECTOR = {
    "add": (lambda: T(M, N) + T(N), M * N),
    "mul in place": (lambda: T(M, N).mul_(2), M * N),
    "exp": (lambda: T(M, N).exp(), M * N),
    "silu": (lambda: F.silu(T(M, N)), 4 * M * N),  # negate, exponential, add, divide
    "addcmul": (lambda: torch.addcmul(T(M), T(M), T(M)), 3 * M),  # value·a·b + self
    "where": (lambda: torch.where(T(M) > 0, T(M), T(M)), M),  # the comparison; a choice is free
    "sum": (lambda: T(M, N).sum(), M * N),
    "mean of rows": (lambda: T(M, N).mean(-1), M * N),
    "softmax": (lambda: T(M, N).softmax(-1), 5 * M * N),  # max, -, exp, sum, /
    "clone": (lambda: T(M, N).clone(), 0),
    "cat": (lambda: torch.cat([T(M), T(N)]), 0),
    "zeros": (lambda: torch.zeros(M, device="meta"), 0),
    "cast": (lambda: T(M).to(BF16), 0),
    "gather": (lambda: T(M, N).gather(1, T(M, 2).long()), 0),
    "foreach add": (lambda: torch._foreach_add([T(M), T(N)], 1.0), M + N),
    "foreach in place": (lambda: torch._foreach_mul_([T(M), T(N)], 2.0), M + N),
    "dropout": (lambda: F.dropout(T(M, N), 0.5), 3 * M * N),  # draw, scale the mask, apply it
}


@pytest.mark.parametrize("name", VECTOR)
def test_vector_work(name):
    program, vector = VECTOR[name]
    t = trace(program)
    assert t.flops == 0
    assert t.cost.vector_flops == vector
    assert not t.ledger().unmodelled()


@pytest.mark.parametrize(
    "norm",
    [lambda x: F.rms_norm(x, (N,)), lambda x: F.layer_norm(x, (N,)),
     lambda x: F.group_norm(x.unsqueeze(-1), 2)],
)  # fmt: skip
def test_norms_scale_with_their_elements_and_have_no_matrix_flops(norm):
    small, large = trace(lambda: norm(T(M, N))), trace(lambda: norm(T(7 * M, N)))
    assert small.flops == large.flops == 0
    assert large.cost.vector_flops == 7 * small.cost.vector_flops
    # Square and scale at the least; a two-pass layer norm with affine map is near ten.
    assert 2 * M * N <= small.cost.vector_flops <= 10 * M * N


def test_topk_is_an_estimate_and_says_so():
    t = trace(lambda: T(M, N).topk(2))
    assert t.ledger().coverage().keys() == {"estimated"}
    assert t.flops == 0


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_optimizers_cost_the_same_bytes_as_they_touch(name):
    model = nn.Linear(8, 8, bias=False)
    make = {
        "adam": lambda p: torch.optim.Adam(p, fused=True),
        "adamw": lambda p: torch.optim.AdamW(p, fused=True),
        "sgd": lambda p: torch.optim.SGD(p, momentum=0.9, fused=True),
    }
    optimizer = make[name](model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()  # states exist
    with tracer.trace(model) as t:
        optimizer.step()
    moments = {"adam": 2, "adamw": 2, "sgd": 1}[name]
    by_role = t.ledger(execution="naive").total("optimizer")
    assert by_role.read["weights"] == by_role.write["weights"] == 4 * 64
    assert by_role.read["gradients"] == 4 * 64
    assert "gradients" not in by_role.write
    # Moments are read and written; a step counter of 4 bytes beside them, raised and then used.
    assert by_role.read["optimizer"] - moments * 4 * 64 in (0, 4, 8)


def test_causal_full_is_only_about_attention():
    program = MATRIX["mm"][0]
    t = trace(program)
    assert t.ledger(tracer.Conventions(causal="full")).total() == t.cost


def test_linear_backward_is_two_forwards():
    x, w = T(M, K, grad=True), T(N, K, grad=True)
    t = trace(lambda: F.linear(x, w).sum().backward())
    assert t.ledger().total("backward").total_flops == 2 * 2 * M * K * N


def test_huge_shapes_stay_exact_integers():
    n = 10**7 + 1
    t = trace(lambda: T(n, n) @ T(n, n))
    assert t.flops == 2 * n**3
    assert isinstance(t.flops, int)
    assert t.flops != math.inf
