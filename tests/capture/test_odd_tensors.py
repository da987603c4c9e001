"""Hostile inputs: counted exactly, or named in the coverage ledger; never a crash."""

import pytest
import torch
from torch import nn

import tracer
from tracer.capture.records import DTYPE_BITS


def read_everything(t):
    """All that a person may ask of a session; must not raise."""
    str(t)
    t.ledger(execution="naive").coverage()
    t.ledger(execution="efficient").coverage()
    for by in ("module", "op", "phase"):
        t.table(by)
    assert t.on("h200_sxm").step >= 0


def test_zero_size_tensors():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Softmax(-1))
    with tracer.trace(model) as t:
        model(torch.ones(0, 4)).sum().backward()
    assert t.flops == 0
    # The input is empty, so the only bytes of the forward are parameters that kernels are given.
    assert t.ledger().total("forward").bytes_by_role["activations"] <= 4 * 2
    read_everything(t)


def test_zero_rows_of_weights():
    with tracer.trace() as t:
        torch.ones(3, 0) @ torch.ones(0, 5)
        torch.cat([torch.ones(0), torch.ones(3)])
        torch.ones(0).sum()
    assert t.flops == 0
    read_everything(t)


def test_scalars():
    with tracer.trace() as t:
        (torch.tensor(2.0) * torch.tensor(3.0) + 1).sqrt()
    assert t.cost.vector_flops == 3
    read_everything(t)


def test_complex_tensors():
    x = torch.randn(4, 4, dtype=torch.complex64, requires_grad=True)
    with tracer.trace() as t:
        torch.view_as_real((x @ x).conj() * torch.fft.fft(x)).sum().backward()
    read_everything(t)


def test_a_complex_product_is_four_real_ones():
    """(a+bi)(c+di) accumulated: four multiply-adds, 8 FLOPs where a real product has 2."""
    x = torch.ones(4, 5, dtype=torch.complex64)
    with tracer.trace() as t:
        x @ x.t()
    assert t.cost.flops == {"fp32": 8 * 4 * 4 * 5}


@pytest.mark.filterwarnings("ignore:.*Sparse.*")
@pytest.mark.filterwarnings("ignore:.*sparse.*")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_products(layout):
    dense = torch.eye(4)
    sparse = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
    with tracer.trace() as t:
        sparse @ torch.ones(4, 3)
        sparse.to_dense()
    # 4 non-zeros times 3 columns, or nothing known and said so; the dense count is neither.
    assert t.flops == 2 * 4 * 3 or t.ledger().unmodelled()
    read_everything(t)


def test_sparse_buffer():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("a", torch.eye(4).to_sparse())
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.a @ self.linear(x)

    model = Model()
    with tracer.trace(model) as t:
        model(torch.ones(4, 4)).sum().backward()
    assert t.flops >= 2 * 2 * 4 * 4 * 4
    read_everything(t)


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(100, 4, sparse=True), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.trace(model) as t:
        model(torch.tensor([3, 4])).sum().backward()
        optimizer.step()
    assert t.flops == 3 * 2 * 2 * 4 * 4
    read_everything(t)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors(layout):
    model = nn.Linear(4, 8)
    x = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=layout)
    with tracer.trace(model) as t:
        model(x)
    assert t.flops == 2 * 5 * 4 * 8 or t.ledger().unmodelled()
    read_everything(t)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_quantized_tensors():
    with tracer.trace() as t:
        x = torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.quint8)
        torch.ops.quantized.add(x, x, 0.1, 0)
        x.dequantize()
    assert "quantized.add.default" in t.ledger().unmodelled()
    add = t.ledger(execution="naive").by(lambda kernel, part: kernel.name)["add"]
    assert add.total_bytes == 16 + 16  # one byte an element, the same tensor read once
    read_everything(t)


def is_plain(value):
    """A dtype that meta tensors may have; quantized ones are made by quantizing only."""
    return isinstance(value, torch.dtype) and "qu" not in str(value) and "qint" not in str(value)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize(
    "dtype",
    sorted({d for d in vars(torch).values() if is_plain(d)}, key=str),
    ids=lambda d: str(d).removeprefix("torch."),
)
def test_every_dtype_of_torch_has_a_size(dtype):
    x = torch.empty(16, dtype=dtype, device="meta")
    with tracer.trace() as t:
        torch.empty_like(x)
        x.view(4, 4).t()
        torch.empty(16, dtype=dtype, device="meta").copy_(x)
    (copy,) = [op for op in t.trace.ops if op.overload_packet == "aten.copy_"]
    assert copy.args[1].dtype == str(dtype).removeprefix("torch.")
    assert t.cost.total_bytes == 2 * 16 * dtype.itemsize
    assert DTYPE_BITS[copy.args[1].dtype] == 8 * dtype.itemsize
    read_everything(t)


def test_integer_products_can_be_timed_or_say_why_not():
    x = torch.ones(4, 4, dtype=torch.long)
    with tracer.trace() as t:
        x @ x
    assert sum(t.cost.flops.values()) == 2 * 4 * 4 * 4
    try:
        t.on("h200_sxm")
    except tracer.UserError as error:
        assert "int64" in str(error)


def test_function_transforms():
    model = nn.Linear(4, 4)
    p = dict(model.named_parameters())
    x = torch.ones(5, 4)
    call = torch.func.functional_call
    with tracer.trace(model) as t:
        torch.func.vmap(lambda row: call(model, p, (row,)))(x)
        torch.func.vjp(lambda y: call(model, p, (y,)), x)[1](x)
    one = 2 * 5 * 4 * 4
    assert t.flops == one + 2 * one
    read_everything(t)


def test_modules_that_mutate_their_input():
    class Mutates(nn.Module):
        def forward(self, x):
            x.mul_(2)
            x[:, 0] = 1
            return x.relu_()

    with tracer.trace(Mutates()) as t:
        Mutates()(torch.ones(4, 4))
    assert t.ledger(execution="naive").total().total_bytes > 0
    read_everything(t)


def test_data_dependent_shapes():
    with tracer.trace() as t:
        x = torch.arange(10.0)
        x[x > 4].sum()
        torch.nonzero(x)
        x.unique()
        int(x.max())
    assert t.ledger().coverage()["estimated"]["ops"] > 0
    read_everything(t)


def test_a_tensor_subclass():
    class Logged(torch.Tensor):
        pass

    x = torch.ones(3, 4).as_subclass(Logged)
    with tracer.trace() as t:
        x @ torch.ones(4, 5)
    assert t.flops == 2 * 3 * 4 * 5
    read_everything(t)


def test_a_scripted_module():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x).relu()

    traced = torch.fx.symbolic_trace(Small())
    with tracer.trace(traced) as t:
        traced(torch.ones(2, 4))
    assert t.flops == 2 * 2 * 4 * 4
    assert {t.trace.module_of(op) for op in t.trace.ops if "addmm" in op.name} == {"linear"}
