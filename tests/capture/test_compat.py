"""Contract tests: what the capture relies on in torch's private API, one test for each name.

When a torch release breaks one of these, the failure here says what changed.
"""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tracer.capture import compat


class Watch(compat.TorchDispatchMode):
    """Calls `look(func, args)` for every dispatched op, before and after it runs."""

    def __init__(self, look):
        super().__init__()
        self.look = look

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.look(func, args, out)
        return out


def test_dispatch_mode_sees_ops_below_autograd():
    seen = []
    model = nn.Linear(3, 2)
    with Watch(lambda func, args, out: seen.append(str(func))):
        model(torch.ones(4, 3)).sum().backward()
    # `linear` itself is composite and gone; its parts and both backward products are seen.
    assert "aten.linear.default" not in seen
    assert seen.count("aten.addmm.default") == 1
    assert seen.count("aten.mm.default") == 1  # the input needs no gradient


def test_dispatch_mode_is_off_while_it_handles_an_op_and_may_enter_itself_again():
    depth = []

    class Mode(compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            depth.append(len(depth))
            if len(depth) == 1:
                with self:
                    torch.zeros(1).add_(1)
            torch.ones(1)  # not seen by this mode
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.ones(2)
    assert len(depth) == 3  # ones, then zeros and add_ inside of the second entry


def test_trailing_defaults_are_dropped_and_keywords_become_positional():
    seen = []
    x = torch.ones(4, 5)
    with Watch(lambda func, args, out: seen.append((str(func), args[1:]))):
        torch.topk(input=x, k=2, dim=-1, largest=True)
        torch.ops.aten.mm.default(self=x, mat2=x.t().contiguous())
    by_name = dict(seen)
    assert by_name["aten.topk.default"] == (2,)
    assert len(by_name["aten.mm.default"]) == 1


def test_current_autograd_node_is_set_only_inside_backward():
    assert compat.current_autograd_node() is None
    names = []
    x = torch.ones(3, requires_grad=True)
    y = (x * 2).sum()

    def look(func, args, out):
        node = compat.current_autograd_node()
        names.append(node.name() if node is not None else None)

    with Watch(look):
        torch.ones(1)
        y.backward()
    assert names[0] is None
    assert "SumBackward0" in names
    assert "MulBackward0" in names
    assert compat.current_autograd_node() is None


def test_next_sequence_nr_minus_one_is_the_node_just_made():
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    assert y.grad_fn._sequence_nr() == compat.next_sequence_nr() - 1
    before = compat.next_sequence_nr()
    z = y.exp()
    assert compat.next_sequence_nr() == before + 1
    assert z.grad_fn._sequence_nr() == before
    with torch.no_grad():
        y + 1
    assert compat.next_sequence_nr() == before + 1  # an op without a node takes no number


def test_the_node_exists_already_when_the_dispatch_mode_sees_its_op():
    numbers = []
    x = torch.ones(3, requires_grad=True)
    with Watch(lambda func, args, out: numbers.append(compat.next_sequence_nr() - 1)):
        y = x.exp()
    assert numbers[0] == y.grad_fn._sequence_nr()


def test_the_same_number_comes_back_in_backward():
    forward, backward = {}, {}
    x = torch.ones(3, 3, requires_grad=True)
    w = torch.ones(3, 3, requires_grad=True)

    def look(func, args, out):
        node = compat.current_autograd_node()
        if node is None:
            forward[str(func)] = compat.next_sequence_nr() - 1
        else:
            backward.setdefault(node._sequence_nr(), []).append(str(func))

    with Watch(look):
        (x @ w).exp().sum().backward()
    assert backward[forward["aten.mm.default"]].count("aten.mm.default") == 2
    assert "aten.mul.Tensor" in backward[forward["aten.exp.default"]]


def test_accumulate_grad_has_the_largest_number():
    leaf = torch.ones(1, requires_grad=True)
    node = leaf.expand(2).grad_fn.next_functions[0][0]
    assert node.name().endswith("AccumulateGrad")
    assert node._sequence_nr() == compat.ACCUMULATE_GRAD_NR


def test_graph_task_id_tells_backward_from_forward():
    assert compat.current_graph_task_id() == compat.NO_GRAPH_TASK
    ids = []
    x = torch.ones(3, requires_grad=True)
    with Watch(lambda func, args, out: ids.append(compat.current_graph_task_id())):
        y = x.exp().sum()
        y.backward(torch.ones(()))
    assert ids[0] == compat.NO_GRAPH_TASK
    assert ids[-1] >= 0
    assert compat.current_graph_task_id() == compat.NO_GRAPH_TASK


def test_a_recompute_runs_inside_of_the_graph_task_with_grad_mode_on():
    seen = []
    x = torch.ones(3, 3, requires_grad=True)

    def look(func, args, out):
        if str(func) == "aten.exp.default":
            inside = compat.current_graph_task_id() != compat.NO_GRAPH_TASK
            seen.append((inside, torch.is_grad_enabled()))

    with Watch(look):
        checkpoint(lambda t: t.exp().sin(), x, use_reentrant=False).sum().backward()
    assert seen == [(False, True), (True, True)]


def test_storage_key_is_one_for_all_wrappers_of_a_storage():
    x = torch.zeros(4, 4)
    key = compat.storage_key(x.untyped_storage())
    same = [x.view(16), x.t(), x[1:], x.detach(), x.view(torch.int32)]
    assert {compat.storage_key(t.untyped_storage()) for t in same} == {key}
    assert compat.storage_key(x.clone().untyped_storage()) != key
    assert isinstance(key, int)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_storage_weakref_lives_as_long_as_any_tensor_over_the_storage(device):
    x = torch.zeros(4, device=device)
    ref = weakref.ref(x.untyped_storage())
    gc.collect()
    assert ref() is not None  # no Python name holds the wrapper, the tensor does
    view = x[1:]
    del x
    gc.collect()
    assert ref() is not None
    del view
    assert ref() is None


def test_storage_weakref_outlives_python_when_autograd_holds_the_tensor():
    x = torch.ones(4, requires_grad=True)
    saved = x.exp()
    ref = weakref.ref(saved.untyped_storage())
    y = saved.sum()
    z = y * saved.mean()
    del saved
    assert ref() is not None
    del y, z
    assert ref() is None


def test_is_fake():
    with FakeTensorMode() as mode:
        fake = torch.zeros(2)
        assert compat.is_fake(fake)
        assert compat.is_fake(mode.from_tensor(nn.Parameter(torch.zeros(2))))
    assert not compat.is_fake(torch.zeros(2))
    assert not compat.is_fake(torch.zeros(2, device="meta"))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (torch.ops.aten.linear.default, True),
        (torch.ops.aten.matmul.default, True),
        (torch.ops.aten.scaled_dot_product_attention.default, True),
        (torch.ops.aten.mm.default, False),
        (torch.ops.aten.relu.default, False),
        (torch.ops.aten.view.default, False),
        # Runs under every `FakeTensor.device`; an exception here aborts the process.
        (torch.ops.prim.device.default, False),
    ],
)
def test_is_composite(op, expected):
    assert compat.is_composite(op) is expected


def test_decompose_runs_the_c_plus_plus_decomposition_and_not_the_python_one():
    """torch._refs has other decompositions of some ops: its `dropout` copies in eval mode."""
    seen = []
    x = torch.ones(3)

    class Mode(compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if compat.is_composite(func):
                with self:
                    return compat.decompose(func, args, kwargs or {})
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.inference_mode(), Mode():
        nn.functional.dropout(x, 0.5, training=False)
        nn.functional.linear(x.view(1, 3), torch.ones(2, 3))
    products = ["aten.view.default", "aten.ones.default", "aten.t.default", "aten.mm.default"]
    assert seen == products


def test_a_composite_op_can_be_overridden_and_given_back():
    def mine(query, key, value, *args, **kwargs):
        return query + 100

    q = torch.zeros(1, 1, 2, 4, device="cpu")
    library = compat.override_composite("scaled_dot_product_attention", mine)
    try:
        for device in ("cpu", "meta"):
            p = q.to(device).requires_grad_()
            out = nn.functional.scaled_dot_product_attention(p, p, p)
            assert out.grad_fn.name() == "AddBackward0"
    finally:
        library._destroy()
    assert nn.functional.scaled_dot_product_attention(q, q, q).max() == 0


def test_the_meta_backward_of_efficient_attention_is_repaired_and_given_back():
    def run():
        q, k, v = (
            torch.zeros(1, n, 2, d, device="meta", requires_grad=True)
            for n, d in ((3, 8), (5, 8), (5, 4))
        )
        out = torch.ops.aten._efficient_attention_forward(
            q, k, v, None, None, None, None, None, 0.0, 2, True, scale=0.5
        )[0]
        out.sum().backward()
        return [x.grad.shape for x in (q, k, v)]

    library = compat.efficient_attention_backward_on_meta()
    try:
        assert run() == [(1, 3, 2, 8), (1, 5, 2, 8), (1, 5, 2, 4)]
    finally:
        library._destroy()
    with pytest.raises(TypeError, match="scale"):  # once torch is right, ours can go
        run()


def test_writes_reads_the_schema():
    aten = torch.ops.aten
    assert compat.writes(aten.add_.Tensor)
    assert compat.writes(aten.mm.out)
    assert compat.writes(aten._foreach_add_.Scalar)
    assert not compat.writes(aten.add.Tensor)
    assert not compat.writes(aten.view.default)  # aliases, but does not write


def test_no_dispatch_modes_hides_ops_and_restores_the_modes():
    seen = []
    with Watch(lambda func, args, out: seen.append(str(func))):
        torch.ones(1)
        with compat.no_dispatch_modes():
            torch.zeros(1)
        torch.full((1,), 2.0)
    assert seen == ["aten.ones.default", "aten.full.default"]


def test_groups_are_found_by_name_boxed_or_not():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert compat.process_groups() == {}
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=8)
    try:
        group = torch.distributed.new_group([1, 3, 5], group_desc="odd")
        assert compat.group_name(group) == compat.group_name(group.boxed()) == group.group_name
        assert compat.process_group(group.group_name) is group
        assert compat.group_name(torch.float32) is None
        assert compat.process_groups()[group.group_name] == {
            "axis": "odd", "size": 3, "start": 1, "stride": 2,
        }  # fmt: skip
    finally:
        torch.distributed.destroy_process_group()


def test_sharding_propagation_meets_no_mode():
    """Without it, ops on global shapes are seen beside the local ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        mesh = init_device_mesh("cpu", (4,))
        with compat.silent_propagation():
            shapes = []
            cut = distribute_tensor(torch.empty(8, 6, device="meta"), mesh, [Shard(0)])
            assert compat.local_tensor(cut).shape == (2, 6)
            with Locals(lambda func, args, out: shapes.append(tuple(out.shape))):
                cut.relu()
        assert set(shapes) == {(2, 6)}
    finally:
        torch.distributed.destroy_process_group()


class Locals(Watch):
    """As the recorder: DTensors are passed on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_the_dispatch_mode_that_sees_an_op_first_is_known():
    assert compat.dispatch_mode() is None
    with (watch := Watch(lambda func, args, out: None)):
        assert compat.dispatch_mode() is watch
        with (fake := FakeTensorMode()):  # wherever it is entered, it comes last
            assert compat.dispatch_mode() is watch
    with fake:
        assert compat.dispatch_mode() is fake
    with torch.device("meta"):  # a function mode sees no ops
        assert compat.dispatch_mode() is None
    assert compat.dispatch_mode() is None
