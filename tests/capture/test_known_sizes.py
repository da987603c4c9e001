"""Operations on symbolic sizes that are worked out once give what they give each time."""

import contextlib

import pytest
import torch
from torch.fx.experimental.sym_node import SymNode

from tracer.capture import symbolic
from tracer.capture.known_sizes import known_sizes
from tracer.capture.program import load_program
from tracer.capture.symbolic import Sizes
from tracer.capture.workload import Workload, record_symbolic

METHODS = ("_add", "_mul", "_eq", "_lt", "_and_", "wrap_int", "maybe_as_int")


def methods():
    return {name: vars(SymNode)[name] for name in METHODS}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_trace_is_the_same_with_and_without(monkeypatch, phase):
    program = load_program("deepseek-ai/DeepSeek-V3", layers=4, dtype="fp8")
    work = Workload(phase, 4, 256, 512, "none")
    found = record_symbolic(program, work)
    monkeypatch.setattr(symbolic, "known_sizes", lambda env: contextlib.nullcontext())
    plain = record_symbolic(program, work)
    assert repr(found.ops) == repr(plain.ops)
    assert repr(found.storages) == repr(plain.storages)
    assert found.scope.conditions() == plain.scope.conditions()


def test_a_node_serves_again_and_methods_come_back():
    before = methods()
    sizes = Sizes({"B": 8})
    b = sizes.values["B"].node
    with known_sizes(sizes._env):
        assert b.mul(b.wrap_int(3)) is b.mul(b.wrap_int(3))
        assert b.add(b) is not b.mul(b)
        assert str(b.mul(b.wrap_int(3)).expr) == "3*" + str(b.expr)
        assert b.maybe_as_int() is None and b.wrap_int(3).maybe_as_int() == 3
        assert methods() != before
    assert methods() == before


def test_sizes_of_another_run_are_not_touched():
    mine, theirs = Sizes({"B": 8}), Sizes({"B": 16})
    with known_sizes(mine._env):
        product = theirs.values["B"] * 2
        assert product.node.hint == 32
        assert product.node is not (theirs.values["B"] * 2).node
        assert (mine.values["B"] * 2).node.hint == 16


def test_a_symbol_that_is_replaced_is_asked_again():
    sizes = Sizes({"B": 8, "S": 8})
    b, s = sizes.values["B"], sizes.values["S"]
    with known_sizes(sizes._env):
        before = b + 1
        torch._check(b == s)
        assert bool(b == s)
        assert str((b + 1).node.expr) == str((s + 1).node.expr)
        assert before.node.hint == 9
