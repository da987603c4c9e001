"""Results of symbolic runs that come from memory are those that the op gives each time."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tracer
from tracer.capture import compat
from tracer.capture.program import load_program
from tracer.capture.remembered_fakes import Remembered
from tracer.capture.symbolic import Sizes
from tracer.capture.workload import Workload, record, record_symbolic

aten = torch.ops.aten


@functools.cache
def program(dtype):
    return load_program("deepseek-ai/DeepSeek-V3", layers=6, dtype=dtype)


@pytest.mark.parametrize("attention", ["fused", "naive"])
@pytest.mark.parametrize(("phase", "dtype"), [
    ("prefill", "bf16"), ("decode", "fp8"), ("training", "bf16"), ("training", "fp8"),
])  # fmt: skip
def test_a_trace_is_the_same_with_and_without(monkeypatch, phase, dtype, attention):
    work = Workload(phase, 4, 256, 512)
    found = record_symbolic(program(dtype), work, attention=attention)
    monkeypatch.setattr(Remembered, "runner", lambda self, func, own: own)
    plain = record_symbolic(program(dtype), work, attention=attention)
    assert repr(found.ops) == repr(plain.ops)
    assert repr(found.storages) == repr(plain.storages)
    assert found.scope.conditions() == plain.scope.conditions()


# What of an x of [B, 6, 4] each op is given.
CASES = {
    aten.mul.Tensor: lambda x: (x, x.select(1, 0).unsqueeze(1)),
    aten.bmm.default: lambda x: (x, x.transpose(1, 2)),
    aten.sin.default: lambda x: (x.transpose(0, 2),),
    aten.view.default: lambda x: (x, [x.shape[0], 24]),
    aten.slice.Tensor: lambda x: (x, 1, 2, 4),
    aten.expand.default: lambda x: (x.select(1, 3), [3, x.shape[0], 4]),
    aten.split_with_sizes.default: lambda x: (x, [2, 4], 1),
    aten.topk.default: lambda x: (x, 2),
    aten.new_empty.default: lambda x: (x, [x.shape[0] + 1, 5]),
    aten.cat.default: lambda x: ([x, x], 0),
    aten.add_.Tensor: lambda x: (x, 1.0),
    aten._foreach_mul_.Scalar: lambda x: ([x, x.sin()], 2.0),
    aten.index.Tensor: lambda x: (x, [None, torch.arange(3, device="meta")]),
    aten.empty.memory_format: lambda x: ([x.shape[0], 3],),
}


def counted(func):
    """An op that counts how often it runs."""

    def own(*args, **kwargs):
        own.ran += 1
        return func(*args, **kwargs)

    own.ran = 0
    return own


def form(out, x):
    """What shows of a result, and whether it is over the storage of `x`."""
    if out is None:
        return None
    if not isinstance(out, torch.Tensor):
        return [form(t, x) for t in out]
    keys = {compat.storage_key(t.untyped_storage()) for t in (out, x)}
    sizes = (*out.shape, *out.stride(), out.storage_offset())
    names = tuple(str(getattr(n, "node", n)) for n in sizes)
    return names, out.dtype, out.device, len(keys) == 1, out is x


@pytest.mark.parametrize("func", CASES, ids=str)
def test_a_result_from_memory_is_the_ops_own(func):
    sizes = Sizes({"B": 8})
    with sizes.run(None):
        x = torch.empty(sizes.values["B"], 6, 4, device="meta")
        own = counted(func)
        run = sizes.remembered.runner(func, own)
        args = CASES[func](x)
        first = run(*args)
        guards = len(sizes._env.guards)
        second = run(*args)
        assert own.ran == 1
        assert len(sizes._env.guards) == guards
        assert form(second, x) == form(first, x)
        made = [
            t for out in (first, second) for t in ([out] if torch.is_tensor(out) else out or ())
        ]
        fresh = [t.untyped_storage() for t in made if not form(t, x)[3]]
        assert len({compat.storage_key(s) for s in fresh}) == len(fresh)
        for a, b in zip(fresh[: len(fresh) // 2], fresh[len(fresh) // 2 :], strict=True):
            assert sizes.resolve(a.nbytes()) == sizes.resolve(b.nbytes())
        assert bool(func(*CASES[func](x)) is None) == (second is None)


def test_another_size_is_another_form():
    sizes = Sizes({"B": 8, "S": 8})
    with sizes.run(None):
        own = counted(aten.neg.default)
        run = sizes.remembered.runner(aten.neg.default, own)
        b, s = (torch.empty(n, 4, device="meta") for n in sizes.values.values())
        found = [run(x).shape[0] for x in (b, s, b, s, b.t(), b.to(torch.bfloat16))]
        assert own.ran == 4
        assert [sizes.resolve(n) for n in found[:4]] == [
            sizes.resolve(n) for n in sizes.values.values()
        ] * 2


def test_numbers_of_different_types_make_different_results():
    sizes = Sizes({"B": 8})
    with sizes.run(None):
        x = torch.empty(sizes.values["B"], dtype=torch.int64, device="meta")
        add = sizes.remembered.runner(aten.add.Tensor, aten.add.Tensor)
        dtypes = [add(x, n).dtype for n in (1, 1.0, True, 1)]
    assert dtypes == [torch.int64, torch.float32, torch.int64, torch.int64]


def test_what_more_than_a_form_decides_always_runs():
    """Masks have as many entries as data say; draws, items and collectives are no shapes."""
    sizes = Sizes({"B": 8})
    with sizes.run(None):
        x = torch.empty(sizes.values["B"], 4, device="meta")
        for func in (aten.nonzero.default, aten.rand_like.default, aten.item.default,
                     torch.ops._c10d_functional.wait_tensor.default):  # fmt: skip
            assert sizes.remembered.runner(func, func) is func
        turned, own = torch.empty(sizes.values["B"], 4, device="meta"), counted(aten.t_.default)
        run = sizes.remembered.runner(aten.t_.default, own)
        for _ in range(4):
            turned = run(turned)
        assert own.ran == 4
        assert str(turned.shape) == str(x.shape)


def test_a_mode_below_sees_every_op():
    """Of a user's own that was there first: no op is left out for having been seen."""
    layers = nn.Sequential(*[nn.Linear(4, 4, device="meta") for _ in range(3)])
    for entered in (False, True):
        with contextlib.ExitStack() as stack:
            counter = FlopCounterMode(display=False)
            t = stack.enter_context(tracer.trace(layers, symbols={"B": 8}))
            if entered:
                stack.enter_context(counter)
            layers(torch.empty(t.sizes["B"], 4, device="meta"))
        assert len([op for op in t.trace.ops if "addmm" in op.name]) == 3


def test_the_optimizer_of_a_symbolic_step_is_the_concrete_one():
    """It has no symbols, runs on the weights' own storages, and costs no more than with numbers."""
    work = Workload("training", 4, 256, 256)
    traces = [run(program("bf16"), work) for run in (record_symbolic, record)]
    steps = [[op for op in t.ops if op.phase == "optimizer"] for t in traces]
    names = [[op.name for op in ops] for ops in steps]
    assert names[0] == names[1]
    assert len(names[0]) > 10
    for mine, theirs in zip(*steps, strict=True):
        sizes = [[(r.shape, r.stride, r.dtype) for r in op.inputs()] for op in (mine, theirs)]
        assert sizes[0] == sizes[1]
        held = [[t.storages[r.storage].role for r in op.inputs()]
                for t, op in zip(traces, (mine, theirs), strict=True)]  # fmt: skip
        assert held[0] == held[1]
