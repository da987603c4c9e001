"""From recorded ops to shapes, and from shapes to a step."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import tracer
from tracer.capture import Capture
from tracer.cost import price
from tracer.hardware import load_chip
from tracer.machine import Timing, time_ledger
from tracer.machine.shapes import shape_of
from tracer.models import fp8

H200 = load_chip("h200_sxm")


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


def ledger_of(function, *inputs, execution="naive", **options):
    with torch.no_grad(), Capture(**options) as capture:
        function(*inputs)
    return price(capture.trace, execution=execution)


def quantised(x_MK):
    """E4M3 values and scales of a tensor that is scaled along its rows, transposed."""
    rows, columns = x_MK.shape
    return empty(columns, rows, dtype=fp8.E4M3), empty(columns, rows // 128, dtype=torch.float32)


def shapes_of(function, *inputs, **options):
    ledger = ledger_of(function, *inputs, **options)
    return [shape_of(ledger, kernel) for kernel in ledger.kernels]


def only(function, *inputs, **options):
    (shape,) = shapes_of(function, *inputs, **options)
    return shape


def test_products():
    shape = only(torch.mm, empty(64, 128), empty(128, 256))
    moved = 2 * (64 * 128 + 128 * 256 + 64 * 256)
    expected = {"m": 64, "n": 256, "k": 128, "batch": 1, "moved": moved}
    assert (shape.family, shape.precision, dict(shape.values)) == ("gemm", "bf16", expected)
    shape = only(torch.addmm, empty(256), empty(64, 128), empty(128, 256))
    assert (shape.values["m"], shape.values["n"], shape.values["k"]) == (64, 256, 128)
    shape = only(torch.bmm, empty(8, 64, 128), empty(8, 128, 256))
    assert [shape.values[name] for name in ("batch", "m", "n", "k")] == [8, 64, 256, 128]
    shape = only(torch.mv, empty(64, 128), empty(128))
    assert [shape.values[name] for name in ("m", "n", "k")] == [64, 1, 128]


def test_a_convolution_is_a_product_over_pixels():
    shape = only(torch.nn.functional.conv2d, empty(2, 16, 10, 10), empty(32, 16, 3, 3))
    # 8 x 8 pixels of 2 images, 32 channels out, 3 x 3 x 16 in.
    assert [shape.values[name] for name in ("m", "n", "k")] == [128, 32, 144]


def test_fp8_by_tensor_and_by_block():
    a, b = empty(64, 512, dtype=torch.float8_e4m3fn), empty(256, 512, dtype=torch.float8_e4m3fn)

    def product(scale_a, scale_b):
        return torch._scaled_mm(a, b.t(), scale_a, scale_b, out_dtype=torch.bfloat16)

    one = empty(1, dtype=torch.float32)
    shape = only(product, one, one)
    assert (shape.family, shape.precision) == ("gemm_fp8", "fp8")
    row, column = empty(64, 1, dtype=torch.float32), empty(1, 256, dtype=torch.float32)
    assert only(product, row, column).family == "gemm_fp8"
    rows = empty(4, 64, dtype=torch.float32).t()  # a scale for every 128 of 512 elements
    columns = empty(4, 2, dtype=torch.float32)
    assert only(product, rows, columns).family == "gemm_fp8_block"


def test_causal_prefill():
    q, k = empty(2, 8, 1024, 128), empty(2, 8, 1024, 128)
    shape = only(lambda: scaled_dot_product_attention(q, k, k, is_causal=True), attention="fused")
    assert shape.family == "attention_prefill"
    x = shape.values
    assert (x["batch"], x["heads"], x["kv_heads"], x["queries"], x["keys"]) == (2, 8, 8, 1024, 1024)
    assert x["share"] == pytest.approx(1025 / 2048)
    assert x["passes"] == 1
    shape = only(lambda: scaled_dot_product_attention(q, k, k), attention="fused")
    assert shape.values["share"] == 1


def test_the_end_of_a_sequence_over_all_of_its_keys():
    """128·384 + 128·129/2 of 128·512 pairs; the kernels behind it have tokens before heads."""
    from tracer.models import context_parallel  # noqa: F401 - defines the op

    def suffix(q, k, v):
        return torch.ops.deepseek.suffix_attention(q, k, v, None)

    q, k = empty(2, 8, 128, 192), empty(2, 8, 512, 192)
    for size_v, family in ((128, "mla_prefill"), (192, "attention_prefill")):
        shape = only(suffix, q, k, empty(2, 8, 512, size_v), attention="fused")
        assert shape.family == family
        found = [shape.values[n] for n in ("batch", "heads", "queries", "keys", "size", "size_v")]
        assert found == [2, 8, 128, 512, 192, size_v]
        share = (128 * 384 + 128 * 129 / 2) / (128 * 512)
        assert shape.values["share"] == pytest.approx(share)


def test_decode_streams_its_cache():
    q, k, v = empty(2, 8, 1, 128), empty(2, 8, 1024, 128), empty(2, 8, 1024, 128)
    shape = only(lambda: scaled_dot_product_attention(q, k, v), attention="fused")
    assert shape.family == "attention_decode"
    x = shape.values
    assert (x["batch"], x["kv_heads"], x["rows"], x["keys"]) == (2, 8, 1, 1024)
    assert x["nbytes"] == pytest.approx(2 * k.numel() * 2, rel=0.01)
    latent, absorbed = empty(2, 1, 1024, 576), empty(2, 1, 128, 576)
    shape = only(
        lambda: scaled_dot_product_attention(absorbed, latent, latent[..., :512]), attention="fused"
    )
    assert shape.family == "mla_decode"
    assert shape.values["rows"] == 128
    # The latent is key and value, and is read once.
    assert shape.values["nbytes"] == pytest.approx(2 * 1024 * 576 * 2, rel=0.01)


def test_backward_repeats_the_scores():
    q, k, v = (empty(2, 8, 1024, 128).requires_grad_() for _ in range(3))
    with Capture(attention="fused") as capture:
        scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
    ledger = price(capture.trace, execution="naive")
    shapes = [shape_of(ledger, kernel) for kernel in ledger.kernels]
    forward, backward = [s for s in shapes if s.family == "attention_prefill"]
    assert backward.values["passes"] == pytest.approx(2.5)
    assert backward.values["share"] == pytest.approx(forward.values["share"])


def test_experts_that_are_read():
    x, w = empty(64, 512), empty(16, 512, 256)
    ends = torch.empty(16, dtype=torch.int32, device="meta")
    shape = only(lambda: torch._grouped_mm(x, w, offs=ends))
    assert shape.family == "grouped"
    values = shape.values
    assert (values["rows"], values["k"], values["n"]) == (64, 512, 256)
    # 64 rows of one expert each: 16·(1 - (15/16)^64) experts are hit, if routing is uniform.
    assert values["active"] == pytest.approx(16 * (1 - (15 / 16) ** 64), rel=0.01)


def test_weight_gradients_of_experts():
    dy, x = empty(256, 512), empty(256, 1024)
    ends = torch.empty(4, dtype=torch.int32, device="meta")
    shape = only(lambda: torch._grouped_mm(dy.t(), x, offs=ends))  # [4, 512, 1024]
    assert (shape.family, shape.precision) == ("gemm", "bf16")
    small = only(lambda: fp8.grouped_wgrad(*quantised(dy), *quantised(x), ends))
    # Block-scaled operands: not at a BF16 product's share of twice its peak.
    assert (small.family, small.precision) == ("gemm_fp8_block", "fp8")
    for found in (shape, small):
        names = ("batch", "m", "n", "k")
        assert [found.values[name] for name in names] == [4, 512, 1024, 64]


ACCESS = ("contiguous", "scalar", "gather", "reduce")


@pytest.mark.parametrize(
    ("function", "naive", "compiled"),
    [
        (lambda x: x + 1, "contiguous", "contiguous"),
        (lambda x: x * x[:1], "scalar", "contiguous"),  # broadcast
        (lambda x: x.t() + 1, "scalar", "contiguous"),  # strided
        (lambda x: x.t().contiguous(), "scalar", "contiguous"),
        (lambda x: torch.cat([x, x]), "gather", "contiguous"),
        (lambda x: x.sum(-1), "reduce", "contiguous"),
        (lambda x: x.softmax(-1), "contiguous", "contiguous"),
        (lambda x: x[torch.empty(5, dtype=torch.long, device="meta")], "gather", "gather"),
    ],
)
def test_access_to_memory(function, naive, compiled):
    for execution, expected in (("naive", naive), ("efficient", compiled)):
        shape = shapes_of(function, empty(64, 128), execution=execution)[-1]
        assert shape.family == "elementwise"
        assert ACCESS[int(shape.values["access"])] == expected


def test_a_gather_counts_rows_and_not_the_table():
    table, index = empty(50_000, 128), torch.empty(32, dtype=torch.long, device="meta")
    shape = only(lambda: torch.nn.functional.embedding(index, table))
    assert shape.values["elements"] <= 2 * 32 * 128


@pytest.fixture(scope="module")
def ledger():
    model = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True).to("meta", torch.bfloat16)
    with Capture(model, attention="fused") as capture:
        model(empty(4, 256, 512)).sum().backward()
    return price(capture.trace)


@pytest.mark.parametrize("chip_id", ["h200_sxm", "b200_sxm", "mi300x", "tpu7x", "l40s"])
def test_a_step_is_no_faster_than_its_bound(ledger, chip_id):
    times = time_ledger(ledger, load_chip(chip_id))
    plain = time_ledger(ledger, load_chip(chip_id), Timing(model="roofline", launch=0))
    assert times.step >= plain.step >= times.bound
    assert times.bound == pytest.approx(plain.bound)
    for kernel, roof in zip(times.kernels, plain.kernels, strict=True):
        assert kernel.total >= roof.total * (1 - 1e-9)
        assert kernel.total >= kernel.launch
    assert sum(times.shares().values()) == pytest.approx(1)
    assert "constants" in times.notes()[0]


def test_the_roofline_is_still_there(ledger):
    plain = time_ledger(ledger, H200, Timing(model="roofline"))
    assert plain.interval() is None
    assert plain.tornado() == []
    assert plain.notes() == []
    assert plain.step == pytest.approx(
        sum(k.launch + max(k.matrix, k.vector, k.memory) for k in plain.kernels)
    )


def test_eager_mode_is_the_larger_of_host_and_device(ledger):
    graph = time_ledger(ledger, H200)
    slow = time_ledger(ledger, H200, Timing(host=50e-6))
    assert slow.device == graph.device == graph.step
    assert slow.step == pytest.approx(50e-6 * slow.launches)
    assert slow.regime == "latency"
    assert time_ledger(ledger, H200, Timing(host=1e-12)).step == graph.step


def test_less_of_a_chip_takes_longer(ledger):
    step = time_ledger(ledger, H200).step
    for less in (
        Timing(clock=0.7), Timing(reserved_sms=20), Timing(matmul_efficiency=0.5),
        Timing(memory_efficiency=0.5), Timing(attention="portable"),
    ):  # fmt: skip
        assert time_ledger(ledger, H200, less).step > step
        assert len(less.notes()) > 1 or "%" in less.notes()[0]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"model": "magic"}, "model='magic': choose 'kernels' or 'roofline'"),
        ({"attention": "slow"}, "choose 'best' or 'portable'"),
        ({"clock": 0}, "clock=0: give a share"),
        ({"host": -1}, "host=-1: give seconds"),
        ({"reserved_sms": -2}, "reserved_sms=-2"),
    ],
)
def test_inputs_that_make_no_sense(values, fault):
    with pytest.raises(tracer.UserError, match=fault.replace("(", r"\(")):
        Timing(**values)


def test_interval_holds_the_step_and_its_drivers_are_sorted(ledger):
    times = time_ledger(ledger, H200)
    low, high = times.interval()
    assert 0 < low < times.step < high < 3 * times.step
    swings = [cause.swing for cause in times.tornado()]
    assert swings == sorted(swings, reverse=True)
    names = [cause.name for cause in times.tornado()]
    assert len(set(names)) == len(names)
    assert "gemm.launch" in names
    # A chip that the constants were not measured on is less certain.
    other = time_ledger(ledger, load_chip("b200_sxm"))
    low_b, high_b = other.interval()
    assert (high_b - low_b) / other.step > (high - low) / times.step


def test_a_driver_is_the_step_with_that_constant_moved(ledger):
    from tracer.machine.calibration import calibration_of
    from tracer.machine.model import evaluate

    times = time_ledger(ledger, H200)
    cause = next(d for d in times.tornado() if d.name == "gemm.launch")
    cal = calibration_of(H200)
    spread = cal.spreads["gemm"]["launch"]
    import math

    longer = cal.with_value("gemm", "launch", cal["gemm"].launch * math.exp(1.2816 * spread))
    step = float(evaluate(times.plan, longer).seconds @ times.plan.launches)
    assert cause.high == pytest.approx(step)


def test_kernels_that_nobody_measured_are_less_sure():
    """Products in FP32 and convolutions take the form of products in BF16: 15 % for a misfit."""

    def misfit(function, *inputs):
        times = time_ledger(ledger_of(function, *inputs), H200, Timing())
        (driver,) = (d for d in times.tornado() if d.name == "gemm: form")
        return driver.swing / times.step

    size = 2 * 1.2816 * 0.15  # P10 to P90 of one kernel that is the step
    full = empty(4096, 4096, dtype=torch.float32)
    assert misfit(torch.mm, full, full) == pytest.approx(size, rel=1e-3)
    image, weight = empty(16, 64, 56, 56), empty(64, 64, 3, 3)
    assert misfit(torch.conv2d, image, weight) == pytest.approx(size, rel=1e-3)
    assert misfit(torch.mm, empty(4096, 4096), empty(4096, 4096)) < size / 2
