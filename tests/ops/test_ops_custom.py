"""Ops of other people: a formula in three lines, a name in the report without one."""

import pytest
import torch
from op_records import ref, work

import tracer
from tracer.capture import Capture
from tracer.capture.records import Op
from tracer.cost import Work, cost, price, registry
from tracer.errors import UserError


@torch.library.custom_op("opstest::gated", mutates_args=())
def gated(x: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ w_up) @ w_down


@gated.register_fake
def _(x, w_up, w_down):
    return x.new_empty(x.shape[0], w_down.shape[1])


@torch.library.custom_op("opstest::accumulate", mutates_args={"total"})
def accumulate(total: torch.Tensor, x: torch.Tensor) -> None:
    total += x


ROWS, K, N = 6, 8, 32


def recorded(device="cpu"):
    x, up, down = (torch.empty(*s, device=device) for s in ((ROWS, K), (K, N), (N, K)))
    with Capture() as capture:
        gated(x, up, down)
    return capture.trace


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_a_formula_an_op_is_named_and_priced_by_its_bytes(device):
    ledger = price(recorded(device))
    assert ledger.unmodelled() == {"opstest.gated.default": 1}
    assert ledger.coverage()["unmodelled"]["ops"] == 1
    total = ledger.total()
    assert total.total_flops == total.vector_flops == 0
    assert total.total_bytes == 4 * (ROWS * K + 2 * K * N + ROWS * K)


def test_strict_says_how_to_add_one():
    with pytest.raises(UserError, match=r'@tracer\.cost\("opstest::gated"\)'.replace('"', "['\"]")):
        price(recorded(), strict=True)


def test_three_lines_give_it_one():
    with registry.scope():

        @tracer.cost("opstest::gated")
        def gated_cost(x, w_up, w_down, *, out):
            return Work(flops=4 * x.shape[0] * w_up.numel, kind="gemm")

        ledger = price(recorded(), strict=True)
        # Up and down: two products of 2·rows·K·N.
        assert ledger.total().flops == {"fp32": 2 * 2 * ROWS * K * N}
        assert ledger.unmodelled() == {}
    assert price(recorded()).unmodelled()  # the scope is over


def test_a_formula_states_its_exceptions_by_argument_name():
    with registry.scope():

        @cost("opstest::accumulate")
        def accumulate_cost(total, x, *, out):
            return Work(vector=x.numel, kind="pointwise", read={"x": 7}, write={"total": 5})

        with Capture() as capture:
            accumulate(torch.zeros(10), torch.zeros(10))
        ledger = price(capture.trace, execution="naive")
        kernel = next(k for k in ledger.kernels if k.name == "accumulate")
        assert sum(kernel.cost.read.values()) == 40 + 7
        assert sum(kernel.cost.write.values()) == 5


def test_a_mutating_op_reads_and_writes_what_it_mutates():
    with Capture() as capture:
        accumulate(torch.zeros(10), torch.zeros(10))
    ledger = price(capture.trace, execution="naive")
    kernel = next(k for k in ledger.kernels if k.name == "accumulate")
    assert sum(kernel.cost.read.values()) == 80
    assert sum(kernel.cost.write.values()) == 40


def test_a_formula_that_cannot_read_its_op_says_which():
    with registry.scope():

        @cost("opstest::gated")
        def wrong(x, *, out):
            return Work()

        with pytest.raises(UserError, match=r"'wrong' cannot read opstest\.gated\.default"):
            price(recorded())


def higher_order(name, *args):
    return Op(f"higher_order.{name}.default", args, {}, (ref(2, 4, 64, 16),), (), 0, "forward")


@pytest.mark.parametrize("name", ["scan", "while_loop", "cond", "triton_kernel_wrapper_mutation"])
def test_code_that_no_mode_sees_has_no_formula(name):
    assert registry.find(higher_order(name)) is None


class TestFlexAttention:
    """Blocks that a mask keeps are data: every pair, or as many as its table has room for."""

    q, k, v = ref(2, 4, 64, 16), ref(2, 2, 96, 16), ref(2, 2, 96, 24)

    def mask(self, columns):
        """`BlockMask.as_tuple()` with so many blocks of 32 keys a row."""
        counts, places = ref(1, 1, 2, dtype="int32"), ref(1, 1, 2, columns, dtype="int32")
        full = (None,) * 10
        return (64, 96, counts, places, *full, 32, 32, "mask")

    @pytest.mark.parametrize(("columns", "keys"), [(3, 96), (1, 32), (9, 96)])
    def test_forward(self, columns, keys):
        op = higher_order(
            "flex_attention", self.q, self.k, self.v, "score", self.mask(columns), 0.25, {}, (), ()
        )
        pairs = 2 * 4 * 64 * keys
        assert work(op).flops == pairs * 2 * (16 + 24)
        assert work(op).confidence == "estimated"

    def test_backward_is_twice_the_forward(self):
        forward = higher_order(
            "flex_attention", self.q, self.k, self.v, "score", self.mask(3), 0.25, {}, (), ()
        )
        y = ref(2, 4, 64, 24)
        backward = higher_order(
            "flex_attention_backward", self.q, self.k, self.v, y, ref(2, 4, 64), y, None, "forward",
            "joint", self.mask(3), 0.25, {}, (), (),
        )  # fmt: skip
        assert work(backward).flops == 2 * work(forward).flops
