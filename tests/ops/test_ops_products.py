"""Matrix products against a count of every multiplication and addition, and against each other."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_records import Counted, ledger_of, meta, read_bytes, record, ref, work

from tracer.cost import Conventions

aten = torch.ops.aten
M, K, N, B = 3, 5, 4, 2


def counted(*shape):
    """An array of numbers that count what is done with them."""
    array = np.empty(shape, dtype=object)
    for place in np.ndindex(*shape):
        array[place] = Counted()
    return array


def multiplications(product):
    """How many multiplications `product()` does."""
    Counted.reset()
    product()
    return Counted.multiplies


def dense(m, k, n):
    """Multiplications of one [m, k] @ [k, n], done one by one."""
    return multiplications(lambda: counted(m, k) @ counted(k, n))


def test_the_counting_number_counts():
    assert dense(2, 3, 4) == 2 * 3 * 4
    assert Counted.adds == 2 * (3 - 1) * 4  # the first of three is not added to anything


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_dense_products(m, k, n, b):
    one = 2 * dense(m, k, n)
    a, w, y = ref(m, k), ref(k, n), ref(m, n)
    assert work(record(aten.mm.default, y, self=a, mat2=w)).flops == one
    assert work(record(aten.addmm.default, y, self=y, mat1=a, mat2=w)).flops == one
    batched = {"batch1": ref(b, m, k), "batch2": ref(b, k, n)}
    z = ref(b, m, n)
    bmm = record(aten.bmm.default, z, self=batched["batch1"], mat2=batched["batch2"])
    assert work(bmm).flops == b * one
    assert work(record(aten.baddbmm.default, z, self=z, **batched)).flops == b * one
    assert work(record(aten.addbmm.default, y, self=y, **batched)).flops == b * one
    lists = {"self": (a, ref(b, k)), "mat2": (w, ref(k, n))}
    foreach = record(aten._foreach_mm.default, y, ref(b, n), **lists)
    assert work(foreach).flops == one + 2 * dense(b, k, n)


def test_vectors():
    x, y = ref(K), ref(M)
    a = ref(M, K)
    assert work(record(aten.mv.default, y, self=a, vec=x)).flops == 2 * dense(M, K, 1)
    assert work(record(aten.dot.default, ref(), self=x, tensor=x)).flops == 2 * dense(1, K, 1)
    assert work(record(aten.vdot.default, ref(), self=x, other=x)).flops == 2 * dense(1, K, 1)
    addmv = record(aten.addmv.default, y, self=y, mat=a, vec=x)
    assert (work(addmv).flops, work(addmv).vector) == (2 * dense(M, K, 1), M)
    # An outer product has no sum: vector work, a multiply and the addition of self.
    addr = record(aten.addr.default, a, self=a, vec1=y, vec2=x)
    assert (work(addr).flops, work(addr).vector) == (0, 2 * M * K)


@pytest.mark.parametrize(
    ("beta", "alpha", "steps"),
    [(1, 1, 1), (0.5, 1, 2), (1, 2, 2), (0.5, 2, 3), (0, 1, 0), (0, 3, 1)],
)
def test_epilogue_of_addmm(beta, alpha, steps):
    """beta·self + alpha·product: an add, and a multiply for each factor that is not 1."""
    y, a, w = ref(M, N), ref(M, K), ref(K, N)
    op = record(aten.addmm.default, y, self=ref(N), mat1=a, mat2=w, beta=beta, alpha=alpha)
    assert work(op).vector == steps * M * N
    # A bias of N numbers is read once, and not at all for beta = 0.
    assert read_bytes(op) == 4 * (M * K + K * N + (0 if beta == 0 else N))


@pytest.mark.parametrize("overload", [aten.mm.dtype, aten.bmm.dtype])
def test_products_with_an_output_type(overload):
    lead = (B,) if overload is aten.bmm.dtype else ()
    a, w = ref(*lead, M, K, dtype="bfloat16"), ref(*lead, K, N, dtype="bfloat16")
    op = record(overload, ref(*lead, M, N), self=a, mat2=w, out_dtype="float32")
    assert work(op).flops == 2 * dense(M, K, N) * (B if lead else 1)


def test_complex_products_are_four_real_ones():
    """(a + bi)(c + di): four multiplies and two adds, and two adds into the sum: 8."""
    Counted.reset()
    a, b, c, d = (Counted() for _ in range(4))
    real, imag = a * c - b * d, a * d + b * c
    _ = real + Counted(), imag + Counted()
    each = Counted.total()
    for dtype in ("complex64", "complex128"):
        a, w = ref(M, K, dtype=dtype), ref(K, N, dtype=dtype)
        done = work(record(aten.mm.default, ref(M, N, dtype=dtype), self=a, mat2=w))
        assert done.flops == each * M * K * N


def test_precision_is_that_of_the_operands():
    x = torch.randint(-5, 5, (32, 16), dtype=torch.int8)
    assert dict(ledger_of(torch._int_mm, x, x.t()).total().flops) == {"int8": 2 * 32 * 16 * 32}
    half = torch.randn(4, 8, dtype=torch.bfloat16)
    bias = torch.randn(4, dtype=torch.bfloat16)
    ledger = ledger_of(torch.addmm, bias, half, half.t())
    assert dict(ledger.total().flops) == {"bf16": 2 * 4 * 8 * 4}


EINSUMS = {
    "ij,jk->ik": ((M, K), (K, N), M * K * N),
    "bij,bjk->bik": ((B, M, K), (B, K, N), B * M * K * N),
    "bhid,bhjd->bhij": ((B, 2, M, K), (B, 2, N, K), B * 2 * M * N * K),
    "i,i->": ((K,), (K,), K),
    "bij,kj->bik": ((B, M, K), (N, K), B * M * N * K),
}


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsum_is_the_product_of_its_sizes(equation):
    a, b, points = EINSUMS[equation]
    assert ledger_of(torch.einsum, equation, meta(*a), meta(*b)).total().total_flops == 2 * points


def test_bilinear_against_its_two_products():
    """y[n, o] = sum over i, j of a[n, i]·w[o, i, j]·b[n, j], multiplied in torch's order."""
    n, i, j, o = 3, 4, 5, 2
    a, w, b = counted(n, i), counted(o, i, j), counted(n, j)

    def two_products():
        for row in range(n):
            for out in range(o):
                (a[row] @ w[out]) @ b[row]

    layer = torch.nn.Bilinear(i, j, o, bias=False)
    ledger = ledger_of(layer, torch.randn(n, i), torch.randn(n, j))
    assert ledger.total().total_flops == 2 * multiplications(two_products)


def test_a_trilinear_product_takes_the_third_factor_last():
    """x[n]·y[n]·z[n, m]: n multiply-adds without m, then n·m."""
    n, m = 4, 7
    op = record(
        aten._trilinear.default, ref(n, m), i1=ref(n), i2=ref(n), i3=ref(n, m), expand1=(1,),
        expand2=(1,), expand3=(), sumdim=(),
    )  # fmt: skip
    assert work(op).flops == 2 * (n + n * m)


class TestLinear:
    """y = x·Wᵀ + b under the names of a few backends."""

    x, w, b, y = ref(6, K), ref(N, K), ref(N), ref(6, N)
    flops = 2 * dense(6, K, N)

    def test_forward(self):
        op = record(aten.mkldnn_linear.default, self.y, self=self.x, weight=self.w, bias=self.b)
        assert (work(op).flops, work(op).vector) == (self.flops, 6 * N)

    @pytest.mark.parametrize(
        "mask", [(True, True, True), (False, True, True), (True, False, False)]
    )
    def test_backward(self, mask):
        op = record(
            aten.linear_backward.default, self=self.x, grad_output=self.y, weight=self.w,
            output_mask=mask,
        )  # fmt: skip
        done = work(op)
        assert done.flops == (mask[0] + mask[1]) * self.flops
        assert done.vector == mask[2] * 6 * N
        # dx = dy·W reads W, dW = dyᵀ·x reads x.
        assert read_bytes(op) == 4 * (6 * N + mask[0] * N * K + mask[1] * 6 * K)

    def test_split_backward(self):
        dx = record(
            aten.mkldnn_linear_backward_input.default, self.x, grad_output=self.y, weight=self.w
        )
        dw = record(
            aten.mkldnn_linear_backward_weights.default, self.w, self.b,
            grad_output=self.y, input=self.x, weight=self.w, bias_defined=True,
        )  # fmt: skip
        assert work(dx).flops == work(dw).flops == self.flops
        assert read_bytes(dw) == 4 * (6 * N + 6 * K)

    def test_matmul_backward(self):
        op = record(
            aten.matmul_backward.default, grad=self.y, self=self.x, other=ref(K, N),
            mask=(True, True),
        )  # fmt: skip
        assert work(op).flops == 2 * self.flops

    @pytest.mark.parametrize("bias", [False, True])
    def test_a_layer_backward_is_twice_its_forward(self, bias):
        layer = torch.nn.Linear(K, N, bias=bias)
        x = torch.randn(6, K, requires_grad=True)
        ledger = ledger_of(lambda: layer(x).sum().backward())
        assert ledger.total("forward").total_flops == self.flops
        assert ledger.total("backward").total_flops == 2 * self.flops


# -- scaled and packed -----------------------------------------------------------------------------

FP8 = "float8_e4m3fn"


def scaled(k=256, dtype=FP8, scale=None, **extra):
    x, w, y = ref(16, k, dtype=dtype), ref(k, 32, dtype=dtype), ref(16, 32, dtype="bfloat16")
    scale = scale or ref(1)
    return work(record(aten._scaled_mm.default, y, self=x, mat2=w, scale_a=scale, **extra))


def test_scaled_products():
    outputs = 16 * 32
    tensor_wise = scaled()
    assert tensor_wise.flops == 2 * 16 * 256 * 32
    assert tensor_wise.vector == outputs  # one factor at the end
    assert scaled(scale=ref(16, 1)).vector == outputs  # one a row
    # Two blocks of 128: each partial sum is scaled and added.
    assert scaled(scale=ref(16, 2)).vector == 2 * 2 * outputs
    assert scaled(bias=ref(32)).vector == 2 * outputs
    # MX scales are the tensor core's own work.
    assert scaled(scale=ref(16, 8, dtype="float8_e8m0fnu")).vector == 0
    # Two FP4 values a byte: 256 bytes of K are 512 values.
    assert scaled(dtype="float4_e2m1fn_x2").flops == 2 * 16 * 512 * 32


def test_scaled_product_with_lists_of_scales():
    x, w, y = ref(16, 256, dtype=FP8), ref(256, 32, dtype=FP8), ref(16, 32)
    op = record(
        aten._scaled_mm_v2.default, y, self=x, mat2=w, scale_a=(ref(16, 2),), scale_b=(ref(2, 1),),
    )  # fmt: skip
    assert (work(op).flops, work(op).vector) == (2 * 16 * 256 * 32, 2 * 2 * 16 * 32)


def test_scaled_product_on_the_cpu_runs_at_fp8():
    x, w = torch.randn(16, 32).to(torch.float8_e4m3fn), torch.randn(32, 16).to(torch.float8_e4m3fn)
    scale = torch.ones(())
    ledger = ledger_of(torch._scaled_mm, x, w.t().contiguous().t(), scale, scale)
    assert dict(ledger.total().flops) == {"fp8": 2 * 16 * 32 * 16}


def test_packed_weights():
    x, y = ref(4, 64, dtype="bfloat16"), ref(4, 32, dtype="bfloat16")
    product = 2 * 4 * 64 * 32
    eight = record(
        aten._weight_int8pack_mm.default, y, self=x, mat2=ref(32, 64, dtype="int8"), scales=ref(32)
    )
    assert work(eight).flops == product
    # Activations in two bytes, weights in one, scales in four.
    assert read_bytes(eight) == 2 * 4 * 64 + 32 * 64 + 4 * 32
    packed = ref(4, 1, 32, 2, dtype="int32")  # the kernel's own tiles
    assert packed.nbytes == 32 * 64 // 2  # 4 bits a weight
    four = record(
        aten._weight_int4pack_mm.default, y, self=x, mat2=packed, qScaleAndZeros=ref(8, 2)
    )
    assert work(four).flops == product
    assert read_bytes(four) == 2 * 4 * 64 + packed.nbytes + 4 * 16
    dynamic = record(
        aten._dyn_quant_matmul_4bit.default,
        y,
        inp=x,
        block_size=32,
        in_features=64,
        out_features=32,
    )
    assert (work(dynamic).flops, work(dynamic).precision) == (product, "int8")


def test_semi_structured_products_count_what_is_stored():
    """Of four weights two are kept: half of the dense multiplications."""
    dense_count = 2 * 8 * 64 * 32
    x, y = ref(8, 64, dtype="bfloat16"), ref(8, 32, dtype="bfloat16")
    kept, meta_data = ref(32, 32, dtype="bfloat16"), ref(32, 4, dtype="int16")
    op = record(
        aten._sparse_semi_structured_linear.default, y, input=x, weight=kept, meta=meta_data
    )
    assert work(op).flops == dense_count // 2
    left = record(
        aten._sparse_semi_structured_mm.default, ref(32, 8), mat1=kept, mat1_meta=meta_data,
        mat2=ref(64, 8, dtype="bfloat16"),
    )  # fmt: skip
    assert work(left).flops == dense_count // 2
    compressed = record(
        aten._cslt_sparse_mm.default, ref(32, 8), compressed_A=ref(32, 36, dtype="bfloat16"),
        dense_B=ref(64, 8, dtype="bfloat16"),
    )  # fmt: skip
    assert work(compressed).flops == dense_count // 2


# -- grouped ---------------------------------------------------------------------------------------

E, ROWS = 4, 12


def grouped(a, b, y, top_k=None, routing="uniform", bias=None):
    op = record(aten._grouped_mm.default, y, self=a, mat2=b, offs=ref(E, dtype="int32"), bias=bias)
    return work(op, Conventions(routing=routing), top_k)


@pytest.mark.parametrize("split", [[12, 0, 0, 0], [3, 3, 3, 3], [1, 2, 4, 5]])
def test_grouped_products_are_a_loop_over_experts(split):
    """However the rows fall: each row meets one expert."""
    assert sum(split) == ROWS
    loop = sum(2 * dense(rows, K, N) for rows in split if rows)
    assert grouped(ref(ROWS, K), ref(E, K, N), ref(ROWS, N)).flops == loop
    assert grouped(ref(E, N, K), ref(K, ROWS), ref(N, ROWS)).flops == loop
    assert grouped(ref(K, ROWS), ref(ROWS, N), ref(E, K, N)).flops == loop


def test_experts_that_are_read():
    stack = ref(E, K, N)
    one = stack.nbytes // E
    x, y = ref(ROWS, K), ref(ROWS, N)
    assert grouped(x, stack, y, routing="all").read == {"mat2": 4 * one}
    assert grouped(x, stack, y, top_k=2, routing="same").read == {"mat2": 2 * one}
    # 6 tokens choose 2 of 4: an expert is missed by one with 1/2, by all with 1/64.
    expected = round(stack.nbytes * (1 - (1 / 2) ** 6))
    assert grouped(x, stack, y, top_k=2).read == {"mat2": expected}
    # The mirrored layout holds its experts on the left.
    mirrored = grouped(ref(E, N, K), ref(K, ROWS), ref(N, ROWS), top_k=2, routing="same")
    assert mirrored.read == {"self": 2 * one}


def test_scaled_grouped_products():
    x, w = ref(ROWS, 256, dtype=FP8), ref(E, 256, 32, dtype=FP8)
    y = ref(ROWS, 32, dtype="bfloat16")
    op = record(
        aten._scaled_grouped_mm.default, y, self=x, mat2=w, scale_a=ref(ROWS), scale_b=ref(E, 32),
    )  # fmt: skip
    done = work(op)
    assert (done.flops, done.vector) == (2 * ROWS * 256 * 32, ROWS * 32)
    newer = record(
        aten._scaled_grouped_mm_v2.default, y, self=x, mat2=w,
        scale_a=(ref(ROWS, 8, dtype="float8_e8m0fnu"),), scale_b=(ref(E, 32),),
    )  # fmt: skip
    assert (work(newer).flops, work(newer).vector) == (2 * ROWS * 256 * 32, 0)


def test_distances_as_a_product():
    """|a|² - 2ab + |b|² in one product: each row gets two columns more."""
    ledger = ledger_of(aten._euclidean_dist, torch.randn(9, 8), torch.randn(7, 8))
    assert ledger.total().total_flops == 2 * dense(9, 8 + 2, 7)


def test_a_gated_mlp_by_hand():
    x, w1, w3, w2 = meta(7, 16), meta(24, 16), meta(24, 16), meta(16, 24)

    def mlp():
        return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)

    assert ledger_of(mlp).total().total_flops == 3 * 2 * 7 * 16 * 24


def test_grouped_rows_in_front():
    """Of 8 tokens' 2 choices among 16 experts, 4 of them here: a quarter of 16 rows is computed.

    An expert is hit unless 8 tokens with 2 chances in 16 all miss it: 4 · (1 - (14/16)^8) of 4.
    """
    import tracer.capture.huggingface.experts  # noqa: F401  (which defines the op)

    rows, front, here, tokens = 16, 4, 4, 8
    x, w = ref(rows, K, dtype="bfloat16"), ref(here, K, N, dtype="bfloat16")
    y = ref(rows, N, dtype="bfloat16")
    op = record(
        torch.ops.tracer.grouped_mm_head.default, y, x=x, w=w, offs=ref(here, dtype="int32"),
        rows=front,
    )  # fmt: skip
    done = work(op, top_k=2)
    assert done.flops == 2 * front * K * N
    hit = here * (1 - (14 / 16) ** tokens)
    assert done.read == {"x": front * K * 2, "w": round(hit * K * N * 2)}
    assert done.write == {0: front * N * 2}
