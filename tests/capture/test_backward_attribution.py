"""Backward ops belong to the module whose forward made their autograd node.

The second route is arithmetic: a linear layer whose input needs a gradient costs exactly twice its
forward in backward, one product for the input and one for the weight.
"""

from collections import Counter

import pytest
import torch
from torch import nn

import tracer
from tracer.capture.records import BACKWARD, FORWARD

PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")


def products(trace, phase):
    """Matrix FLOPs by (module, nth call), counted from the shapes in the record."""
    flops = Counter()
    for op in trace.ops:
        if op.phase == phase and op.overload_packet in PRODUCTS:
            matrices = [ref for ref in op.inputs() if len(ref.shape) > 1]
            inner = matrices[-2].shape[-1]
            call = trace.calls[op.call]
            flops[call.module, call.nth] += 2 * op.outputs[0].numel * inner
    return flops


def step(model, *inputs):
    inputs = [x.requires_grad_() for x in inputs]
    with tracer.trace(model) as t:
        model(*inputs).sum().backward()
    return t.trace


def twice(flops):
    return {key: 2 * value for key, value in flops.items()}


def test_both_products_of_every_linear_in_a_chain():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 2))
    trace = step(model, torch.randn(3, 8))
    assert products(trace, FORWARD) == {
        ("0", 0): 2 * 3 * 8 * 16,
        ("2", 0): 2 * 3 * 16 * 4,
        ("4", 0): 2 * 3 * 4 * 2,
    }
    assert products(trace, BACKWARD) == twice(products(trace, FORWARD))
    owners = {op.overload_packet: trace.module_of(op) for op in trace.ops if op.phase == BACKWARD}
    assert owners["aten.gelu_backward"] == "1"
    assert owners["aten.tanh_backward"] == "3"


def test_without_a_gradient_of_the_input_the_first_layer_has_one_product():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    with tracer.trace(model) as t:
        model(torch.randn(3, 8)).sum().backward()
    forward, backward = products(t.trace, FORWARD), products(t.trace, BACKWARD)
    assert backward["0", 0] == forward["0", 0]
    assert backward["1", 0] == 2 * forward["1", 0]


class Latent(nn.Module):
    """Latent attention as in MLA: shared compressions, a rope key of one head, two head sizes."""

    def __init__(self, d=32, heads=4, nope=8, rope=4, v=6, rank_q=12, rank_kv=10):
        super().__init__()
        self.heads, self.nope, self.rope, self.v, self.rank = heads, nope, rope, v, rank_kv
        self.q_a = nn.Linear(d, rank_q, bias=False)
        self.q_norm = nn.RMSNorm(rank_q)
        self.q_b = nn.Linear(rank_q, heads * (nope + rope), bias=False)
        self.kv_a = nn.Linear(d, rank_kv + rope, bias=False)
        self.kv_norm = nn.RMSNorm(rank_kv)
        self.kv_b = nn.Linear(rank_kv, heads * (nope + v), bias=False)
        self.out = nn.Linear(heads * v, d, bias=False)

    def forward(self, x):
        b, s, _ = x.shape
        q = self.q_b(self.q_norm(self.q_a(x))).view(b, s, self.heads, -1).transpose(1, 2)
        latent, k_rope = self.kv_a(x).split([self.rank, self.rope], -1)
        kv = self.kv_b(self.kv_norm(latent)).view(b, s, self.heads, -1).transpose(1, 2)
        k_nope, v = kv.split([self.nope, self.v], -1)
        k_rope = k_rope.unsqueeze(1).expand(b, self.heads, s, self.rope)
        k = torch.cat([k_nope, k_rope * 2], -1)
        scores = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).reshape(b, s, -1))


class Block(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.attention = Latent(d)
        self.ffn = nn.ModuleDict(
            {"gate": nn.Linear(d, 48), "up": nn.Linear(d, 48), "down": nn.Linear(48, d)}
        )

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        gate = nn.functional.silu(self.ffn["gate"](x))
        return x + self.ffn["down"](gate * self.ffn["up"](x))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_mla_and_swiglu_in_nested_modules(device):
    model = nn.Sequential(Block(), Block()).to(device)
    trace = step(model, torch.randn(2, 5, 32, device=device))
    forward = products(trace, FORWARD)
    # The attention's own products (scores, values) are at "N.attention", the projections below it.
    assert forward["1.attention", 0] == 2 * 2 * 4 * 5 * 5 * (12 + 6)
    assert forward["0.attention.kv_b", 0] == 2 * 10 * 10 * 4 * (8 + 6)
    assert len(forward) == 2 * (1 + 5 + 3)
    assert products(trace, BACKWARD) == twice(forward)


def test_a_module_called_twice_gets_each_backward_under_its_own_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(6, 6)

        def forward(self, x):
            return self.shared(torch.relu(self.shared(x)))

    trace = step(Twice(), torch.randn(4, 6))
    assert products(trace, FORWARD) == {("shared", 0): 288, ("shared", 1): 288}
    assert products(trace, BACKWARD) == {("shared", 0): 576, ("shared", 1): 576}
    order = [
        trace.calls[op.call].nth
        for op in trace.ops
        if op.phase == BACKWARD and op.overload_packet == "aten.mm"
    ]
    assert order == [1, 1, 0, 0]  # the last call's gradient comes first


def test_a_custom_function_belongs_to_the_module_that_applied_it():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx, grad):
            x, w = ctx.saved_tensors
            return grad @ w.t(), x.t() @ grad

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, 5))

        def forward(self, x):
            return Square.apply(x, self.w)

    model = nn.Sequential(nn.Linear(5, 5), Mine(), nn.Linear(5, 5))
    trace = step(model, torch.randn(3, 5))
    assert products(trace, BACKWARD) == twice(dict.fromkeys([("0", 0), ("1", 0), ("2", 0)], 150))


def test_an_in_place_op_on_a_view_keeps_its_backward():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(2))

        def forward(self, x):
            x = x.clone()
            x[:, :2].mul_(self.w)
            return x

    model = nn.Sequential(nn.Linear(4, 4), Scale(), nn.Linear(4, 4))
    trace = step(model, torch.randn(3, 4))
    owners = Counter(
        trace.module_of(op)
        for op in trace.ops
        if op.phase == BACKWARD and op.overload_packet == "aten.mul"
    )
    assert owners == {"1": 2}  # the gradients of x and of w
    assert products(trace, BACKWARD) == twice(products(trace, FORWARD))


def test_two_losses_accumulate_under_the_calls_that_made_them():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(2, 4, requires_grad=True)
    with tracer.trace(model) as t:
        for _ in range(3):
            model(x).sum().backward()
    backward = products(t.trace, BACKWARD)
    assert backward == {(name, nth): 128 for name in "01" for nth in range(3)}
    sums = [
        t.trace.module_of(op)
        for op in t.trace.ops
        if op.phase == BACKWARD and op.name == "aten.add_.Tensor"
    ]
    assert Counter(sums)["1"] >= 4  # weight and bias of the second layer, second and third time


def test_gradients_that_meet_at_a_branch_are_backward_work():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) * self.b(x)

    trace = step(nn.Sequential(nn.Linear(4, 4), Branch()), torch.randn(2, 4))
    assert products(trace, BACKWARD) == twice(products(trace, FORWARD))
    assert all(op.phase == BACKWARD for op in trace.ops if op.name == "aten.add.Tensor")


def test_a_backward_inside_of_a_module_is_backward_not_recompute():
    class TrainStep(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x):
            loss = self.body(x).sum()
            loss.backward()
            return loss.detach()

    model = TrainStep()
    with tracer.trace(model) as t:
        model(torch.randn(3, 4, requires_grad=True))
    assert {op.phase for op in t.trace.ops} == {FORWARD, BACKWARD}
    assert products(t.trace, BACKWARD) == twice(products(t.trace, FORWARD))


def test_a_backward_that_builds_a_graph_is_backward_not_recompute():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(3, 4, requires_grad=True)
    with tracer.trace(model) as t:
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        gradient.pow(2).sum().backward()
    assert {op.phase for op in t.trace.ops} == {FORWARD, BACKWARD}
    assert {m for m, _ in products(t.trace, BACKWARD)} <= {"0", "2"}


def test_grad_of_functions_transforms_is_backward():
    model = nn.Linear(4, 3)
    parameters = dict(model.named_parameters())

    def loss(p, x):
        return torch.func.functional_call(model, p, (x,)).sum()

    with tracer.trace(model) as t:
        torch.func.grad(loss)(parameters, torch.randn(2, 4))
    phases = Counter(op.phase for op in t.trace.ops if op.overload_packet in PRODUCTS)
    assert phases == {FORWARD: 1, BACKWARD: 1}


def test_a_graph_from_before_the_trace_is_not_claimed_by_a_module():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    x = torch.randn(2, 4)
    model = nn.Sequential(second)
    before = first(x)
    with tracer.trace(model) as t:
        with torch.no_grad():
            model(x)  # makes no node of its own
        before.sum().backward()
    assert {m for m, _ in products(t.trace, BACKWARD)} == {""}


def test_every_backward_op_of_a_conv_net_is_under_a_module():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    trace = step(model, torch.randn(2, 3, 8, 8))
    owners = {op.overload_packet: trace.module_of(op) for op in trace.ops if op.phase == BACKWARD}
    assert owners["aten.convolution_backward"] == "0"
    assert owners["aten.native_batch_norm_backward"] == "1"
    assert owners["aten.threshold_backward"] == "2"
    assert owners["aten.max_pool2d_with_indices_backward"] == "3"
