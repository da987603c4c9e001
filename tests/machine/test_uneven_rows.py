"""Kernels of routed rows on the busiest rank: what grows with rows, and what with experts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tracer.capture import Capture
from tracer.cost import price
from tracer.hardware import load_chip
from tracer.machine import Timing, time_ledger
from tracer.machine.uneven import EVEN, RowKernels, Uneven

H100 = load_chip("h100_sxm")
ROOFLINE = Timing(model="roofline")
EXPERTS, K, N = 8, 1024, 4096
WEIGHTS = EXPERTS * K * N * 2  # 67 MB: 20 us of 3.35 TB/s


def timed(rows: int, timing: Timing, backward: bool = False):
    """The grouped product of `rows` over 8 experts, and a copy of its result."""
    x = torch.empty(rows, K, dtype=torch.bfloat16, device="meta", requires_grad=backward)
    w = torch.empty(EXPERTS, K, N, dtype=torch.bfloat16, device="meta", requires_grad=backward)
    ends = torch.empty(EXPERTS, dtype=torch.int32, device="meta")
    with Capture(nn.Identity()) as capture:
        out = torch._grouped_mm(x, w, ends)
        if backward:
            out.backward(torch.empty_like(out))
        kept = out.clone()
        del kept
    ledger = price(capture.trace)
    return time_ledger(ledger, H100, timing), ledger.kernels


def factor(rows: int, uneven: Uneven, timing: Timing = ROOFLINE) -> float:
    times, kernels = timed(rows, timing)
    found = RowKernels(times, kernels).factors(uneven)
    return found[0]


def test_even_rows_change_nothing():
    for timing in (Timing(), ROOFLINE):
        times, kernels = timed(256, timing, backward=True)
        assert RowKernels(times, kernels).factors(EVEN) == [1.0] * len(kernels)


@pytest.mark.parametrize("share", [1.25, 2.0])
def test_a_product_that_computes_takes_all_of_the_rows(share):
    # 65,536 rows: 0.55 TFLOP take 0.56 ms of the peak, weights 20 us. Launches stay.
    rows, launch = 65_536, 2.6e-6
    alone = launch + 2 * rows * K * N / H100.peak["bf16"]
    expected = (alone + (share - 1) * (alone - launch)) / alone
    assert factor(rows, Uneven(share, 1.0)) == pytest.approx(expected, rel=1e-3)
    # The kernel model pads to whole tiles and sags with the length: near, and not the same.
    assert factor(rows, Uneven(share, 1.0), Timing()) == pytest.approx(share, rel=0.03)


def test_a_product_that_reads_weights_takes_the_experts():
    # 64 rows: 0.66 MB beside 67 MB of weights, of which even routing reads nearly all; 32 B say
    # where experts end.
    rows, launch = 64, 2.6e-6
    weights, moved = WEIGHTS * (1 - (7 / 8) ** rows), rows * (K + N) * 2 + 32
    even = launch + (weights + moved) / H100.memory_bandwidth
    twice = launch + (weights + 2 * moved) / H100.memory_bandwidth
    half = launch + (weights / 2 + moved) / H100.memory_bandwidth
    assert factor(rows, Uneven(2.0, 1.0)) == pytest.approx(twice / even, rel=1e-6)
    assert factor(rows, Uneven(1.0, 0.5)) == pytest.approx(half / even, rel=1e-6)
    # Twice the rows are 1 % more bytes: the step does not wait for them.
    assert factor(rows, Uneven(2.0, 1.0), Timing()) < 1.03
    assert 0.5 < factor(rows, Uneven(1.0, 0.5), Timing()) < 0.65


def test_gradients_of_experts_are_written_once_however_many_rows():
    times, kernels = timed(64, ROOFLINE, backward=True)
    ops = times.ledger.trace.ops
    factors = RowKernels(times, kernels).factors(Uneven(2.0, 1.0))
    found = [
        value for kernel, value in zip(kernels, factors, strict=True)
        if kernel.kind == "grouped_gemm" and len(ops[kernel.parts[0].op].outputs[0].shape) == 3
    ]  # fmt: skip
    moved = 64 * (K + N) * 2
    once, twice = (2.6e-6 + (WEIGHTS + n * moved) / H100.memory_bandwidth for n in (1, 2))
    assert found == [pytest.approx(twice / once, rel=1e-6)]


def test_copies_of_rows_take_all_of_the_rows():
    times, kernels = timed(65_536, ROOFLINE)
    copied = RowKernels(times, kernels).factors(Uneven(1.5, 1.0))[-1]
    moved = 2 * 65_536 * N * 2 / H100.memory_bandwidth
    assert copied == pytest.approx((2.6e-6 + 1.5 * moved) / (2.6e-6 + moved), rel=1e-6)
