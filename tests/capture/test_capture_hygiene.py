"""A trace leaves nothing behind: no hook, no mode, no live tensor, no change to the model."""

import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as optim_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import tracer
from tracer.capture import Capture


def footprint():
    """Everything global that a capture could leave behind."""
    return (
        len(_get_current_dispatch_mode_stack()),
        len(_get_current_function_mode_stack()),
        len(nn_module._global_forward_hooks),
        len(nn_module._global_forward_pre_hooks),
        len(nn_module._global_forward_hooks_always_called),
        len(optim_module._global_optimizer_pre_hooks),
        len(optim_module._global_optimizer_post_hooks),
        torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(),
    )


@pytest.fixture(autouse=True)
def clean():
    before = footprint()
    yield
    assert footprint() == before


class Fragile(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.explode = True

    def forward(self, x):
        x = self.first(x)
        if self.explode:
            raise ZeroDivisionError("midway")
        return self.second(x)


@pytest.mark.parametrize("attention", ["fused", "naive"])
def test_a_module_that_raises_midway_leaves_a_readable_trace(attention):
    model = nn.Sequential(nn.Linear(4, 4), Fragile())
    session = tracer.trace(model, attention=attention)
    with pytest.raises(ZeroDivisionError), session as t:
        model(torch.ones(2, 4))
    assert t.flops == 2 * (2 * 2 * 4 * 4)
    owners = [t.trace.module_of(op) for op in t.trace.ops if op.overload_packet == "aten.addmm"]
    assert owners == ["0", "1.first"]
    assert "1.first" in str(t)
    assert t.on("h200_sxm").step > 0


def test_an_exception_that_the_user_catches_unwinds_the_stack():
    model = nn.Sequential(nn.Linear(4, 4), Fragile())
    with tracer.trace(model) as t:
        x = torch.ones(2, 4)
        with pytest.raises(ZeroDivisionError):
            model(x)
        torch.ones(2) + 1
        model[1].explode = False
        model(x)
    owners = [(op.overload_packet, t.trace.module_of(op)) for op in t.trace.ops]
    assert ("aten.add", "") in owners
    products = [owner for name, owner in owners if name == "aten.addmm"]
    assert products == ["0", "1.first", "0", "1.first", "1.second"]


def test_an_error_in_backward():
    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ZeroDivisionError("in backward")

    model = nn.Linear(4, 4)
    with tracer.trace(model) as t:
        with pytest.raises(ZeroDivisionError):
            Raises.apply(model(torch.ones(2, 4))).sum().backward()
        torch.ones(2) + 1
    assert (t.trace.ops[-1].phase, t.trace.module_of(t.trace.ops[-1])) == ("forward", "")


def test_an_op_that_torch_refuses_is_not_recorded():
    with tracer.trace() as t:
        with pytest.raises(RuntimeError, match="shape"):
            torch.ones(2, 3) @ torch.ones(2, 3)
        torch.ones(2)
    assert [op.overload_packet for op in t.trace.ops] == ["aten.ones"] * 3


def test_the_model_is_the_same_afterwards():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.LayerNorm(4))
    model[0].register_forward_hook(lambda module, args, out: out + 1)
    x = torch.randn(2, 4)
    before = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    with tracer.trace(model) as t:
        during = model(x)
    assert torch.equal(before, during)
    assert torch.equal(before, model(x))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    recorded = len(t.trace.ops)
    model(x)
    assert len(t.trace.ops) == recorded


def test_gradients_are_those_of_an_untraced_run():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    model(x).sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with tracer.trace(model):
        model(x).sum().backward()
    for p, grad in zip(model.parameters(), plain, strict=True):
        assert torch.equal(p.grad, grad)


def test_nested_traces_each_see_their_own_block():
    model = nn.Linear(4, 4)
    x = torch.ones(2, 4)
    once = 2 * 2 * 4 * 4
    with tracer.trace(model) as outer:
        model(x)
        with tracer.trace(model) as inner:
            model(x)
        model(x)
    assert (outer.flops, inner.flops) == (3 * once, once)
    assert [c.nth for c in outer.trace.calls] == [0, 0, 1, 2]
    assert [c.nth for c in inner.trace.calls] == [0, 0]


def test_mark_belongs_inside_of_the_block():
    session = tracer.trace()
    with pytest.raises(tracer.UserError, match="inside"):
        session.mark("kv", [])
    with session:
        session.mark("kv", [torch.ones(1)])
    with pytest.raises(tracer.UserError, match="inside"):
        session.mark("kv", [])


def test_a_session_records_once():
    model = nn.Linear(4, 4)
    session = tracer.trace(model)
    with session:
        model(torch.ones(2, 4))
    with pytest.raises(tracer.UserError, match="once"), session:
        model(torch.ones(2, 4))
    assert session.flops == 2 * 2 * 4 * 4


def test_a_session_cannot_be_entered_inside_of_itself():
    model = nn.Linear(4, 4)
    session = tracer.trace(model)
    with session:
        with pytest.raises(tracer.UserError), session:
            pass
        model(torch.ones(2, 4))
    assert session.flops == 2 * 2 * 4 * 4


def test_reading_before_the_end_says_when_to_read():
    session = tracer.trace(nn.Linear(4, 4))
    with pytest.raises(tracer.UserError, match="after the 'with' block"):
        _ = session.flops
    with session, pytest.raises(tracer.UserError, match="after the 'with' block"):
        _ = session.trace


def test_another_thread_is_not_recorded():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(2, 4)
    start, done = threading.Event(), threading.Event()
    failures = []

    def other():
        try:
            start.wait(10)
            for _ in range(20):
                model(x).sum().backward()
                optimizer.step()
        except Exception as error:
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with tracer.trace(model) as t:
        start.set()
        done.wait(10)
        with torch.no_grad():
            model(x)
    thread.join()
    assert not failures
    assert [op.overload_packet for op in t.trace.ops] == ["aten.t", "aten.addmm"]
    assert [c.nth for c in t.trace.calls] == [0, 0]


def test_two_threads_trace_at_once():
    def work(results, key, rows):
        model = nn.Linear(4, 4)
        barrier.wait(10)
        with tracer.trace(model) as t:
            for _ in range(20):
                model(torch.ones(rows, 4)).sum().backward()
        results[key] = t.flops

    barrier = threading.Barrier(2)
    results = {}
    threads = [threading.Thread(target=work, args=(results, key, key + 1)) for key in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {key: 20 * 2 * 2 * (key + 1) * 4 * 4 for key in (0, 1)}


def test_a_trace_keeps_no_activation_alive():
    model = nn.Linear(4, 4)
    with tracer.trace(model) as t:
        out = model(torch.ones(2, 4))
        ref = weakref.ref(out)
        del out
        assert ref() is None
        kept = model(torch.ones(2, 4))
    ref = weakref.ref(kept)
    del kept
    assert ref() is None
    assert t.flops > 0


def test_a_finished_session_lets_the_model_go():
    model = nn.Linear(4, 4)
    with tracer.trace(model) as t:
        model(torch.ones(2, 4)).sum().backward()
    ref = weakref.ref(model.weight)
    del model
    gc.collect()
    assert t.flops > 0
    assert ref() is None, "the session holds the model and its gradients in memory"


def test_a_module_that_lived_in_the_forward_dies_with_it():
    class Throwaway(nn.Module):
        def forward(self, x):
            return nn.Linear(4, 4)(x)

    model = Throwaway()
    with torch.no_grad(), tracer.trace(model) as t:
        model(torch.ones(2, 4))
        model(torch.ones(2, 4))
    weights = [s for s in t.trace.storages if s.nbytes == 64]
    assert len(weights) == 2
    assert all(s.died is not None for s in weights)


def test_a_compiled_module_is_refused_with_the_way_out():
    compiled = torch.compile(nn.Linear(4, 4), backend="eager")
    with pytest.raises(tracer.UserError, match=r"torch\.compile.*_orig_mod"):
        tracer.trace(compiled)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_compiled_part_is_refused_or_recorded_in_full():
    """Dynamo stands aside under a dispatch mode; should that change, silence would be wrong."""
    layer = nn.Linear(4, 4)
    compiled = torch.compile(layer, backend="eager")
    x = torch.ones(2, 4)
    compiled(x)  # warm: the compiled code exists already
    model = nn.Sequential(compiled, nn.Linear(4, 4))
    try:
        session = tracer.trace(model)
    except tracer.UserError:
        return
    with session as t:
        model(x)
    assert t.flops == 2 * 2 * 2 * 4 * 4


def test_a_module_compiled_in_place_is_refused_or_recorded_in_full():
    model = nn.Linear(4, 4)
    model.compile(backend="eager")
    x = torch.ones(2, 4)
    model(x)
    try:
        session = tracer.trace(model)
    except tracer.UserError:
        return
    with session as t:
        model(x)
    assert t.flops == 2 * 2 * 4 * 4


def test_a_capture_that_fails_to_start_leaves_nothing():
    class NoParameters(nn.Module):
        def named_parameters(self, *args, **kwargs):
            raise LookupError("a hostile module")

    with pytest.raises(LookupError), Capture(NoParameters()):
        pass


def test_a_keyboard_interrupt_ends_the_trace_as_any_exception():
    with pytest.raises(KeyboardInterrupt), tracer.trace() as t:
        torch.ones(2)
        raise KeyboardInterrupt
    assert len(t.trace.ops) == 1


def test_lazy_modules_are_traced_on_their_first_call():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    with tracer.trace(model) as t:
        model(torch.ones(2, 3))
    assert t.flops == 2 * 2 * 3 * 4
