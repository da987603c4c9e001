"""FP8 within what E4M3 allows.

E4M3 has 3 mantissa bits, so rounding to nearest errs by at most 2^-4 of a number (normal numbers;
below 2^-6 of the scaled range, by at most 2^-10 scaled). Two consequences are tested:

* a bound: |Δ(a·b)| ≤ ((1 + 2^-4)² - 1) Σ|a_i b_i| for a product of two quantised operands.
* an expectation: within a binade [1, 2) the error is uniform in ±2^-4, and the mantissa m is about
  log-uniform, so its mean square relative to the number is
  (2^-4)²/3 · E[1/m²] = (2^-8/3) · (3/8)/ln 2, that is 2.65 % RMS = ROUNDING. Errors of different
  terms are independent, so a sum of n random products keeps the relative error of one: √k·2.65 %
  where k operands were rounded, whatever n is.
"""

import math

import pytest
import torch
from small_configs import FP8

from tracer.models import Config, KVCache, build, fp8
from tracer.models.linear import Fp8Linear, Fp8TrainingLinear, Linear, Precision
from tracer.models.moe import Experts, Fp8Experts, Fp8TrainingExperts, route

ROUNDING = math.sqrt(2**-8 / 3 * (3 / 8) / math.log(2))
# The expectation rests on a log-uniform mantissa and a few hundred tiles: 15 % either way.
MARGIN = 0.15


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(got, want):
    return ((got.float() - want.float()).norm() / want.float().norm()).item()


def assert_error_of(got, want, rounded: int):
    """Relative error in the Frobenius norm, as expected from `rounded` rounded operands."""
    expected = math.sqrt(rounded) * ROUNDING
    assert error(got, want) == pytest.approx(expected, rel=MARGIN)


@pytest.mark.parametrize("size", [256, 200])
def test_rows_round_trip(size):
    x = normal(10, size) * torch.logspace(-6, 6, 10)[:, None]
    x[3] = 0.0
    values, scales = fp8.quantize_rows(x)
    assert values.dtype == torch.float8_e4m3fn
    assert values.shape == x.shape
    assert scales.shape == (10, 2)
    assert scales.stride() == (1, 10)
    back = fp8.dequantize(values, scales)
    smallest = scales.repeat_interleave(128, dim=1)[:, :size] * 2**-10
    assert ((back - x).abs() <= torch.maximum(x.abs() * 2**-4, smallest)).all()
    # The largest of each tile becomes 448 exactly.
    assert (values.float().abs()[:, :128].amax(dim=1) == 448).sum() == 9
    assert_error_of(back[9], x[9], 1)


@pytest.mark.parametrize("shape", [(256, 384), (200, 300), (3, 200, 128)])
def test_blocks_round_trip(shape):
    w = normal(*shape)
    values, scales = fp8.quantize_blocks(w)
    assert values.shape == shape
    assert scales.shape == (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    assert scales.dtype == torch.float32
    # Scales by a loop over blocks.
    flat, flat_scales = w.reshape(-1, *shape[-2:]), scales.reshape(-1, *scales.shape[-2:])
    for e, matrix in enumerate(flat):
        for i in range(scales.shape[-2]):
            for j in range(scales.shape[-1]):
                block = matrix[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)]
                assert flat_scales[e, i, j] == block.abs().max() / 448
    assert_error_of(fp8.dequantize(values, scales), w, 1)


def test_columns_are_the_rows_of_the_transpose():
    x = normal(256, 96)
    values, scales = fp8.quantize_columns(x)
    want_values, want_scales = fp8.quantize_rows(x.t().contiguous())
    assert torch.equal(values.float(), want_values.float())
    assert torch.equal(scales, want_scales)


def test_columns_pad_tokens_with_zeros():
    values, scales = fp8.quantize_columns(normal(130, 16))
    assert values.shape == (16, 256)
    assert scales.shape == (16, 2)
    assert (values.float()[:, 130:] == 0).all()


def uneven(weight):
    """Blocks of very different size, so that a scale in the wrong place shows."""
    weight[..., :128, :] *= 4.0
    weight[..., :, :128] *= 4.0
    return weight


def linears(kind, in_dim, out_dim):
    """An FP8 linear and the unquantised weight behind it."""
    weight = uneven(normal(out_dim, in_dim, seed=1))
    module = kind(in_dim, out_dim, dtype=torch.bfloat16, device="cpu")
    with torch.no_grad():
        module.quantize_(weight) if kind is Fp8Linear else module.weight.copy_(weight)
    return module, weight


@pytest.mark.parametrize("kind", [Fp8Linear, Fp8TrainingLinear])
@pytest.mark.parametrize("in_dim", [256, 320])
def test_linear(kind, in_dim):
    module, weight = linears(kind, in_dim, 192)
    x = normal(70, in_dim, dtype=torch.bfloat16)
    y = module(x)
    want = x.float() @ weight.t()
    assert y.dtype == torch.bfloat16
    bound = ((1 + 2**-4) ** 2 - 1) * (x.float().abs() @ weight.abs().t())
    # Numbers in the subnormal range may err more, but by 2^-10/448 of the largest at most; the
    # result is rounded to BF16, and in training so was the weight.
    slack = 1.02
    assert ((y.float() - want).abs() <= slack * bound).all()
    assert_error_of(y, want, 2)
    assert torch.equal(module(module.prepare(x)), y)


def test_training_linear_gradients():
    module, weight = linears(Fp8TrainingLinear, 256, 192)
    x = normal(130, 256, dtype=torch.bfloat16).requires_grad_()
    dy = normal(130, 192, seed=2, dtype=torch.bfloat16) * 1e-6  # gradients are small
    module(x).backward(dy)
    assert_error_of(x.grad, dy.float() @ weight, 2)
    # x is kept in E4M3 by rows and rounded again by columns: three roundings.
    assert_error_of(module.weight.grad, dy.float().t() @ x.float(), 3)
    assert module.weight.grad.dtype == torch.bfloat16


def expert_models(kind):
    """FP8 experts and FP32 ones with the same weights."""
    config = Config.from_hf(FP8)
    exact = Experts(config, Precision(torch.float32), "cpu")
    exact.init_weights(0.03, torch.Generator().manual_seed(0))
    training = kind is Fp8TrainingExperts
    module = kind(config, Precision(torch.bfloat16, fp8=True, training=training), "cpu")
    with torch.no_grad():
        for name, weight in exact.named_parameters():
            uneven(weight)
            getattr(module, name).copy_(weight) if training else module.quantize_(name, weight)
    return module, exact


@pytest.mark.parametrize("kind", [Fp8Experts, Fp8TrainingExperts])
def test_experts(kind):
    module, exact = expert_models(kind)
    x = normal(150, 256, dtype=torch.bfloat16)
    chosen = torch.stack([torch.randperm(8)[:2] for _ in range(150)])
    weights = torch.rand(150, 2)
    with torch.no_grad():
        got, want = module(x, weights, chosen), exact(x.float(), weights, chosen)
    # Six roundings stand behind a result: x and w of gate, x and w of up, h and w of down. They
    # are not all independent (x is shared by gate and up, where its errors add), and silu
    # stretches the error of its input by silu'(g)·g/silu(g) = 1 + g(1 - sigmoid(g)), at most
    # 1.28 for g > 0 and growing with -g, where silu itself fades. So: between the six roundings
    # and twice that.
    assert math.sqrt(6) * ROUNDING * (1 - MARGIN) < error(got, want) < 2 * math.sqrt(6) * ROUNDING


def test_expert_gradients():
    module, exact = expert_models(Fp8TrainingExperts)
    x = normal(150, 256, dtype=torch.bfloat16).requires_grad_()
    x32 = x.detach().float().requires_grad_()
    chosen = torch.stack([torch.randperm(8)[:2] for _ in range(150)])
    weights = torch.rand(150, 2)
    dy = normal(150, 256, seed=5, dtype=torch.bfloat16)
    module(x, weights, chosen).backward(dy)
    exact(x32, weights, chosen).backward(dy.float())
    # Behind a gradient stand at most the six roundings of the forward, and per product of the
    # backward two or three more, through down and then through gate or up: twelve. Twice, for
    # the same reasons as in the forward.
    bound = 2 * math.sqrt(12) * ROUNDING
    pairs = [(x.grad, x32.grad)]
    pairs += [(getattr(module, n).grad, w.grad) for n, w in exact.named_parameters()]
    for got, want in pairs:
        assert math.sqrt(2) * ROUNDING < error(got, want) < bound


def test_grouped_products_by_a_loop():
    """Both custom ops on one group at a time, with an empty group among them."""
    chosen = torch.tensor([0, 0, 2, 2, 2, 3] * 40).view(-1, 1)
    offs = route(chosen, 4).offs
    x, w, dy = normal(240, 256), normal(4, 192, 256, seed=1), normal(240, 192, seed=2)
    qx, qw = fp8.quantize_rows(x), fp8.quantize_blocks(w)
    got = fp8.grouped_mm(*qx, *qw, offs)
    cx, cdy = fp8.quantize_columns(x), fp8.quantize_columns(dy)
    grad = fp8.grouped_wgrad(*cdy, *cx, offs)
    assert (got.dtype, grad.dtype) == (torch.bfloat16, torch.bfloat16)
    start = 0
    for e, stop in enumerate(offs.tolist()):
        rows = slice(start, stop)
        want = fp8.dequantize(*qx)[rows] @ fp8.dequantize(qw[0][e], qw[1][e]).t()
        torch.testing.assert_close(got[rows], want.bfloat16(), rtol=2**-8, atol=1e-3)
        want = fp8.dequantize(*cdy)[:, rows] @ fp8.dequantize(*cx)[:, rows].t()
        torch.testing.assert_close(grad[e], want.bfloat16(), rtol=2**-8, atol=1e-3)
        start = stop
    assert (grad[1] == 0).all()


def models(training=False):
    """An FP8 model and an FP32 one with the same weights, dense: no expert choice can flip."""
    config = {**FP8, "first_k_dense_replace": 3}
    exact = build(config, precision="fp32", training=training, device="cpu").init_weights(seed=0)
    model = build(config, precision="fp8", training=training, device="cpu").init_weights(seed=0)
    with torch.no_grad():
        for name, weight in exact.named_parameters():
            owner = model.get_submodule(name.rpartition(".")[0])
            owner.quantize_(weight) if isinstance(owner, Fp8Linear) else owner.weight.copy_(weight)
    ids = torch.randint(0, 96, (2, 30), generator=torch.Generator().manual_seed(1))
    return model, exact, ids


class NoisyLinear(torch.autograd.Function):
    """FP32, every operand of the three products off by an independent error of E4M3's size."""

    @staticmethod
    def noisy(x):
        # Uniform in ±√3·ROUNDING, whose RMS is ROUNDING.
        return x * (1 + (2 * torch.rand_like(x) - 1) * math.sqrt(3) * ROUNDING)

    @staticmethod
    def forward(ctx, x, w):
        x, w = NoisyLinear.noisy(x), NoisyLinear.noisy(w)
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        noisy = NoisyLinear.noisy
        return noisy(dy) @ w, noisy(dy).t() @ noisy(x)


def add_noise(exact):
    """What rounding at random would do to the same model: a second route to the error of FP8."""
    torch.manual_seed(0)
    for name, module in exact.named_modules():
        if name.startswith("model.") and isinstance(module, Linear):
            module.forward = lambda x, module=module: NoisyLinear.apply(x, module.weight)


# Between the error of FP8 and that of random noise of the same RMS: one draw of each, and where
# two linears share an input the noise of this simulation is not shared.
MODEL_MARGIN = 0.25


def test_model():
    model, exact, ids = models()
    with torch.no_grad():
        got, want = model(ids), exact(ids)
        add_noise(exact)
        assert error(got, want) == pytest.approx(error(exact(ids), want), rel=MODEL_MARGIN)


def test_model_decode():
    """Naive multiplies kv_b_proj in FP8, absorbed its dequantised halves in BF16: less error."""
    model, exact, ids = models()
    cache = KVCache(model.config, 2, 30, device="cpu")
    with torch.no_grad():
        model(ids[:, :27], cache)
        with pytest.raises(RuntimeError, match=r"^FP8 decode needs model.prepare_decode\(\)"):
            model(ids[:, 27:28], cache)
        model.prepare_decode()
        got = torch.cat([model(ids[:, i : i + 1], cache) for i in range(27, 30)], dim=1)
        want = exact(ids)[:, 27:]
        add_noise(exact)
        simulated = error(exact(ids)[:, 27:], want)
    assert (1 - 2 * MODEL_MARGIN) * simulated < error(got, want) < (1 + MODEL_MARGIN) * simulated
    assert not [key for key in model.state_dict() if "w_u" in key]


def test_model_training():
    model, exact, ids = models(training=True)
    model(ids).float().square().mean().backward()
    exact(ids).square().mean().backward()
    want = {name: parameter.grad for name, parameter in exact.named_parameters()}
    exact.zero_grad()
    add_noise(exact)
    exact(ids).square().mean().backward()
    for name, parameter in exact.named_parameters():
        got, simulated = model.get_parameter(name).grad, parameter.grad
        expected = error(simulated, want[name])
        assert error(got, want[name]) == pytest.approx(expected, rel=MODEL_MARGIN), name


def test_whole_moe_model_runs_on_cpu():
    """With experts: a flipped choice is no error of FP8, so only that it runs and is finite."""
    model = build(FP8, precision="fp8", device="cpu").init_weights(seed=0).prepare_decode()
    cache = KVCache(model.config, 2, 31, device="cpu")
    ids = torch.arange(62).view(2, 31)
    assert model(ids[:, :30], cache).isfinite().all()
    assert model(ids[:, 30:], cache).isfinite().all()
    model = build(FP8, precision="fp8", training=True, mtp=True, device="cpu").init_weights(seed=0)
    main, drafted = model(ids, next_ids_BS=ids)
    (main.float().mean() + drafted.float().mean()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
