"""Recompute under activation checkpointing, and the optimizer's phase."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import tracer
from tracer.capture.records import BACKWARD, FORWARD, OPTIMIZER, RECOMPUTE


def count(trace, packet):
    """How often `packet` ran, by (phase, module)."""
    return Counter(
        (op.phase, trace.module_of(op)) for op in trace.ops if op.overload_packet == packet
    )


def heavy(trace, phase):
    """Names and modules of the ops of a phase that are no views."""
    free = ("aten.t", "aten.view", "aten.detach", "aten.expand")
    return [
        (op.name, trace.module_of(op))
        for op in trace.ops
        if op.phase == phase and op.overload_packet not in free
    ]


@pytest.fixture
def body():
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_modules_run_again_in_their_own_phase(body, reentrant):
    model = nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)})
    x = torch.randn(3, 4, requires_grad=True)
    with tracer.trace(model) as t, set_checkpoint_early_stop(False):
        hidden = checkpoint(model["body"], x, use_reentrant=reentrant)
        model["head"](hidden).sum().backward()
        after = hidden.detach() * 2
    assert after.shape == (3, 4)
    trace = t.trace
    body_forward = [item for item in heavy(trace, FORWARD) if item[1].startswith("body")]
    assert heavy(trace, RECOMPUTE) == body_forward
    assert [name for name, _ in body_forward] == [
        "aten.addmm.default", "aten.gelu.default", "aten.addmm.default",
    ]  # fmt: skip
    products = count(trace, "aten.mm")
    assert products == {
        (BACKWARD, "body.0"): 2, (BACKWARD, "body.2"): 2, (BACKWARD, "head"): 2,
    }  # fmt: skip
    # The module stack is clean afterwards: the last product by 2 is nobody's.
    assert (trace.ops[-1].phase, trace.module_of(trace.ops[-1])) == (FORWARD, "")


def test_early_stop_leaves_the_stack_clean(body):
    x = torch.randn(3, 4, requires_grad=True)
    with tracer.trace(body) as t:
        checkpoint(body, x, use_reentrant=False).sum().backward()
        torch.ones(2) + 1
    # The last product of the checkpointed part is not needed again: nothing saved comes after it.
    recomputed = count(t.trace, "aten.addmm")
    assert recomputed[RECOMPUTE, "0"] == 1
    assert count(t.trace, "aten.gelu")[RECOMPUTE, "1"] == 1
    assert count(t.trace, "aten.mm") == {(BACKWARD, "0"): 2, (BACKWARD, "2"): 2}
    assert [t.trace.module_of(op) for op in t.trace.ops[-2:]] == ["", ""]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_function_without_modules_is_recomputed_too(reentrant):
    x = torch.randn(3, 3, requires_grad=True)
    with tracer.trace() as t:
        checkpoint(lambda a: (a @ a).exp().sin(), x, use_reentrant=reentrant).sum().backward()
    assert count(t.trace, "aten.exp") == {(FORWARD, ""): 1, (RECOMPUTE, ""): 1}
    assert count(t.trace, "aten.mm")[BACKWARD, ""] == 2


def test_nested_checkpoints(body):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = body

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False).tanh()

    model = Outer()
    x = torch.randn(3, 4, requires_grad=True)
    with tracer.trace(model) as t:
        checkpoint(model, x, use_reentrant=False).sum().backward()
    assert count(t.trace, "aten.mm") == {(BACKWARD, "inner.0"): 2, (BACKWARD, "inner.2"): 2}
    assert count(t.trace, "aten.gelu")[FORWARD, "inner.1"] == 1
    assert count(t.trace, "aten.gelu")[RECOMPUTE, "inner.1"] >= 1


def test_flops_of_a_checkpointed_step_are_four_forwards(body):
    x = torch.randn(3, 4, requires_grad=True)
    with tracer.trace(body) as t, set_checkpoint_early_stop(False):
        checkpoint(body, x, use_reentrant=False).sum().backward()
    one = 2 * 3 * (4 * 8 + 8 * 4)
    ledger = t.ledger()
    assert {phase: ledger.total(phase).total_flops for phase in (FORWARD, RECOMPUTE, BACKWARD)} == {
        FORWARD: one, RECOMPUTE: one, BACKWARD: 2 * one,
    }  # fmt: skip


# -- optimizer -------------------------------------------------------------------------------------


class Lion(torch.optim.Optimizer):
    """A custom optimizer with a state of its own."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.sub_(momentum.mul_(0.9).add_(p.grad).sign(), alpha=group["lr"])


OPTIMIZERS = {
    "adamw foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw single": lambda p: torch.optim.AdamW(p, foreach=False),
    "adam fused": lambda p: torch.optim.Adam(p, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "custom": Lion,
}
# Bytes of state an FP32 parameter has, beside step counters.
STATE = {"adamw foreach": 8, "adamw single": 8, "adam fused": 8, "sgd": 0, "sgd momentum": 4,
         "custom": 4}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ops_inside_of_step_are_the_optimizer(body, name):
    optimizer = OPTIMIZERS[name](body.parameters())
    with tracer.trace(body) as t:
        body(torch.randn(3, 4)).sum().backward()
        torch.eye(5)  # marks the place
        optimizer.step()
        torch.eye(6)
    phases = [op.phase for op in t.trace.ops]
    inside, outside = (
        max(i for i, op in enumerate(t.trace.ops) if op.args == (size,)) for size in (5, 6)
    )
    assert OPTIMIZER not in phases[: inside + 1]
    assert set(phases[inside + 1 : outside]) == {OPTIMIZER}
    assert set(phases[outside:]) == {FORWARD}
    sizes = Counter()
    for storage in t.trace.storages:
        sizes[storage.role] += storage.nbytes
    parameters = 4 * (4 * 8 + 8 + 8 * 4 + 4)
    assert sizes["weights"] == parameters
    assert sizes["gradients"] == parameters
    steps = sizes["optimizer"] - parameters // 4 * STATE[name]
    assert 0 <= steps <= 4 * 4  # a step counter for each of the four parameters, at most


def test_the_master_copy_is_marked_by_hand(body):
    masters = [p.detach().double() for p in body.parameters()]
    with tracer.trace(body) as t:
        t.mark("optimizer", masters)
        for p, master in zip(body.parameters(), masters, strict=True):
            p.data.copy_(master)
    by_role = t.cost.bytes_by_role
    elements = 4 * 8 + 8 + 8 * 4 + 4
    assert by_role == {
        "weights": 4 * elements, "optimizer": 8 * elements, "activations": 0, "kv": 0,
        "temporary": 0, "gradients": 0,
    }  # fmt: skip


def test_a_step_that_raises_ends_the_phase(body):
    class Broken(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

        def step(self, closure=None):
            raise ArithmeticError("overflow in gradient scaling")

    optimizer = Broken(body.parameters())
    with tracer.trace(body) as t:
        with pytest.raises(ArithmeticError):
            optimizer.step()
        body(torch.randn(3, 4))
    assert {op.phase for op in t.trace.ops} == {FORWARD}


def test_the_forward_in_a_closure_is_forward(body):
    optimizer = torch.optim.SGD(body.parameters(), lr=0.1)
    x = torch.randn(3, 4)

    def closure():
        optimizer.zero_grad()
        loss = body(x).sum()
        loss.backward()
        return loss

    with tracer.trace(body) as t:
        optimizer.step(closure)
    assert count(t.trace, "aten.addmm") == {(FORWARD, "0"): 1, (FORWARD, "2"): 1}
    assert {phase for phase, _ in count(t.trace, "aten.mm")} == {BACKWARD}
    assert {phase for phase, _ in count(t.trace, "aten.add_")} == {OPTIMIZER}


def test_another_optimizer_instance_does_not_end_the_phase_of_the_first(body):
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, parameters):
            parameters = list(parameters)
            super().__init__(parameters, {})
            self.inner = torch.optim.SGD(parameters, lr=0.1)

        def step(self, closure=None):
            self.inner.step()
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.mul_(0.5)

    optimizer = Wrapper(body.parameters())
    with tracer.trace(body) as t:
        body(torch.randn(3, 4)).sum().backward()
        optimizer.step()
    assert {phase for phase, _ in count(t.trace, "aten.mul_")} == {OPTIMIZER}


def test_hooks_are_gone_afterwards(body):
    optimizer = torch.optim.SGD(body.parameters(), lr=0.1)
    with tracer.trace(body) as t:
        body(torch.randn(3, 4)).sum().backward()
    recorded = len(t.trace.ops)
    optimizer.step()
    assert len(t.trace.ops) == recorded
