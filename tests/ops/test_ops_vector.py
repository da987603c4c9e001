"""Vector work: pooling windows, interpolation taps, norms, losses and scans, counted by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_records import Counted, ledger_of, meta, read_bytes, record, ref, work, written_bytes
from torch import nn

aten = torch.ops.aten


def vector(function, *args, **kwargs):
    total = ledger_of(function, *args, **kwargs).total()
    assert total.total_flops == 0
    return total.vector_flops


# -- pooling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.max_pool2d])
def test_pooling_touches_every_element_of_every_window(pool):
    dims = {F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3, F.max_pool2d: 2}[pool]
    x = torch.randn(2, 3, *(9,) * dims)
    outputs = 4**dims  # windows of 3, two apart, over 9: at 0, 2, 4, 6
    assert vector(pool, x, 3, 2) == 2 * 3 * outputs * 3**dims


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))
def test_adaptive_windows_by_their_definition(height, width, rows, columns):
    """Output i covers floor(i·n/m) up to ceil((i+1)·n/m), torch's documented rule."""
    count = 0
    for i, j in itertools.product(range(rows), range(columns)):
        tall = range(i * height // rows, -(-(i + 1) * height // rows))
        wide = range(j * width // columns, -(-(j + 1) * width // columns))
        count += len(tall) * len(wide)
    x = meta(2, 3, height, width)
    if (rows, columns) == (1, 1):
        return  # torch takes a mean instead
    assert vector(F.adaptive_avg_pool2d, x, (rows, columns)) == 2 * 3 * count


def test_one_kernel_size_stands_for_every_dimension():
    x, y = ref(1, 1, 9, 9), ref(1, 1, 3, 3)
    one = record(aten.avg_pool2d.default, y, self=x, kernel_size=(3,))
    two = record(aten.avg_pool2d.default, y, self=x, kernel_size=(3, 3))
    assert work(one).vector == work(two).vector == 9 * 3 * 3


def test_global_pooling_is_a_mean():
    assert vector(F.adaptive_avg_pool2d, torch.randn(2, 3, 7, 7), 1) == 2 * 3 * 49


def test_pooling_backward():
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    grads = {}
    for pool in (F.avg_pool2d, F.max_pool2d):
        ledger = ledger_of(lambda pool=pool: pool(x, 2).backward(torch.ones(1, 2, 4, 4)))
        kernels = [k for k in ledger.kernels if k.phase == "backward" and "pool" in k.name]
        grads[pool] = kernels[0].cost
    outputs = 2 * 4 * 4
    assert grads[F.avg_pool2d].vector_flops == outputs * 4  # a share to each of the window
    assert grads[F.max_pool2d].vector_flops == outputs  # all of it to one
    # The input's values are not needed: the gradient, and for the maximum its places (8 bytes).
    assert sum(grads[F.avg_pool2d].read.values()) == 4 * outputs
    assert sum(grads[F.max_pool2d].read.values()) == (4 + 8) * outputs


# -- interpolation ---------------------------------------------------------------------------------

TAPS = {"nearest": 1, "linear": 2, "bilinear": 4, "trilinear": 8, "nearest-exact": 1}


@pytest.mark.parametrize("mode", TAPS)
def test_interpolation_is_a_weighted_sum_of_taps(mode):
    dims = {"linear": 1, "trilinear": 3}.get(mode, 2)
    x = torch.randn(2, 3, *(4,) * dims)
    Counted.reset()
    taps = TAPS[mode]
    total = Counted() * 0.5 if taps > 1 else Counted()
    for _ in range(taps - 1):
        total = total + Counted() * 0.5
    outputs = 2 * 3 * 8**dims
    assert vector(F.interpolate, x, scale_factor=2, mode=mode) == Counted.total() * outputs


def test_bicubic_is_four_rows_of_four_taps_and_a_column():
    Counted.reset()
    rows = []
    for _ in range(4):
        row = Counted() * 0.1
        for _ in range(3):
            row = row + Counted() * 0.1
        rows.append(row * 0.1)
    _ = rows[0] + rows[1] + rows[2] + rows[3]
    x = torch.randn(1, 2, 4, 4)
    assert vector(F.interpolate, x, scale_factor=2, mode="bicubic") == Counted.total() * 2 * 64


def test_antialiased_taps_widen_with_the_downscale():
    """Half the size: 2 taps become 4, along the width for 16 rows, then along the height for 8."""
    x = torch.randn(1, 1, 16, 16)
    expected = 2 * (16 * 8 * 4 + 8 * 8 * 4)
    assert vector(F.interpolate, x, size=8, mode="bilinear", antialias=True) == expected


def test_grid_sampling_weighs_four_taps_a_channel():
    x, grid = torch.randn(1, 5, 8, 8), torch.rand(1, 3, 3, 2)
    locate = 12  # a grid point: unnormalise, floor and weights in both dimensions
    assert vector(F.grid_sample, x, grid, align_corners=False) == 9 * (5 * 7 + locate)


# -- norms -----------------------------------------------------------------------------------------

ROWS, WIDTH = 6, 10
STATISTICS = 1 + 3  # add for the mean; subtract, square, add for the variance
NORMALISE = 2  # subtract the mean, divide by the deviation


@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(affine):
    norm = nn.LayerNorm(WIDTH, elementwise_affine=affine)
    steps = STATISTICS + NORMALISE + 2 * affine
    assert vector(norm, torch.randn(ROWS, WIDTH)) == steps * ROWS * WIDTH


@pytest.mark.parametrize("affine", [False, True])
def test_group_norm(affine):
    norm = nn.GroupNorm(2, 4, affine=affine)
    assert vector(norm, torch.randn(3, 4, 5)) == (STATISTICS + NORMALISE + 2 * affine) * 3 * 4 * 5


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm(training, affine):
    norm = nn.BatchNorm2d(4, affine=affine).train(training)
    x = torch.randn(3, 4, 5, 5)
    ledger = ledger_of(norm, x)
    kernel = next(k for k in ledger.kernels if "batch_norm" in k.name)
    steps = STATISTICS * training + NORMALISE + 2 * affine
    assert kernel.cost.vector_flops == steps * x.numel()
    # The statistics need all of the input before the first of it can be normalised.
    small = 4 * 4 * (4 if affine else 2)  # weight, bias, running mean and variance of 4 channels
    if training:
        assert sum(kernel.cost.read.values()) == 2 * 4 * x.numel() + small
    else:
        assert sum(kernel.cost.read.values()) == 4 * x.numel() + small


def test_batch_norm_backward_reads_gradient_and_input_twice():
    """Two sums over everything come before the first input gradient."""
    norm = nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    ledger = ledger_of(lambda: norm(x).backward(torch.ones(3, 4, 5, 5)))
    kernel = next(k for k in ledger.kernels if "batch_norm_backward" in k.name)
    # The weight, the running statistics and the saved ones, of 4 channels each.
    assert sum(kernel.cost.read.values()) == 4 * (4 * x.numel() + 5 * 4)
    dx, dw, db = layer_norm_gradients(with_weight=True)
    assert kernel.cost.vector_flops == (dx + dw + db) * x.numel()


def test_rms_norm_by_its_formula():
    """A row over its root mean square, times w: square, add, multiply, multiply."""
    x, w = meta(ROWS, WIDTH), meta(WIDTH)
    op = record(
        aten._fused_rms_norm.default, ref(ROWS, WIDTH), input=ref(ROWS, WIDTH), weight=ref(WIDTH)
    )
    assert work(op).vector == 4 * ROWS * WIDTH
    bare = record(aten._fused_rms_norm.default, ref(ROWS, WIDTH), input=ref(ROWS, WIDTH))
    assert work(bare).vector == 3 * ROWS * WIDTH
    assert vector(F.rms_norm, x, (WIDTH,), w) >= 4 * ROWS * WIDTH


def layer_norm_gradients(with_weight):
    """One element of the input gradient, weight gradient and bias gradient."""
    x, g, w, mean, rstd, sum_g, sum_gx = (Counted() for _ in range(7))
    Counted.reset()
    normal = (x - mean) * rstd
    gw = g * w if with_weight else g
    _ = sum_g + gw  # into the row's sums
    _ = sum_gx + gw * normal
    _ = (gw - sum_g - normal * sum_gx) * rstd
    dx = Counted.total()
    Counted.reset()
    _ = Counted() + g * normal
    dw = Counted.total()
    Counted.reset()
    _ = Counted() + g
    return dx, dw, Counted.total()


@pytest.mark.parametrize("mask", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_backward(mask, affine):
    dx, dw, db = layer_norm_gradients(affine)
    x = ref(ROWS, WIDTH)
    weight = {"weight": ref(WIDTH), "bias": ref(WIDTH)} if affine else {}
    op = record(
        aten.native_layer_norm_backward.default, x, grad_out=x, input=x, output_mask=mask, **weight
    )
    again = 2 * (mask[1] and not mask[0])  # the weight gradient alone needs x̂ too
    expected = dx * mask[0] + dw * mask[1] + again + db * mask[2]
    assert work(op).vector == expected * ROWS * WIDTH


def test_weight_norm():
    """|v| by square and add, then a factor."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    ledger = ledger_of(layer, torch.randn(2, 8))
    kernel = next(k for k in ledger.kernels if "weight_norm" in k.name)
    assert kernel.cost.vector_flops == 3 * 8 * 4


# -- softmax and losses ----------------------------------------------------------------------------


def test_softmax_and_its_backward():
    """Max, subtract, exponential, add, divide; and (g - sum(g·y))·y."""
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    for function in (F.softmax, F.log_softmax):
        ledger = ledger_of(lambda f=function: f(x, -1).sum().backward())
        forward = [k for k in ledger.kernels if "softmax" in k.name and k.phase == "forward"]
        backward = [k for k in ledger.kernels if "softmax" in k.name and k.phase == "backward"]
        assert [k.cost.vector_flops for k in forward] == [5 * ROWS * WIDTH]
        assert [k.cost.vector_flops for k in backward] == [4 * ROWS * WIDTH]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    ("loss", "steps"),
    [
        (F.mse_loss, 2),  # subtract, square
        (F.smooth_l1_loss, 5),  # subtract, absolute, compare, square, factor
        (F.huber_loss, 5),
        (F.soft_margin_loss, 4),  # log(1 + exp(-t·x)): multiply, exponential, add, logarithm
    ],
)
def test_losses_count_their_input_not_their_result(loss, steps, reduction):
    x, t = torch.rand(ROWS, WIDTH), torch.rand(ROWS, WIDTH)
    added = reduction != "none"
    assert vector(loss, x, t, reduction=reduction) == (steps + added) * ROWS * WIDTH


def test_nll_reads_one_number_a_target():
    x = torch.randn(ROWS, WIDTH).log_softmax(-1)
    ledger = ledger_of(F.nll_loss, x, torch.zeros(ROWS, dtype=torch.long))
    assert ledger.total().vector_flops == ROWS
    assert sum(ledger.total().read.values()) == ROWS * 4 + ROWS * 8


def test_ctc_walks_the_trellis():
    """Every time step meets every label, with blanks before, between and behind."""
    steps, batch, classes, labels = 9, 2, 5, 3
    x = torch.randn(steps, batch, classes).log_softmax(-1)
    targets = torch.ones(batch, labels, dtype=torch.long)
    ledger = ledger_of(aten._ctc_loss, x, targets, [steps] * batch, [labels] * batch, 0, False)
    assert ledger.total().vector_flops == 12 * steps * batch * (2 * labels + 1)


# -- reductions and scans --------------------------------------------------------------------------

REDUCTIONS = {
    "sum": (lambda x: x.sum(), 1, "reduction"),
    "sum of rows": (lambda x: x.sum(-1), 1, "row"),
    "sum of columns": (lambda x: x.sum(0), 1, "reduction"),
    "sum of both": (lambda x: x.sum((0, 1)), 1, "reduction"),
    "rows kept": (lambda x: x.mean(1, keepdim=True), 1, "row"),
    "maximum and place": (lambda x: x.max(-1), 1, "row"),
    "maximum": (lambda x: x.max(), 1, "reduction"),
    "place": (lambda x: x.argmax(-1), 1, "row"),
    "any": (lambda x: x.any(), 1, "reduction"),
    "all of rows": (lambda x: x.all(-1), 1, "row"),
    "amax": (lambda x: x.amax((-1,)), 1, "row"),
    "minimum and maximum": (lambda x: torch.aminmax(x, dim=-1), 2, "row"),
    "variance": (lambda x: x.var(-1), 4, "row"),
    "deviation and mean": (lambda x: torch.std_mean(x, -1), 4, "row"),
    "norm": (lambda x: torch.linalg.vector_norm(x, dim=-1), 2, "row"),
    "norm of columns": (lambda x: torch.linalg.vector_norm(x, dim=0), 2, "reduction"),
    "logsumexp": (lambda x: torch.logsumexp(x, -1), 4, "row"),
    "product": (lambda x: x.prod(-1), 1, "row"),
    "nansum": (lambda x: x.nansum(), 1, "reduction"),
    "count": (lambda x: x.count_nonzero(), 1, "reduction"),
    "cumsum": (lambda x: x.cumsum(-1), 1, "row"),
    "cummax": (lambda x: x.cummax(-1), 1, "row"),
    "logcumsumexp": (lambda x: x.logcumsumexp(-1), 3, "row"),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_count_input_elements(name):
    """Square, so that no shape tells by accident which dimension is gone."""
    function, steps, kind = REDUCTIONS[name]
    ledger = ledger_of(function, torch.rand(8, 8))
    assert [k.cost.vector_flops for k in ledger.kernels] == [steps * 64]
    assert [k.kind for k in ledger.kernels] == [kind]


def test_two_operand_maximum_is_elementwise():
    x, y = torch.rand(4, 5), torch.rand(4, 5)
    for function in (torch.max, torch.min, torch.maximum, torch.fmin):
        ledger = ledger_of(function, x, y)
        assert [k.kind for k in ledger.kernels] == ["pointwise"]
        assert ledger.total().vector_flops == 20


def test_a_complex_sum_adds_twice():
    x = torch.randn(7, dtype=torch.complex64)
    assert vector(torch.sum, x) == 2 * 7


# -- elementwise -----------------------------------------------------------------------------------


def test_complex_elementwise_by_its_parts():
    x, y = torch.randn(5, dtype=torch.complex64), torch.randn(5, dtype=torch.complex64)
    assert vector(torch.mul, x, y) == (4 + 2) * 5
    assert vector(torch.add, x, y) == 2 * 5
    assert vector(torch.mul, x, 2.0) == 2 * 5
    assert vector(torch.mul, x, torch.randn(5)) == 2 * 5
    assert vector(torch.div, x, y) == (6 + 3 + 2) * 5  # a·conj(b), |b|², two divisions
    assert vector(torch.abs, x) == 4 * 5  # two squares, add, root
    assert vector(torch.exp, x) == 5 * 5  # exp, sin, cos, two multiplies


@pytest.mark.parametrize(
    ("function", "steps"),
    [
        (lambda x: x + x, 1),
        (lambda x: torch.add(x, x, alpha=2), 2),
        (lambda x: x.clamp(0, 1), 2),
        (lambda x: x.clamp(min=0), 1),
        (lambda x: x.addcmul(x, x, value=0.5), 3),
        (lambda x: torch.lerp(x, x, 0.3), 3),
        (F.silu, 4),
        (F.leaky_relu, 2),
        (lambda x: torch.where(x > 0, x, x), 1),
        (lambda x: x.to(torch.bfloat16), 0),
        (lambda x: torch.cat([x, x]), 0),
        (lambda x: F.pad(x, (1, 1)), 0),
        (lambda x: x.repeat(2, 3), 0),
        (lambda x: F.pixel_shuffle(x.view(1, 4, 2, 3), 2), 0),
    ],
)
def test_elementwise_steps(function, steps):
    assert vector(function, torch.rand(4, 6)) == steps * 24


def test_quantising_takes_four_steps_and_back_two():
    x, packed = ref(4, 6), ref(4, 6, dtype="qint8")
    there = record(aten.quantize_per_tensor.default, packed, self=x, scale=0.1, dtype="qint8")
    back = record(aten.dequantize.self, x, self=packed)
    assert (work(there).vector, work(back).vector) == (4 * 24, 2 * 24)
    assert (read_bytes(there), written_bytes(there)) == (4 * 24, 24)


def test_random_numbers_count_one_each():
    assert vector(torch.randn, 4, 6) == 24
    assert vector(torch.empty(4, 6).normal_) == 24
    assert vector(torch.bernoulli, torch.rand(4, 6)) == 2 * 24  # and the comparison
