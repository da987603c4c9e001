"""Small graphs whose fused kernels and bytes were worked out by hand.

A fused kernel reads what it did not make itself and writes what somebody outside needs.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracer

R, C = 8, 16
X = 4 * R * C  # bytes of an FP32 [R, C]


def T(*shape):
    return torch.empty(shape, device="meta")


def trace(program, grad=False):
    """The session of `program()`; what it returns lives on, the rest is gone."""
    with torch.set_grad_enabled(grad), tracer.trace() as t:
        t.kept = program()
    return t


def kernels(t):
    """(names of the ops, bytes read, bytes written) of every efficient kernel."""
    return [
        (
            [t.trace.ops[part.op].overload_packet.removeprefix("aten.") for part in k.parts],
            sum(k.cost.read.values()),
            sum(k.cost.write.values()),
        )
        for k in t.ledger(execution="efficient").kernels
    ]


def test_a_chain_reads_once_and_writes_once():
    x = T(R, C)
    t = trace(lambda: x.sin().mul(2).exp().add(1))
    assert kernels(t) == [(["sin", "mul", "exp", "add"], X, X)]
    assert t.ledger(execution="naive").total().total_bytes == 8 * X


def test_a_chain_that_the_caller_keeps_in_part():
    x = T(R, C)

    def program():
        middle = x.sin()
        return middle, middle.exp()

    assert kernels(trace(program)) == [(["sin", "exp"], X, 2 * X)]


def test_a_diamond_is_one_kernel():
    x = T(R, C)

    def program():
        h = x.sin()
        return h.exp() + h.cos()

    assert kernels(trace(program)) == [(["sin", "exp", "cos", "add"], X, X)]


def test_two_sources_meet():
    x, y = T(R, C), T(R, C)
    t = trace(lambda: x.sin() * y.cos())
    assert kernels(t) == [(["sin", "cos", "mul"], 2 * X, X)]


def test_a_broadcast_operand_is_read_once():
    x, b = T(R, C), T(C)
    assert kernels(trace(lambda: torch.relu(x + b))) == [(["add", "relu"], X + 4 * C, X)]


def test_a_row_reduction_ends_the_kernel_or_goes_on():
    x = T(R, C)
    assert kernels(trace(lambda: x.sin().sum(-1))) == [(["sin", "sum"], X, 4 * R)]

    def normalise():
        h = x.exp()
        return h / h.sum(-1, keepdim=True)

    assert kernels(trace(normalise)) == [(["exp", "sum", "div"], X, X)]


def test_one_row_is_a_row_and_one_column_a_column():
    """As of one sequence in decode: [1, 1, C] is not a tensor that is reduced as a whole."""

    def over(dim, x):
        def normalise():
            h = x.exp()
            return h / h.sum(dim, keepdim=True)

        return [names for names, _, _ in kernels(trace(normalise))]

    assert over(-1, T(1, 1, C)) == [["exp", "sum", "div"]]
    assert over(-1, T(2, 1, C)) == [["exp", "sum", "div"]]
    assert over(0, T(C, 1)) == over(0, T(C, 2))
    assert len(over(0, T(C, 1))) == 2
    assert len(over((0, 1, 2), T(1, 1, C))) == 2


def test_a_full_reduction_is_complete_only_at_the_end_of_its_kernel():
    x = T(R, C)
    # max over everything, then subtract: two passes over x, whatever the compiler.
    t = trace(lambda: x - x.max())
    assert kernels(t) == [(["max"], X, 4), (["sub"], X + 4, X)]


def test_a_column_sum_cannot_be_used_in_its_own_kernel():
    x = T(R, C)
    assert kernels(trace(lambda: x / x.sum(0))) == [(["sum"], X, 4 * C), (["div"], X + 4 * C, X)]


def test_a_square_column_sum_is_no_row_sum():
    """[16, 16] summed over rows or over columns has the same shape: the axis decides."""
    x = T(C, C)
    square = 4 * C * C
    assert kernels(trace(lambda: x / x.sum(0))) == [
        (["sum"], square, 4 * C),
        (["div"], square + 4 * C, square),
    ]


def test_a_row_sum_used_along_the_other_axis_needs_all_rows_first():
    x = T(C, C)
    square = 4 * C * C
    # sum over the last axis gives one number a row; broadcast without keepdim it scales columns.
    assert kernels(trace(lambda: x * x.sum(-1))) == [
        (["sum"], square, 4 * C),
        (["mul"], square + 4 * C, square),
    ]


@pytest.mark.parametrize(
    "second",
    [lambda y: y.softmax(0), lambda y: y.t().softmax(-1)],
    ids=["other axis", "transposed"],
)
def test_rows_of_another_axis_need_a_pass_of_their_own(second):
    x = T(C, C)
    square = 4 * C * C
    t = trace(lambda: second(x.softmax(-1)))
    assert [(read, written) for _, read, written in kernels(t)] == [(square, square)] * 2


def test_rows_of_the_same_axis_share_a_kernel():
    x = T(R, C)
    t = trace(lambda: F.layer_norm(x.softmax(-1).mul(2), (C,)).softmax(-1))
    assert len(kernels(t)) == 1


def test_no_fusion_across_a_matmul():
    x, w = T(R, C), T(C, C)
    t = trace(lambda: torch.exp(x.sin() @ w))
    assert kernels(t) == [
        (["sin"], X, X),
        (["mm"], X + 4 * C * C, X),
        (["exp"], X, X),
    ]


def test_a_value_that_a_matmul_needs_too_is_written():
    x, w = T(R, C), T(C, C)

    def program():
        h = x.sin()
        return h.exp(), h @ w

    t = trace(program)
    assert kernels(t) == [(["sin", "exp"], X, 2 * X), (["mm"], X + 4 * C * C, X)]


def test_a_kernel_closes_when_something_outside_has_read_from_it():
    x, w = T(R, C), T(C, C)

    def program():
        h = x.sin()
        y = h @ w
        return h.exp() + y

    # exp cannot join sin: sin must have run before the product, add only after it.
    assert kernels(trace(program)) == [
        (["sin"], X, X),
        (["mm"], X + 4 * C * C, X),
        (["exp", "add"], 2 * X, X),
    ]


def test_what_the_backward_needs_stays_written():
    x = torch.empty(R, C, device="meta", requires_grad=True)
    with tracer.trace() as t:
        x.sin().exp().sum().backward()  # sin saves x, exp saves its result
    forward = [k for k in t.ledger().kernels if k.phase == "forward"]
    fused = forward[0]
    written = sum(fused.cost.write.values())
    assert [t.trace.ops[p.op].overload_packet for p in fused.parts][:2] == ["aten.sin", "aten.exp"]
    assert written - X in (0, 4)  # exp's result for the backward; the sum may be in the kernel
    assert sum(fused.cost.read.values()) == X


def test_phases_do_not_mix():
    x = torch.empty(R, C, device="meta", requires_grad=True)
    with tracer.trace() as t:
        x.sin().sum().backward()
    for kernel in t.ledger().kernels:
        assert {t.trace.ops[p.op].phase for p in kernel.parts} == {kernel.phase}


def test_in_place_chains_keep_only_the_last_value():
    def program():
        h = torch.empty(R, C, device="meta").sin()
        h.mul_(2).add_(1)
        return h.exp_()

    t = trace(program)
    assert kernels(t) == [(["sin", "mul_", "add_", "exp_"], X, X)]


def test_in_place_on_an_input_is_written():
    x = T(R, C)
    assert kernels(trace(lambda: x.mul_(2).add_(1))) == [(["mul_", "add_"], X, X)]


# -- parts of tensors ------------------------------------------------------------------------------


def test_both_halves_of_a_chunked_tensor_are_read():
    """SwiGLU over one [gate | up] projection, the most common fused kernel there is."""
    x, w = T(R, C), T(C, 2 * C)

    def program():
        gate, up = (x @ w).chunk(2, -1)
        return F.silu(gate) * up

    assert kernels(trace(program)) == [
        (["mm"], X + 4 * C * 2 * C, 2 * X),
        (["silu", "mul"], 2 * X, X),
    ]


def test_rotary_halves():
    x, cos, sin = T(R, C), T(R, C // 2), T(R, C // 2)

    def program():
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    t = trace(program)
    assert sum(read for _, read, _ in kernels(t)) == 2 * X  # x, cos and sin, once each
    assert sum(written for *_, written in kernels(t)) == X


def test_a_part_that_another_kernel_wrote_is_read():
    x, y, w = T(R, C), T(R, C), T(C, C)

    def program():
        buffer = torch.empty(2 * R, C, device="meta")
        torch.mm(x, w, out=buffer[:R])
        buffer[R:].copy_(y.sin())
        return buffer * 2

    t = trace(program)
    fused = kernels(t)[-1]
    assert fused[0] == ["sin", "copy_", "mul"]
    assert fused[1] == X + X  # y, and the half that the product wrote
    assert fused[2] == 2 * X


def test_a_part_that_is_replaced_does_not_hide_the_other():
    x, y = T(R, C), T(R, C)

    def program():
        buffer = torch.empty(2 * R, C, device="meta")
        buffer[:R].copy_(x)
        a = buffer[:R] * 2
        buffer[R:].copy_(y)
        return a, buffer

    t = trace(program)
    assert sum(written for *_, written in kernels(t)) == 3 * X
    assert sum(read for _, read, _ in kernels(t)) == 2 * X


def test_the_rest_of_a_tensor_that_was_replaced_in_part_is_read():
    x, v, w = T(R, C), T(R, C), T(C, C)

    def program():
        y = x.sin()
        p = y @ w  # ends the first kernel
        y[: R // 2].copy_(v.cos()[: R // 2])
        return y * 2, p

    fused = kernels(trace(program))[-1]
    assert fused[0] == ["cos", "copy_", "mul"]
    assert fused[1] == X + X // 2  # v, and the half of y that stayed


def test_a_part_made_and_read_in_the_kernel_is_not_taken_off_the_rest_twice():
    x, v, w = T(R, C), T(R, C), T(C, C)

    def program():
        y = x.sin()
        p = y @ w
        top = y[: R // 2]
        top.copy_(v.cos()[: R // 2])
        part = top * 3  # reads the part that was made here
        return y * 2, p, part

    t = trace(program)
    fused = kernels(t)[-1]
    assert fused[0] == ["cos", "copy_", "mul", "mul"]
    assert fused[1] == X + X // 2
    assert fused[2] == X + X // 2


def test_two_slots_of_a_cache_are_both_written():
    cache = T(10, C)
    k = T(1, C)

    with torch.no_grad(), tracer.trace() as t:
        t.mark("kv", [cache])
        for slot in (3, 4):
            cache[slot : slot + 1].copy_(k.sin())
            t.kept = cache[slot : slot + 1].exp()
    assert t.cost.write["kv"] == 2 * 4 * C


def test_a_slot_written_in_the_kernel_does_not_bring_the_cache_along():
    cache, k = T(10, C), T(1, C)
    with torch.no_grad(), tracer.trace() as t:
        t.mark("kv", [cache])
        cache[3:4].copy_(k)
        t.kept = cache * 2
    assert t.cost.read["kv"] >= 9 * 4 * C  # nine slots were not made here


def test_two_reads_of_different_size_cost_the_larger():
    x = T(R, C)

    def program():
        a = x[:, :2].sin()
        return a.sum(), (x * 2)

    t = trace(program)
    assert X <= sum(read for _, read, _ in kernels(t)) <= X + 4 * R * 2


# -- order -----------------------------------------------------------------------------------------


def order(t, *names):
    """Position of the kernel that runs each of these ops."""
    where = {}
    for number, (ops, _, _) in enumerate(kernels(t)):
        for name in ops:
            where[name] = number
    return [where[name] for name in names]


def test_an_input_is_not_overwritten_before_it_is_read():
    x = T(R, C)

    def program():
        a = x.sin()
        x.zero_()
        return a.exp()

    sin, zero = order(trace(program), "sin", "zero_")
    assert sin <= zero


def test_a_later_write_by_a_matmul_waits_for_the_reader():
    x, w = T(C, C), T(C, C)

    def program():
        a = x.sin()
        torch.mm(w, w, out=x)
        return a.exp()

    sin, mm = order(trace(program), "sin", "mm")
    assert sin < mm


def test_an_index_put_waits_for_the_reader():
    x, i = T(R, C), torch.empty(2, dtype=torch.long, device="meta")
    v = T(2, C)

    def program():
        a = x.sin()
        x.index_put_((i,), v)
        return a.exp()

    sin, put = order(trace(program), "sin", "index_put_")
    assert sin < put


def test_sizes_that_do_not_nest_stay_apart():
    x, y = T(5), T(7)
    t = trace(lambda: (x.sin(), y.sin()))
    assert [ops for ops, _, _ in kernels(t)] == [["sin"], ["sin"]]


def test_independent_chains_cost_the_sum():
    x, y = T(R, C), T(R, C)
    one = trace(lambda: x.sin().exp()).cost
    both = trace(lambda: (x.sin().exp(), y.cos().tanh())).cost
    assert both.total_bytes == 2 * one.total_bytes
    assert both.vector_flops == 2 * one.vector_flops


def test_the_order_of_independent_modules_does_not_matter():
    a, b = nn.Linear(8, 8, device="meta"), nn.Sequential(nn.GELU(), nn.LayerNorm(8, device="meta"))
    x, y = T(3, 8), T(5, 8)
    assert trace(lambda: (a(x), b(y))).cost == trace(lambda: (b(y), a(x))[::-1]).cost


def test_flops_do_not_depend_on_the_execution():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
    with tracer.trace(model) as t:
        model(torch.ones(3, 8)).sum().backward()
    naive, efficient = (t.ledger(execution=e).total() for e in ("naive", "efficient"))
    assert naive.flops == efficient.flops
    assert naive.vector_flops == efficient.vector_flops


def test_unfusible_programs_cost_the_same_in_both():
    x, w = T(R, C), T(C, C)
    rows = torch.empty(3, dtype=torch.long, device="meta")
    t = trace(lambda: torch.sort((x @ w @ w)[rows]))
    naive, efficient = (t.ledger(execution=e) for e in ("naive", "efficient"))
    assert naive.total() == efficient.total()
    assert len(naive.kernels) == len(efficient.kernels) == 4
