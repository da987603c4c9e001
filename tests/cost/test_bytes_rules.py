"""Bytes that one op moves, counted here by hand; `naive`, so that no fusion hides any."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import tracer

BF16, FP32 = torch.bfloat16, torch.float32
R, C = 6, 10  # rows, columns; FP32 unless said otherwise


def run(program, *inputs):
    """The naive kernels of `program(*inputs)`; storages of inputs are not made inside."""
    with torch.no_grad(), tracer.trace() as t:
        program(*inputs)
    return t


def moved(program, *inputs):
    """(bytes read, bytes written)."""
    cost = run(program, *inputs).ledger(execution="naive").total()
    return sum(cost.read.values()), sum(cost.write.values())


def T(*shape, dtype=FP32):
    return torch.empty(shape, dtype=dtype, device="meta")


VIEWS = {
    "view": lambda x: x.view(-1),
    "transpose": lambda x: x.t(),
    "slice": lambda x: x[1:, ::2],
    "select": lambda x: x[0],
    "expand": lambda x: x.unsqueeze(0).expand(5, R, C),
    "permute": lambda x: x.permute(1, 0),
    "chunk": lambda x: x.chunk(2, -1),
    "split": lambda x: x.split([1, 5]),
    "unbind": lambda x: x.unbind(0),
    "detach": lambda x: x.detach(),
    "unfold": lambda x: x.unfold(1, 3, 1),
    "diagonal": lambda x: x.diagonal(),
    "as_strided": lambda x: x.as_strided((3,), (2,)),
    "narrow": lambda x: x.narrow(0, 1, 2),
    "reshape": lambda x: x.reshape(C, R),
    "view as real": lambda x: torch.view_as_complex(x.view(R, 5, 2)),
    "bits": lambda x: x.view(torch.int32),
    "squeeze": lambda x: x[None].squeeze(0),
    "contiguous of contiguous": lambda x: x.contiguous(),
    "to its own dtype": lambda x: x.to(FP32),
    "empty": torch.empty_like,
    "new_empty": lambda x: x.new_empty(3),
    "empty_strided": lambda x: torch.empty_strided((2, 3), (3, 1), device="meta"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_and_allocations_are_free(name):
    t = run(VIEWS[name], T(R, C))
    assert t.cost.total_bytes == 0
    assert t.ledger().kernels == ()
    assert not t.ledger().unmodelled()


X = 4 * R * C  # bytes of one FP32 [R, C]

SIMPLE = {
    "unary": (lambda x: x.exp(), X, X),
    "binary": (lambda x: x + T(R, C), 2 * X, X),
    "scalar": (lambda x: x * 2, X, X),
    "broadcast row": (lambda x: x + T(C), X + 4 * C, X),
    "broadcast column": (lambda x: x + T(R, 1), X + 4 * R, X),
    "expanded operand": (lambda x: x + T(C).expand(R, C), X + 4 * C, X),
    "broadcast result": (lambda x: x[0] + T(7, C), 4 * C + 28 * C, 28 * C),
    "same tensor twice": (lambda x: x * x, X, X),
    "same tensor transposed": (lambda x: x[:, :R] + x[:, :R].t(), 4 * R * R, 4 * R * R),
    "in place": (lambda x: x.add_(1), X, X),
    "in place with another": (lambda x: x.mul_(T(C)), X + 4 * C, X),
    "in place on a view": (lambda x: x[:, :2].add_(1), 8 * R, 8 * R),
    "in place with itself": (lambda x: x.mul_(x), X, X),
    "copy_": (lambda x: x.copy_(T(R, C)), X, X),
    "copy_ broadcast": (lambda x: x.copy_(T(C)), 4 * C, X),
    "copy_ cast": (lambda x: x.copy_(T(R, C, dtype=BF16)), X // 2, X),
    "fill_": (lambda x: x.fill_(1), 0, X),
    "zero_": (lambda x: x.zero_(), 0, X),
    "slice assignment": (lambda x: x[1:3].fill_(2), 0, 8 * C),
    "cast": (lambda x: x.to(BF16), X, X // 2),
    "cast up": (lambda x: x.to(torch.float64), X, 2 * X),
    "clone": (lambda x: x.clone(), X, X),
    "contiguous of a transpose": (lambda x: x.t().contiguous(), X, X),
    "clone of an expanded": (lambda x: T(C).expand(R, C).clone(), 4 * C, X),
    "zeros": (torch.zeros_like, 0, X),
    "full": (lambda x: torch.full((R,), 1.0, device="meta"), 0, 4 * R),
    "arange": (lambda x: torch.arange(R, device="meta"), 0, 8 * R),
    "randn": (lambda x: torch.randn(R, C, device="meta"), 0, X),
    "normal_": (lambda x: x.normal_(), 0, X),
    "compare": (lambda x: x > 0, X, R * C),
    "where": (lambda x: torch.where(T(R, C, dtype=torch.bool), x, T(1)), R * C + X + 4, X),
    "cat": (lambda x: torch.cat([x, T(R, 2)], 1), X + 8 * R, X + 8 * R),
    "stack of one": (lambda x: torch.stack([x, x]), X, 2 * X),
    "sum": (lambda x: x.sum(), X, 4),
    "sum of rows": (lambda x: x.sum(-1), X, 4 * R),
    "argmax": (lambda x: x.argmax(-1), X, 8 * R),
    "softmax": (lambda x: x.softmax(-1), X, X),
    "layer norm": (
        lambda x: F.layer_norm(x, (C,), T(C), T(C)), X + 8 * C, X + 2 * 4 * R),  # mean, rstd
    "mm": (lambda x: x @ T(C, 3), X + 12 * C, 12 * R),
    "gram": (lambda x: x @ x.t(), X, 4 * R * R),
    "foreach": (lambda x: torch._foreach_add_([x, T(C)], 1.0), X + 4 * C, X + 4 * C),
    "foreach copy": (
        lambda x: torch._foreach_copy_([x, T(C)], [T(R, C, dtype=BF16), T(C)]),
        X // 2 + 4 * C, X + 4 * C),
    "foreach zero": (lambda x: torch._foreach_zero_([x, T(C)]), 0, X + 4 * C),
    "foreach out of place": (lambda x: torch._foreach_mul([x, x], 2.0), X, 2 * X),
    "transposed in place": (lambda x: x.t_(), 0, 0),
    "swapped in place": (lambda x: x.transpose_(0, 1), 0, 0),
    "unsqueezed in place": (lambda x: x.unsqueeze_(0), 0, 0),
    "squeezed in place": (lambda x: x.detach()[None].squeeze_(0), 0, 0),
    "detached in place": (lambda x: x.detach_(), 0, 0),
    "strided in place": (lambda x: x.as_strided_((3,), (1,)), 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SIMPLE)
def test_elementwise_copies_and_reductions(name):
    program, read, written = SIMPLE[name]
    assert moved(program, T(R, C)) == (read, written)


OUT = {
    "mm": (lambda x, y: torch.mm(x, T(C, R), out=y), X + 4 * C * R, 4 * R * R, (R, R)),
    "addmm": (
        lambda x, y: torch.addmm(T(R), x, T(C, R), out=y),
        4 * R + X + 4 * C * R, 4 * R * R, (R, R)),
    "bmm": (
        lambda x, y: torch.bmm(x[None], T(1, C, R), out=y),
        X + 4 * C * R, 4 * R * R, (1, R, R)),
    "add": (lambda x, y: torch.add(x, 1, out=y), X, X, (R, C)),
    "exp": (lambda x, y: torch.exp(x, out=y), X, X, (R, C)),
    "cat": (lambda x, y: torch.cat([x, x], out=y), X, 2 * X, (2 * R, C)),
    "sum": (lambda x, y: torch.sum(x, 0, out=y), X, 4 * C, (C,)),
    "softmax": (lambda x, y: torch._softmax(x, 1, False, out=y), X, X, (R, C)),
    "into its own input": (lambda x, y: torch.mul(x, 2, out=x), X, X, (1,)),
}  # fmt: skip


@pytest.mark.parametrize("name", OUT)
def test_out_variants_write_and_do_not_read_their_target(name):
    program, read, written, shape = OUT[name]
    assert moved(program, T(R, C), T(*shape)) == (read, written)


def test_out_variants_with_several_targets():
    values, indices = T(R, 2), ids(R, 2)
    assert moved(lambda x: torch.topk(x, 2, out=(values, indices)), T(R, C)) == (X, R * 2 * (4 + 8))
    values, indices = T(R), ids(R)
    assert moved(lambda x: torch.max(x, 1, out=(values, indices)), T(R, C)) == (X, R * (4 + 8))


def test_an_out_variant_counts_its_flops():
    t = run(lambda x: torch.mm(x, T(C, 3), out=T(R, 3)), T(R, C))
    assert t.flops == 2 * R * C * 3


# -- overlapping views -----------------------------------------------------------------------------


def test_chunks_of_one_tensor_sum_to_it():
    def qkv(x):
        q, k, v = x.chunk(3, -1)
        return torch.addcmul(q, k, v)

    assert moved(qkv, T(R, 30)) == (X * 3, X)


def test_values_inside_of_keys_are_free():
    """Absorbed MLA: K is the latent and the rope part, V the latent alone."""
    latent = T(2, 1, 8, 24, dtype=BF16)
    query = T(2, 4, 1, 24, dtype=BF16)
    with tracer.trace() as t, torch.no_grad():
        F.scaled_dot_product_attention(query, latent, latent[..., :16], enable_gqa=True)
    assert sum(t.cost.read.values()) == 2 * (query.numel() + latent.numel())


@pytest.mark.parametrize("order", [0, 1])
def test_the_order_of_overlapping_inputs_does_not_matter(order):
    def program(x):
        pair = [x, x[: R // 2]]
        return torch.cat(pair[::-1] if order else pair)

    assert moved(program, T(R, C)) == (X, X + X // 2)


def test_halves_of_a_row_are_both_read():
    def swiglu(x):
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    t = run(swiglu, T(R, 2 * C))
    for execution in ("naive", "efficient"):
        read = t.ledger(execution=execution).total().read
        assert read["activations"] == 2 * X, execution


def test_a_sliding_window_view_reads_each_element_once():
    x = T(100)
    assert moved(lambda x: x.unfold(0, 3, 1) * 2, x) == (400, 98 * 3 * 4)


def addresses(ref):
    """Every element that a strided reference touches, by brute force."""
    found = {ref.offset}
    for size, stride in zip(ref.shape, ref.stride, strict=True):
        if size == 0:
            return set()
        found = {at + step * stride for at in found for step in range(size)}
    return found


@st.composite
def strided(draw):
    dims = draw(st.integers(1, 3))
    shape = [draw(st.integers(1, 4)) for _ in range(dims)]
    stride = [draw(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12])) for _ in range(dims)]
    return shape, stride, draw(st.integers(0, 12))


@settings(max_examples=400, deadline=None)
@given(strided(), strided())
def test_two_views_of_one_storage_read_no_less_than_their_union(a, b):
    base = torch.zeros(200)
    with tracer.trace() as t:
        torch.cat([base.as_strided(*a).reshape(-1), base.as_strided(*b).reshape(-1)])
        left, right = base.as_strided(*a), base.as_strided(*b)
        torch._foreach_mul([left, right], 2.0)
    index = len(t.trace.ops) - 1
    op = t.trace.ops[index]
    assert op.overload_packet == "aten._foreach_mul"
    refs = op.args[0]
    union = len(addresses(refs[0]) | addresses(refs[1]))
    (part,) = [p for p in t.ledger(execution="naive").parts() if p.op == index]
    read = sum(part.cost.read.values()) // 4
    assert union <= read <= refs[0].numel + refs[1].numel


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.data())
def test_nested_slices_cost_the_larger_one(rows, columns, data):
    x = T(rows, columns)
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    bottom = data.draw(st.integers(top + 1, rows))
    right = data.draw(st.integers(left + 1, columns))
    inner = x[top:bottom, left:right]
    read, _ = moved(lambda: torch._foreach_mul([x, inner], 2.0))
    assert read == 4 * rows * columns
    disjoint, _ = moved(lambda: torch._foreach_mul([x[:top], x[top:]], 2.0))
    assert disjoint == 4 * rows * columns


# -- rows of tables --------------------------------------------------------------------------------

V, D, IDS = 100, 8, 5
long = torch.long


def ids(*shape, high=V):
    return torch.empty(shape, dtype=long, device="meta")


ROWS = {
    # op, (bytes read of the table, index and source), bytes written
    "embedding": (lambda w: F.embedding(ids(IDS), w), 4 * IDS * D + 8 * IDS, 4 * IDS * D),
    "embedding of many": (lambda w: F.embedding(ids(3000), w), 4 * V * D + 24000, 4 * 3000 * D),
    "index": (lambda w: w[ids(IDS)], 4 * IDS * D + 8 * IDS, 4 * IDS * D),
    "index select": (lambda w: w.index_select(0, ids(IDS)), 4 * IDS * D + 8 * IDS, 4 * IDS * D),
    "gather": (lambda w: w.gather(0, ids(IDS, D)), (4 + 8) * IDS * D, 4 * IDS * D),
    "index_put_": (
        lambda w: w.index_put_((ids(IDS),), T(IDS, D)), 4 * IDS * D + 8 * IDS, 4 * IDS * D),
    "index_put_ of a scalar": (
        lambda w: w.index_put_((ids(IDS),), T()), 4 + 8 * IDS, 4 * IDS * D),
    "index_put_ accumulate": (
        lambda w: w.index_put_((ids(IDS),), T(IDS, D), accumulate=True),
        2 * 4 * IDS * D + 8 * IDS, 4 * IDS * D),
    "index_put_ of an outer product of rows and columns": (
        lambda w: w.index_put_((ids(IDS, 1), ids(1, 3)), T(IDS, 3)),
        4 * IDS * 3 + 8 * IDS + 8 * 3, 4 * IDS * 3),
    "index_copy_": (
        lambda w: w.index_copy_(0, ids(IDS), T(IDS, D)), 4 * IDS * D + 8 * IDS, 4 * IDS * D),
    "index_add_": (
        lambda w: w.index_add_(0, ids(IDS), T(IDS, D)), 2 * 4 * IDS * D + 8 * IDS, 4 * IDS * D),
    "scatter_": (
        lambda w: w.scatter_(0, ids(IDS, D), T(IDS, D)), (4 + 8) * IDS * D, 4 * IDS * D),
    "scatter_ of a value": (lambda w: w.scatter_(0, ids(IDS, D), 1.0), 8 * IDS * D, 4 * IDS * D),
    "scatter_add_": (
        lambda w: w.scatter_add_(0, ids(IDS, D), T(IDS, D)), (4 + 8 + 4) * IDS * D, 4 * IDS * D),
    "one slot of a cache": (lambda w: w[3:4].copy_(T(1, D)), 4 * D, 4 * D),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_only_the_rows_that_are_touched_move(name):
    program, read, written = ROWS[name]
    assert moved(program, T(V, D)) == (read, written)


def test_an_out_of_place_scatter_copies_the_table():
    source = T(IDS, D)
    table = 4 * V * D
    read, written = moved(lambda w: w.index_put((ids(IDS),), source), T(V, D))
    assert read >= table + source.numel() * 4
    assert table <= written <= table + 4 * IDS * D


def test_a_cross_entropy_reads_one_probability_a_row():
    logp, target = T(R, V), ids(R)
    assert moved(lambda: F.nll_loss(logp, target))[0] == 4 * R + 8 * R


@pytest.mark.parametrize("dtype", [BF16, FP32, torch.float8_e4m3fn, torch.int8, torch.bool])
def test_bytes_follow_the_size_of_the_dtype(dtype):
    x = T(R, C, dtype=dtype)
    assert moved(x.clone) == (R * C * dtype.itemsize, R * C * dtype.itemsize)


def test_batch_scales_bytes_linearly_but_not_the_weights():
    model = torch.nn.Linear(16, 8, device="meta")

    def cost(batch):
        with torch.no_grad(), tracer.trace(model) as t:
            model(T(batch, 16))
        return t.cost

    one, five = cost(3), cost(15)
    assert five.total_flops == 5 * one.total_flops
    assert five.read["weights"] == one.read["weights"] == 4 * (16 * 8 + 8)
    assert five.read["activations"] == 5 * one.read["activations"] == 5 * 4 * 3 * 16
