"""Formulas against arithmetic on a chip with round numbers."""

import numpy as np
import pytest
from simple_chip import (
    COLLECTIVE,
    DECODE,
    ELEMENTWISE,
    FP8,
    GEMM,
    GROUPED,
    PREFILL,
    RATES,
    STEADY,
)

from tracer.machine.kernels import (
    Cached,
    Prompt,
    collective,
    decode,
    elementwise,
    gemm,
    gemm_fp8,
    layer,
    prefill,
    product,
    quantise,
)


def approx(value):
    return pytest.approx(value, rel=1e-9)


def test_gemm_bound_by_memory():
    e = gemm(640, 640, 1024, RATES, GEMM, STEADY)
    # (640·1024 + 1024·640 + 640·640) elements of 2 bytes at half of 1 TB/s.
    moved = 2 * (1_310_720 + 409_600)
    assert e.memory == approx(moved / 5e11)
    # 10 x 10 tiles on 100 SMs, one wave: 2·64·64 FLOP an element of k at 5 TFLOP/s an SM.
    assert e.compute == approx((1024 + 64) * 2 * 64 * 64 / 5e12)
    assert e.seconds == approx(1e-6 + moved / 5e11)


def test_gemm_bound_by_arithmetic_in_four_waves():
    fast = RATES._replace(memory=1e18)
    e = gemm(1280, 1280, 1024, fast, GEMM, STEADY)  # 400 tiles on 100 SMs
    assert e.seconds == approx(1e-6 + 4 * (1024 + 64) * 2 * 64 * 64 / 5e12 + 0.0)


def test_gemm_splits_a_long_k_that_one_tile_would_serialise():
    fast = RATES._replace(memory=1e18)
    e = gemm(64, 64, 65536, fast, GEMM, STEADY)
    # 64 splits at most: 65536 / 64 elements of k each, partial sums of 4 bytes, a second launch.
    share = (65536 / 64 + 64) * 2 * 64 * 64 / 5e12
    assert e.seconds == approx(1e-6 + share + 64 * 4 * 64 * 64 / 5e17 + 1e-6)


def test_gemm_where_the_shorter_resource_is_not_hidden():
    serial = GEMM._replace(serial=1.0)
    e = gemm(640, 640, 1024, RATES, serial, STEADY)
    hi, lo = max(e.compute, e.memory), min(e.compute, e.memory)
    assert e.seconds == approx(1e-6 + hi + lo * lo / hi)  # one wave
    e = gemm(1920, 640, 1024, RATES, serial, STEADY)  # three waves hide half of it
    hi, lo = max(e.compute, e.memory), min(e.compute, e.memory)
    assert e.seconds == approx(1e-6 + hi + lo * lo / hi / 2)


def test_clock_sag_of_a_kernel_that_runs_for_the_settling_time():
    fast = RATES._replace(memory=1e18)
    base = gemm(64 * 100, 64, 610_000, fast, GEMM, STEADY).compute
    sagged = gemm(64 * 100, 64, 610_000, fast, GEMM, STEADY._replace(sag=0.2, settle=base)).compute
    assert sagged == approx(base * 1.1)  # half of the sag


def test_fp8_tiles_by_rows():
    fast = RATES._replace(memory=1e18)
    # 64 rows: one tile of 64 x 64. 256 rows: 2 x 1 tiles of 128 x 128, four times as long each.
    one = gemm_fp8(64, 64, 4096, fast, FP8, STEADY, 0.0).compute
    wide = gemm_fp8(256, 128, 4096, fast, FP8, STEADY, 0.0).compute
    assert one == approx((4096 + 64) * 2 * 64 * 64 / 5e12)
    assert wide == approx(4 * one)


def test_quantise():
    # 1000 x 1000 elements, 2 a cycle and SM, 1e11 SM cycles a second; 3 bytes each at half rate.
    assert quantise(1000, 1000, RATES, FP8) == approx(1e6 / 2e11 + 3e6 / 5e11)
    # By block: 1000 rows are ten for each SM; ten rows still take as long as one.
    assert quantise(1000, 1000, RATES, FP8, block=True) == approx(10 * 1000 / 2e9)
    assert quantise(10, 1000, RATES, FP8, block=True) == approx(1000 / 2e9)


def test_prefill_of_one_long_row():
    # One head, 1024 causal queries: 8 x 8 blocks, the last row has 8, one SM does them in turn.
    x = Prompt(1, 1, 1, 1024, 1024, 64, 64, share=1025 / 2048)
    e = prefill(x, RATES, PREFILL, STEADY)
    block = 2 * 128 * 128 * 128 / 5e12 + 0.5 * 128 * 128 / 16 / 1e9
    assert e.compute == approx(8 * block)
    rows = 2 * 128 * (1024 + 1024)  # bytes of q, output, k, v
    assert e.seconds == approx(1e-6 + 8 * block + rows / (10 * 1e11))


def test_prefill_that_fills_the_chip():
    x = Prompt(10, 100, 100, 1024, 1024, 64, 64, share=1.0)  # not causal: 64 blocks a head
    e = prefill(x, RATES, PREFILL, STEADY)
    block = 2 * 128 * 128 * 128 / 5e12 + 0.5 * 128 * 128 / 16 / 1e9
    assert e.compute == approx(1000 * 64 / 100 * block)
    # Older instructions: half of the rate and every exponential exposed.
    slow = 2 * 128 * 128 * 128 / 2.5e12 + 128 * 128 / 16 / 1e9
    portable = prefill(x, RATES, PREFILL, STEADY, portable=True)
    assert portable.compute == approx(640 * slow)


def test_decode_reads_its_cache_once():
    nbytes = 32 * 8 * 4032 * 2 * 128 * 2
    e = decode(Cached(32, 8, 4, 4032, 128, 128, nbytes), RATES, DECODE)
    latency = 1e-6 + 1e-6 * 6  # log2(1 + 4032 / 64) = 6
    rows = 2 * 32 * 8 * 4 * 256
    assert e.seconds == approx(latency + nbytes / 5e11 + rows / (10 * 1e11))


def test_absorbed_mla_is_bound_by_padded_products():
    x = Cached(1, 1, 65, 4032, 576, 512, 4032 * 576 * 2)
    slow = RATES._replace(matrix=1e13)
    e = decode(x, slow, DECODE)
    assert e.compute == approx(2 * 128 * 4032 * (576 + 512) / 5e12)  # 65 rows fill 2 x 64
    assert e.seconds == approx(7e-6 + e.compute + 2 * 65 * 1088 / 1e12)


def test_grouped_pads_rows_and_reads_only_experts_that_are_hit():
    # 20 rows over 10 experts: 2 each, padded to 16.
    e = product(20, 10, 100, 50, RATES, GROUPED, STEADY, 2e-6, moved=12345)
    compute, memory = 2 * 160 * 100 * 50 / 5e14, 12345 / 5e11
    assert e.seconds == approx(2e-6 + np.hypot(compute, memory))


def test_expert_layer():
    e = layer(2, 4, 256, 1000, 500, RATES, GROUPED, STEADY)  # 8 rows hit 8 of 256 experts
    moved = 8 * 3 * 1000 * 500 + 8 * (3 * 1000 + 5 * 500)
    compute = 2 * (8 * 16) * 3 * 1000 * 500 / 5e14
    passes = 8 * 1000 / (0.5 * 1e11)
    assert e.seconds == approx(1e-6 + np.hypot(moved / 5e11, compute) + passes)


def test_elementwise_by_access():
    seconds = elementwise(4e6, 1e6, np.arange(4.0), RATES, ELEMENTWISE).seconds - 1e-6
    # 4 MB at 0.5 TB/s; a million elements at 1, 0.5 and 2 a cycle and SM.
    assert seconds == approx([8e-6, 10e-6, 20e-6, 8e-6])


def test_collectives_over_links_and_switch():
    def seconds(reduces, ranks, rates=RATES):
        return collective(8e6, ranks, reduces, rates, COLLECTIVE).seconds

    # 8 MB, links at half of 100 GB/s. All-gather: (n-1)/n and a hop a further rank.
    assert seconds(0.0, 2) == approx(1e-6 + 1e-6 + 4e6 / 5e10)
    assert seconds(0.0, 8) == approx(1e-6 + 7e-6 + 7e6 / 5e10)
    # All-reduce: twice that over links; 1 + 1/n where the switch adds, from four ranks on.
    assert seconds(1.0, 2) == approx(1e-6 + 2e-6 + 8e6 / 5e10)
    assert seconds(1.0, 8) == approx(1e-6 + 14e-6 + 9e6 / 5e10)
    assert seconds(1.0, 8, RATES._replace(switch=False)) == approx(1e-6 + 14e-6 + 14e6 / 5e10)


def test_numbers_and_arrays_agree():
    m, n, k = np.array([1.0, 64, 5000]), np.array([128.0, 64, 3000]), np.array([128.0, 65536, 700])
    together = gemm(m, n, k, RATES, GEMM, STEADY).seconds
    alone = [gemm(*shape, RATES, GEMM, STEADY).seconds for shape in zip(m, n, k, strict=True)]
    assert together == approx(alone)
