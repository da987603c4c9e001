"""The linear with master weights: outputs and gradients within what the formats allow."""

import itertools
import math

import pytest
import torch

from tracer.models import fp8
from tracer.models.linear import Fp8TrainingLinear

RECIPES = [
    fp8.Recipe(scaling, gradient, power_of_two)
    for scaling, gradient, power_of_two in itertools.product(
        ("tensor", "row", "block"), (fp8.E4M3, fp8.E5M2), (False, True)
    )
]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(recipe, dtype=torch.float32, tokens=70, in_dim=260, out_dim=136):
    """(layer, x, dy) behind one forward and backward, and y."""
    torch.manual_seed(0)
    layer = fp8.MasterLinear(in_dim, out_dim, recipe)
    x = normal(tokens, in_dim, seed=1).to(dtype).requires_grad_()
    # Gradients are small and differ between tokens.
    dy = (normal(tokens, out_dim, seed=2) * torch.logspace(-7, -5, tokens)[:, None]).to(dtype)
    y = layer(x)
    y.backward(dy)
    return layer, x, dy, y


def off_by(x, scheme, dtype, power_of_two, transpose=False):
    """Largest error of each element, max(2^-(m+1)·|x|, half the smallest subnormal · scale).

    The scale here is that of the definition: the largest of the group over that of the format, up
    to twice that with powers of two.
    """
    x = x.detach().float()
    relative, smallest = {fp8.E4M3: (2**-4, 2**-10), fp8.E5M2: (2**-3, 2**-17)}[dtype]
    x = x.t() if transpose else x
    rows, columns = {
        "tensor": x.shape, "row": (1, x.shape[1]), "tile": (1, 128), "block": (128, 128)
    }[scheme]  # fmt: skip
    scale = torch.empty(x.shape)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            group = x[i : i + rows, j : j + columns]
            scale[i : i + rows, j : j + columns] = group.abs().max() / torch.finfo(dtype).max
    off = torch.maximum(relative * x.abs(), smallest * scale * (2 if power_of_two else 1))
    return off.t() if transpose else off


def bound(a, a_off, b, b_off):
    """Σ (|a| + |e_a|)(|b| + |e_b|) - |a|·|b|, for a [M, K] and b [N, K]."""
    a, b = a.detach().double().abs(), b.detach().double().abs()
    return (a + a_off.double()) @ (b + b_off.double()).t() - a @ b.t()


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_forward_and_gradients_are_within_the_bound(recipe):
    layer, x, dy, y = run(recipe)
    w = layer.weight
    token = "tile" if recipe.scaling == "block" else recipe.scaling
    up = recipe.power_of_two
    e4m3, gradient = fp8.E4M3, recipe.gradient
    cases = {
        "y": (y, x @ w.t(), bound(
            x, off_by(x, token, e4m3, up), w, off_by(w, recipe.scaling, e4m3, up))),
        "dx": (x.grad, dy @ w, bound(
            dy, off_by(dy, token, gradient, up),
            w.t(), off_by(w.t(), recipe.scaling, e4m3, up))),
        "dw": (w.grad, dy.t() @ x, bound(
            dy.t(), off_by(dy.t(), token, gradient, up), x.t(), off_by(x.t(), token, e4m3, up))),
    }  # fmt: skip
    for name, (got, want, allowed) in cases.items():
        off = (got.double() - want.detach().double()).abs()
        assert (off <= allowed * 1.001).all(), name  # FP32 sums
        assert off.max() > 0.02 * allowed.max(), name  # it is FP8, and a bound that means something


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_gradient_error_is_that_of_two_roundings(recipe):
    """√(r_a² + r_b²) of the norm, r by theory; 15 % for a mantissa that is not log-uniform."""
    layer, x, dy, y = run(recipe, tokens=256, in_dim=512, out_dim=256)
    if recipe.scaling == "tensor" and recipe.gradient == fp8.E4M3:
        # Small tokens are below E4M3's range under one scale, but add little to the norm.
        assert fp8.error_of(dy, "tensor").subnormal > fp8.error_of(dy, "row").subnormal
    r, r_dy = fp8.norm_error(fp8.E4M3), fp8.norm_error(recipe.gradient)
    pairs = {
        "y": (y, x @ layer.weight.t(), math.hypot(r, r)),
        "dx": (x.grad, dy @ layer.weight, math.hypot(r, r_dy)),
        "dw": (layer.weight.grad, dy.t() @ x, math.hypot(r, r_dy)),
    }
    for name, (got, want, expected) in pairs.items():
        error = ((got - want).norm() / want.norm()).item()
        assert error == pytest.approx(expected, rel=0.15), name


def test_dtypes_and_shapes():
    layer, x, _, y = run(fp8.Recipe(), dtype=torch.bfloat16)
    assert (y.dtype, x.grad.dtype, layer.weight.grad.dtype) == (
        torch.bfloat16, torch.bfloat16, torch.float32,
    )  # fmt: skip
    assert layer(normal(2, 3, 260)).shape == (2, 3, 136)
    assert torch.equal(layer(normal(6, 260)).view(2, 3, 136), layer(normal(6, 260).view(2, 3, 260)))


def test_block_is_the_linear_of_the_reference_model():
    """The same operands, so the same forward and input gradient; dw rounds x once less."""
    layer, x, dy, y = run(fp8.Recipe("block"), dtype=torch.bfloat16)
    reference = Fp8TrainingLinear(260, 136, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        reference.weight.copy_(layer.weight)
    x2 = x.detach().clone().requires_grad_()
    y2 = reference(x2)
    y2.backward(dy)
    assert torch.equal(y, y2)
    assert torch.equal(x.grad, x2.grad)
    exact = dy.float().t() @ x.detach().float()
    ours, theirs = (
        (w.grad - exact).norm() / exact.norm() for w in (layer.weight, reference.weight)
    )
    assert ours < theirs


def test_accumulation_reaches_all_three_products():
    sizes = {"tokens": 160, "in_dim": 256, "out_dim": 192}
    exact = run(fp8.Recipe("tensor"), **sizes)
    for accumulate in ("hopper", "promoted"):
        recipe = fp8.Recipe("tensor", accumulate=accumulate)
        layer, x, _, y = run(recipe, **sizes)
        pairs = ((y, exact[3]), (x.grad, exact[1].grad), (layer.weight.grad, exact[0].weight.grad))
        for got, want in pairs:
            error = ((got - want).norm() / want.norm()).item()
            # Far above FP32's 1e-6; K is 160 to 256, where nothing has drifted yet.
            assert 5e-5 < error < 1e-3


def test_only_what_is_needed_is_computed():
    layer = fp8.MasterLinear(128, 128)
    layer.weight.requires_grad_(False)
    x = normal(4, 128).requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_nan_in_one_token_reaches_its_row_only():
    layer = fp8.MasterLinear(128, 128)
    x = normal(4, 128)
    x[2, 5] = math.nan
    with torch.no_grad():
        broken = layer(x).isnan()
    assert broken[2].all()
    assert not broken[[0, 1, 3]].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scaling": "tile"}, "scaling is 'tile'; supported are tensor, row, block"),
        ({"gradient": torch.float16}, "gradient is torch.float16; supported are"),
        ({"accumulate": "fp16"}, "accumulate is 'fp16'; supported are"),
        ({"accumulate": "hopper"}, "scaling 'block' promotes every 128"),
    ],
)
def test_refused_recipes(arguments, message):
    with pytest.raises(fp8.Fp8Error, match=message):
        fp8.Recipe(**arguments)
