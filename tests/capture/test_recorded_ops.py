"""The record of small modules, op for op: names, shapes, strides, dtypes, modules, calls."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import tracer
from tracer.capture import Call, Capture
from tracer.capture.records import TensorRef


def names(trace):
    return [(op.name, trace.module_of(op)) for op in trace.ops]


@pytest.fixture
def mlp():
    return nn.Sequential(
        OrderedDict(up=nn.Linear(8, 16, bias=False), act=nn.ReLU(), down=nn.Linear(16, 4))
    )


def test_forward_of_an_mlp_is_exactly_this(mlp):
    x = torch.zeros(3, 8)
    with torch.no_grad(), tracer.trace(mlp) as t:
        mlp(x)
    assert names(t.trace) == [
        ("aten.t.default", "up"),
        ("aten.mm.default", "up"),
        ("aten.relu.default", "act"),
        ("aten.t.default", "down"),
        ("aten.addmm.default", "down"),
    ]
    assert {op.phase for op in t.trace.ops} == {"forward"}
    assert {op.times for op in t.trace.ops} == {1}
    transpose, product, relu, _, addmm = t.trace.ops
    # Three parameters were there first: up.weight, down.weight, down.bias.
    assert transpose.args == (TensorRef((16, 8), (8, 1), "float32", 0, 0),)
    assert transpose.outputs == (TensorRef((8, 16), (1, 8), "float32", 0, 0),)
    activation, weight = product.args
    assert activation[:3] == ((3, 8), (8, 1), "float32")
    assert weight == transpose.outputs[0]
    assert product.outputs[0][:3] == ((3, 16), (16, 1), "float32")
    assert relu.args == product.outputs
    assert relu.outputs[0].storage != relu.args[0].storage
    bias, hidden, turned = addmm.args
    assert (bias.shape, bias.storage) == ((4,), 2)
    assert hidden == relu.outputs[0]
    assert (turned.shape, turned.stride, turned.storage) == ((16, 4), (1, 16), 1)
    assert addmm.outputs[0].shape == (3, 4)
    assert not any(op.mutates for op in t.trace.ops)


def test_calls_are_numbered_and_named_with_their_class(mlp):
    x = torch.zeros(3, 8)
    with torch.no_grad(), tracer.trace(mlp) as t:
        mlp(x)
        mlp.up(x)
    assert t.trace.calls == [
        Call("", "Sequential", 0),  # outside of every module call
        Call("", "Sequential", 0),
        Call("up", "Linear", 0),
        Call("act", "ReLU", 0),
        Call("down", "Linear", 0),
        Call("up", "Linear", 1),
    ]
    assert [t.trace.calls[op.call].nth for op in t.trace.ops if t.trace.module_of(op) == "up"] == [
        0, 0, 1, 1,
    ]  # fmt: skip


def test_views_keep_their_storage_offset_and_strides():
    x = torch.zeros(4, 6)
    with tracer.trace() as t:
        y = x[1:, 2:].t()
        y * 2
    *_, last = t.trace.ops
    ref = last.args[0]
    assert (ref.shape, ref.stride, ref.offset) == ((4, 3), (1, 6), 8)
    assert len({op.args[0].storage for op in t.trace.ops}) == 1
    assert last.args[1] == 2


def test_scalars_dtypes_lists_and_none_are_plain_values():
    x = torch.zeros(2, 3)
    with tracer.trace() as t:
        x.to(torch.float64)
        torch.cat([x, x], 1)
        x.clamp(None, 1.5)
        torch.zeros(2, dtype=torch.int16, device="meta")
        torch.full((2,), 1 + 2j)
    to, cat, clamp, zeros, full = t.trace.ops
    assert to.kwargs["dtype"] == "float64"
    assert [ref.shape for ref in cat.args[0]] == [(2, 3), (2, 3)]
    assert type(cat.args[0]) is tuple
    assert clamp.args[1:] == (None, 1.5)
    assert (zeros.args, zeros.kwargs["dtype"], zeros.kwargs["device"]) == (((2,),), "int16", "meta")
    assert zeros.outputs[0].dtype == "int16"
    assert full.args[1] == 1 + 2j


def test_a_record_holds_no_torch_object(mlp):
    with tracer.trace(mlp) as t:
        mlp(torch.zeros(3, 8)).sum().backward()
        torch.randn(3, generator=torch.Generator())
        torch.zeros(2, 2, dtype=torch.half).to(torch.device("meta"), memory_format=None)

    def walk(value):
        if isinstance(value, (tuple, list)):
            for item in value:
                yield from walk(item)
        elif isinstance(value, dict):
            yield from walk(tuple(value.values()))
        else:
            yield value

    for op in t.trace.ops:
        for leaf in walk(tuple(op)):
            assert not type(leaf).__module__.startswith("torch"), (op.name, leaf)


@pytest.mark.parametrize(
    ("program", "mutated", "outputs"),
    [
        (lambda x, y: x.add_(y), 1, 1),
        (lambda x, y: x.copy_(y), 1, 1),
        (lambda x, y: x.zero_(), 1, 1),
        (lambda x, y: torch.add(y, y, out=x), 1, 1),
        (lambda x, y: x.index_add_(0, torch.zeros(2, dtype=torch.long), y), 1, 1),
        (lambda x, y: torch._foreach_add_([x, y], 1.0), 2, 0),
        (lambda x, y: x + y, 0, 1),
        (lambda x, y: x[1:], 0, 1),
    ],
)
def test_writes_are_noted_by_storage(program, mutated, outputs):
    x, y = torch.zeros(2, 3), torch.ones(2, 3)
    with tracer.trace() as t:
        program(x, y)
    op = t.trace.ops[-1]
    assert len(op.mutates) == mutated
    assert len(op.outputs) == outputs
    assert set(op.mutates) <= {ref.storage for ref in op.inputs()}


def test_an_in_place_op_on_a_view_mutates_the_base():
    x = torch.zeros(4, 4)
    with tracer.trace() as t:
        x[:, :2].mul_(3)
    slice_, mul = t.trace.ops[-2:]
    assert mul.mutates == (slice_.args[0].storage,)
    assert mul.outputs[0].shape == (4, 2)


def test_transpose_in_place_shows_the_shape_before_it():
    x = torch.zeros(2, 3)
    with tracer.trace() as t:
        x.t_()
    (op,) = t.trace.ops
    assert op.args[0].shape == (2, 3)
    assert op.outputs[0].shape == (3, 2)


def test_resize_notes_the_new_size_of_the_storage():
    with tracer.trace() as t:
        x = torch.empty(0)
        x.resize_(1000)
    storage = t.trace.ops[-1].outputs[0].storage
    assert t.trace.storages[storage].nbytes == 1000 * 4
    assert t.trace.ops[-1].args[0].shape == (0,)


def test_set_moves_a_tensor_to_another_storage():
    x, y = torch.zeros(2), torch.zeros(5)
    with tracer.trace() as t:
        x.set_(y)
        x + 1
    set_, add = t.trace.ops
    assert set_.args[0].storage != set_.args[1].storage
    assert set_.outputs[0].storage == set_.args[1].storage == add.args[0].storage


def test_a_storage_argument_is_not_written_out_byte_by_byte():
    y = torch.zeros(1000)
    with tracer.trace() as t:
        torch.empty(0).set_(y.untyped_storage(), 0, (10,), (1,))
    op = t.trace.ops[-1]
    assert len(str(op.args)) < 500, "the data of the storage is in the record"


def test_parameters_and_buffers_are_listed_once_with_tied_weights():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.register_buffer("scale", torch.ones(4, dtype=torch.bfloat16))
            self.register_buffer("steps", torch.zeros((), dtype=torch.long), persistent=False)

    with tracer.trace(Model()) as t:
        pass
    rows = [(p.name, p.shape, p.dtype, p.trainable, p.buffer) for p in t.trace.parameters]
    assert rows == [
        ("embed.weight", (10, 4), "float32", True, False),
        ("frozen.weight", (4, 4), "float32", False, False),
        ("frozen.bias", (4,), "float32", False, False),
        ("scale", (4,), "bfloat16", False, True),
        ("steps", (), "int64", False, True),
    ]
    assert t.parameters == 10 * 4 + 4 * 4 + 4
    assert [p.nbytes for p in t.trace.parameters] == [160, 64, 16, 8, 8]
    assert {t.trace.storages[p.storage].role for p in t.trace.parameters} == {"weights"}
    assert {t.trace.storages[p.storage].born for p in t.trace.parameters} == {-1}


def test_without_a_model_everything_is_at_the_top():
    with tracer.trace() as t:
        torch.ones(2) + torch.ones(2)
    assert names(t.trace) == [
        ("aten.ones.default", ""),
        ("aten.ones.default", ""),
        ("aten.add.Tensor", ""),
    ]
    assert t.trace.parameters == []


def test_a_module_outside_of_the_tree_is_named_by_its_class():
    class Model(nn.Module):
        def forward(self, x):
            return nn.Softmax(-1)(x)

    model = Model()
    stranger = nn.Tanh()
    with tracer.trace(model) as t:
        stranger(model(torch.zeros(2, 2)))
    modules = {op.overload_packet: t.trace.module_of(op) for op in t.trace.ops}
    assert modules["aten._softmax"] == "<Softmax>"
    assert modules["aten.tanh"] == "<Tanh>"


def test_a_child_that_is_called_directly_and_through_its_parent_keeps_its_path(mlp):
    with torch.no_grad(), tracer.trace(mlp) as t:
        mlp.down(torch.zeros(1, 16))
        mlp(torch.zeros(1, 8))
    products = [
        (op.name, t.trace.module_of(op), t.trace.calls[op.call].nth)
        for op in t.trace.ops
        if op.overload_packet in ("aten.mm", "aten.addmm")
    ]
    assert products == [
        ("aten.addmm.default", "down", 0),
        ("aten.mm.default", "up", 0),
        ("aten.addmm.default", "down", 1),
    ]


def test_a_module_that_calls_itself():
    class Countdown(nn.Module):
        def __init__(self):
            super().__init__()
            self.child = nn.ReLU()

        def forward(self, x, n):
            x = x + 1
            return self(self.child(x), n - 1).neg() if n else x

    model = Countdown()
    with tracer.trace(model) as t:
        model(torch.zeros(2), 2)
    adds = [t.trace.calls[op.call].nth for op in t.trace.ops if op.overload_packet == "aten.add"]
    negs = [t.trace.calls[op.call].nth for op in t.trace.ops if op.overload_packet == "aten.neg"]
    relus = [t.trace.module_of(op) for op in t.trace.ops if op.overload_packet == "aten.relu"]
    assert adds == [0, 1, 2]
    assert negs == [1, 0]  # after the inner call is over the op is the outer's
    assert relus == ["child", "child"]


def test_pointwise_ops_are_those_that_torch_tags():
    with tracer.trace() as t:
        torch.zeros(2, 2).exp() @ torch.zeros(2, 2)
    assert "aten.exp.default" in t.trace.pointwise
    assert "aten.mm.default" not in t.trace.pointwise


def test_header_says_what_was_traced(mlp):
    with tracer.trace(mlp, attention="naive") as t:
        pass
    assert t.trace.header["model"] == "Sequential"
    assert t.trace.header["attention"] == "naive"
    assert t.trace.header["torch"] == torch.__version__


def test_unknown_attention_is_refused():
    with pytest.raises(tracer.UserError, match=r"attention='eager'.*'fused' or 'naive'"):
        Capture(None, attention="eager")
