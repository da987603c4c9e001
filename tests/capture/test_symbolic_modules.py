"""Small modules with named sizes, against hand arithmetic; conditions, errors, and what is left."""

import gc
import re
import weakref

import pytest
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.functional import scaled_dot_product_attention

import tracer
from tracer.capture.stand_ins import STAND_INS
from tracer.capture.symbolic import NotSymbolic, Sizes
from tracer.errors import UserError


def meta(*shape, **options):
    return torch.empty(*shape, device="meta", **options)


def by_name(session):
    scope = session.trace.scope
    return [scope.symbol(name, value) for name, value in scope.samples.items()]


def test_a_linear_by_hand():
    model = nn.Linear(64, 256, bias=False, device="meta")
    with tracer.trace(model, symbols={"B": 8, "S": 128}) as t:
        model(meta(t.sizes["B"], t.sizes["S"], 64)).sum().backward()
    B, S = by_name(t)
    # Forward, and the weight's gradient; the input needs none.
    assert t.flops == 2 * 2 * B * S * 64 * 256
    assert t.conditions == ["B >= 2", "S >= 2"]
    assert t.cost.read["weights"] == 64 * 256 * 4
    assert "2·B·S·256·64" in t.terms()


def test_a_convolution_with_a_symbolic_batch():
    """3×3, 4 to 8 channels, 10×10 in, 8×8 out: 2·N·8·64·4·9 FLOPs."""
    model = nn.Conv2d(4, 8, 3, device="meta")
    with tracer.trace(model, symbols={"N": 5}) as t:
        out = model(meta(t.sizes["N"], 4, 10, 10))
    (N,) = by_name(t)
    assert tuple(out.shape[1:]) == (8, 8, 8)
    assert t.flops == 2 * N * 8 * 8 * 8 * 4 * 9
    assert t.conditions == ["N >= 2"]


@pytest.mark.parametrize(
    ("causal", "pairs"), [(False, lambda S: S * S), (True, lambda S: S * (S + 1) / 2)]
)
def test_attention(causal, pairs):
    """Two products of 16 wide heads: 4·16 FLOPs a pair and head."""
    with tracer.trace(symbols={"B": 3, "S": 40}) as t:
        q = meta(t.sizes["B"], 4, t.sizes["S"], 16, dtype=torch.bfloat16)
        scaled_dot_product_attention(q, q, q, is_causal=causal)
    B, S = by_name(t)
    assert t.flops == 4 * 16 * 4 * B * (S * (S + 1) / 2 if causal else S * S)
    assert t.flops.is_whole


class Cached(nn.Module):
    """One step of decode: a key is written at the end of a cache of L, and all are attended."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(32, 32, bias=False, device="meta", dtype=torch.bfloat16)

    def forward(self, x, cache):
        cache[:, -1:].copy_(x)
        q, k = self.q(x).unsqueeze(1), cache.unsqueeze(1)
        return scaled_dot_product_attention(q, k, k)


def test_decode_over_a_cache_of_symbolic_length():
    model = Cached()
    with tracer.trace(model, symbols={"B": 4, "L": 100}) as t:
        cache = meta(t.sizes["B"], t.sizes["L"], 32, dtype=torch.bfloat16)
        t.mark("kv", [cache])
        model(meta(t.sizes["B"], 1, 32, dtype=torch.bfloat16), cache)
    B, L = by_name(t)
    assert t.flops == 2 * B * 32 * 32 + 4 * B * L * 32
    assert t.cost.read["kv"] == B * L * 32 * 2
    assert t.cost.write["kv"] == B * 32 * 2


class Branches(nn.Module):
    """Long inputs take one matrix, short ones two."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8, bias=False, device="meta")
        self.b = nn.Linear(8, 8, bias=False, device="meta")

    def forward(self, x):
        return self.a(x) if x.shape[0] > 64 else self.b(self.a(x))


@pytest.mark.parametrize(
    ("at", "products", "condition"), [(100, 1, "S > 64"), (64, 2, "S <= 64"), (20, 2, "S <= 64")]
)
def test_a_branch_becomes_a_condition(at, products, condition):
    model = Branches()
    with tracer.trace(model, symbols={"S": at}) as t:
        model(meta(t.sizes["S"], 8))
    (S,) = by_name(t)
    assert t.flops == products * 2 * S * 64
    assert t.conditions == ["S >= 2", condition]


class Multiples(nn.Module):
    def forward(self, x):
        return x.view(-1, 128) * 2 if x.shape[0] % 128 == 0 else x * 2


def test_what_a_size_must_divide_by_is_a_condition():
    with tracer.trace(symbols={"S": 256}) as t:
        out = Multiples()(meta(t.sizes["S"]))
    assert out.shape[0] * 128 == 256
    assert t.conditions[:2] == ["S >= 2", "128 divides S"]
    with tracer.trace(symbols={"S": 200}) as t:
        Multiples()(meta(t.sizes["S"]))
    assert t.conditions == ["S >= 2", "128 does not divide S"]


class Equal(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] == 96 else x * 2 * 3


def test_a_size_that_is_compared_with_a_number_must_differ_from_it():
    with tracer.trace(symbols={"S": 90}) as t:
        Equal()(meta(t.sizes["S"]))
    assert t.conditions == ["S >= 2", "S != 96"]


class Freezes(nn.Module):
    def forward(self, x):
        return x * float(int(x.shape[0]))


def line_of(cls):
    code = cls.forward.__code__
    return f"{code.co_filename}:{code.co_firstlineno + 1}"


@pytest.mark.parametrize("model", [Freezes(), Equal()])
def test_a_frozen_size_is_named_with_its_line(model):
    """int() of a size, or a branch that is only taken at one."""
    place = re.escape(line_of(type(model)))
    with (
        pytest.raises(NotSymbolic, match=rf"^it runs for S = 96 only at {place}$"),
        tracer.trace(model, symbols={"S": 96}) as t,
    ):
        model(meta(t.sizes["S"]))


class DataDependent(nn.Module):
    def forward(self, x):
        return x[x > 0].sum()


class Transforms(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (DataDependent(), "data decide the size of the result, in aten.index.Tensor"),
        (Transforms(), "it runs for S = 96 only, in aten._fft_r2c.default"),
    ],
)
def test_an_op_that_takes_no_symbols_is_named_with_its_line(model, reason):
    place = re.escape(line_of(type(model)))
    with (
        pytest.raises(NotSymbolic, match=rf"^{re.escape(reason)} at {place}$") as caught,
        tracer.trace(model, symbols={"S": 96}) as t,
    ):
        model(meta(t.sizes["S"]))
    assert "\n" not in str(caught.value)


def identities(model):
    tensors = model.state_dict(keep_vars=True)
    return {name: (id(x), type(x), x.requires_grad) for name, x in tensors.items()}


def test_weights_come_back_also_after_an_error(capsys):
    """The very tensors, their gradients flag and type; and no fake mode is left on."""
    shared = nn.Linear(8, 8, device="meta")
    model = nn.ModuleDict({"a": shared, "b": shared, "n": nn.BatchNorm1d(8, device="meta")})
    model["n"].weight.requires_grad_(False)
    before = {
        k: (id(v), type(v), v.requires_grad) for k, v in model.state_dict(keep_vars=True).items()
    }
    with tracer.trace(model, symbols={"B": 4}) as t:
        model["n"](model["b"](model["a"](meta(t.sizes["B"], 8)))).sum().backward()
    after = {
        k: (id(v), type(v), v.requires_grad) for k, v in model.state_dict(keep_vars=True).items()
    }
    assert after == before
    assert len(t.trace.parameters) == 2 + 2 + 3  # shared ones once
    with pytest.raises(ZeroDivisionError), tracer.trace(model, symbols={"B": 4}) as t:
        model["a"](meta(t.sizes["B"], 8 // 0))
    with pytest.raises(NotSymbolic), tracer.trace(model, symbols={"B": 4}) as t:
        int(t.sizes["B"])
    after = {
        k: (id(v), type(v), v.requires_grad) for k, v in model.state_dict(keep_vars=True).items()
    }
    assert after == before
    assert type(meta(3)) is torch.Tensor
    assert capsys.readouterr().err == ""


def test_real_weights_are_traced_without_being_touched():
    model = nn.Linear(4, 4)
    weight = model.weight.detach().clone()
    with tracer.trace(model, symbols={"B": 4}) as t:
        out = model(torch.empty(t.sizes["B"], 4))
    assert out.device.type == "cpu"
    assert torch.equal(model.weight, weight)
    (B,) = by_name(t)
    assert t.flops == 2 * B * 16


def test_only_bounded_caches_of_torch_keep_a_run():
    """The last 256 answers, for all runs together; without those nothing is left."""
    sizes = Sizes({"B": 4})
    left = weakref.ref(sizes._env)
    with sizes.run(None):
        meta(sizes.values["B"], 3) + 1
    del sizes
    for method in vars(ShapeEnv).values():
        if hasattr(method, "cache_clear"):
            method.cache_clear()
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("symbols", [{"B": 1}, {"B": 0}, {"B": 2.0}, {"2·B": 4}, {"": 4}])
def test_symbols_are_checked(symbols):
    with pytest.raises(UserError, match="symbol"):
        tracer.trace(symbols=symbols)


def test_sizes_that_are_equal_by_coincidence():
    """S = 16, the width of a head, and B = S: the formulas of S in general hold there too."""
    with tracer.trace(symbols={"B": 16, "S": 16}) as t:
        q = meta(t.sizes["B"], 4, t.sizes["S"], 16, dtype=torch.bfloat16)
        scaled_dot_product_attention(q, q, q)
    B, S = by_name(t)
    assert t.conditions == ["B >= 2", "S >= 2"]
    assert t.flops == 4 * 16 * 4 * B * S * S
    with tracer.trace() as concrete:
        q = meta(16, 4, 16, 16, dtype=torch.bfloat16)
        scaled_dot_product_attention(q, q, q)
    at = {"B": 16, "S": 16}
    assert t.flops.at(at) == concrete.flops
    assert t.cost.total_bytes.at(at) == concrete.cost.total_bytes


CALLS = {
    torch.ops.aten.constant_pad_nd.default: lambda b, s, e: (e(b, s, 3), (1, 2, 0, 4)),
    torch.ops.aten.baddbmm.default: lambda b, s, e: (e(b, 1, s), e(b, s, 7), e(b, 7, s)),
    torch.ops.aten.complex.default: lambda b, s, e: (e(b, s, 3), e(s, 3)),
    torch.ops.aten.polar.default: lambda b, s, e: (e(b, s, 3).transpose(0, 1), e(s, b, 1)),
}


@pytest.mark.parametrize("op", STAND_INS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_stands_in_for_an_op_has_its_result(op, dtype):
    def empty(*shape):
        return torch.empty(*shape, device="meta", dtype=dtype)

    args = CALLS[op](5, 6, empty)
    real, ours = op(*args), STAND_INS[op](*args)
    assert ours.shape == real.shape
    assert ours.stride() == real.stride()
    assert ours.dtype == real.dtype
    assert ours.device == real.device
    with tracer.trace(symbols={"B": 5, "S": 6}) as t:
        out = op(*CALLS[op](t.sizes["B"], t.sizes["S"], empty))
    assert t.trace.ops[-1].name == str(op)
    assert t.conditions == ["B >= 2", "S >= 2"]
    scope = t.trace.scope
    found = t.trace.ops[-1].outputs[0]
    at = [n.at(scope.samples) if hasattr(n, "at") else n for n in (*found.shape, *found.stride)]
    assert at == [*real.shape, *real.stride()]
    assert out.dtype == real.dtype
