"""Seconds by hand on a made-up chip: launch + max(compute, memory), summed, and its lower bound."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tracer
from tracer.capture import Trace
from tracer.cost import Kernel, Ledger, Part
from tracer.cost.work import GEMM, Cost
from tracer.hardware import Chip
from tracer.machine import time_ledger


def toy(**changes):
    """1 PFLOP/s BF16, 100 TFLOP/s FP32 matrix, 10 TFLOP/s vector, 1 TB/s, 1 GB."""
    values = {
        "id": "toy", "name": "Toy", "vendor": "Test", "generation": "none",
        "peak": {"bf16": 1e15, "fp32": 1e14}, "vector": {"fp32": 1e13},
        "memory_capacity": 1e9, "memory_bandwidth": 1e12,
    }  # fmt: skip
    return Chip(**{**values, **changes})


def roofline(**values):
    """The plain model, whatever the default is."""
    extra = {"model": "roofline"} if "model" in tracer.Timing.names() else {}
    return tracer.Timing(**extra, **values)


def kernel(cost, launches=1, name="k"):
    return Kernel(name, GEMM, "forward", launches, (Part(0, "m", "exact", cost),), cost)


def ledger_of(*kernels):
    return Ledger(Trace(), tracer.Conventions(), "naive", tuple(kernels))


def cost(flops=0, vector=0, nbytes=0, precision="bf16", recompute=0):
    return Cost(
        {precision: flops} if flops else {},
        vector,
        {precision: recompute} if recompute else {},
        {"weights": nbytes} if nbytes else {},
    )


def times(*kernels, chip=None, **timing):
    return time_ledger(ledger_of(*kernels), chip or toy(), roofline(**timing))


def test_a_compute_bound_kernel():
    t = times(kernel(cost(flops=10**12, nbytes=10**6)), launch=2e-6)
    assert t.step == pytest.approx(2e-6 + 10**12 / 1e15)
    assert (t.compute, t.memory) == (pytest.approx(1e-3), pytest.approx(1e-6))
    assert t.bound == pytest.approx(1e-3)
    assert t.regime == "compute"
    assert t.kernels[0].bound == "compute"


def test_a_memory_bound_kernel():
    t = times(kernel(cost(flops=10**9, nbytes=10**9)), launch=2e-6)
    assert t.step == pytest.approx(2e-6 + 1e-3)
    assert t.regime == "memory"
    assert t.kernels[0].bound == "memory"


def test_a_latency_bound_kernel():
    t = times(kernel(cost(flops=10**6, nbytes=10**3)), launch=2e-6)
    assert t.step == pytest.approx(2e-6 + 1e-9)
    assert t.regime == "latency"
    assert t.kernels[0].bound == "latency"
    assert t.bound == pytest.approx(1e-9)  # the ideal knows no launches


def test_vector_work_runs_beside_matrix_work():
    t = times(kernel(cost(flops=10**12, vector=10**10)), launch=0)
    assert t.step == pytest.approx(1e-3)  # both take 1 ms
    t = times(kernel(cost(flops=10**12, vector=3 * 10**10)), launch=0)
    assert t.step == pytest.approx(3e-3)


def test_recomputation_takes_time_although_it_is_not_counted():
    t = times(kernel(cost(flops=10**12, recompute=10**12)), launch=0)
    assert t.step == pytest.approx(2e-3)


def test_precisions_add_up_each_at_its_rate():
    mixed = Cost({"bf16": 10**12, "fp32": 10**12}, 0, {}, {}, {})
    assert times(kernel(mixed), launch=0).step == pytest.approx(1e-3 + 1e-2)


def test_every_launch_of_a_folded_kernel_counts():
    t = times(kernel(cost(nbytes=58 * 10**6), launches=58), launch=2e-6)
    assert t.step == pytest.approx(58 * 2e-6 + 58 * 1e-6)


def test_the_step_is_a_sum_of_maxima_and_the_bound_a_maximum_of_sums():
    a, b = cost(flops=10**12, nbytes=10**6), cost(flops=10**6, nbytes=10**9)
    t = times(kernel(a), kernel(b), launch=0)
    assert t.step == pytest.approx(1e-3 + 1e-3)
    assert t.bound == pytest.approx(1e-3, rel=2e-3)


def test_efficiencies_stretch_their_own_side():
    k = kernel(cost(flops=10**12, nbytes=10**8))
    assert times(k, launch=0, matmul_efficiency=0.5).step == pytest.approx(2e-3)
    assert times(k, launch=0, memory_efficiency=0.05).step == pytest.approx(2e-3)
    assert times(k, launch=0, memory_efficiency=0.5).step == pytest.approx(1e-3)


def test_fp32_products_run_at_the_rate_that_was_asked_for():
    k = kernel(cost(flops=10**12, precision="fp32"))
    assert times(k, launch=0).step == pytest.approx(1e-2)
    with_tf32 = toy(peak={"tf32": 5e14, "fp32": 1e14})
    assert times(k, chip=with_tf32, launch=0).step == pytest.approx(1e-2)
    assert times(k, chip=with_tf32, launch=0, fp32_matmul="tf32").step == pytest.approx(2e-3)
    without_matrix = toy(peak={"bf16": 1e15})  # the vector units do it
    assert times(k, chip=without_matrix, launch=0).step == pytest.approx(1e-1)


def test_a_precision_that_the_chip_lacks_is_an_error_with_those_it_has():
    k = kernel(cost(flops=10**12, precision="fp8"))
    with pytest.raises(tracer.UserError, match=r"Toy.*fp8.*bf16, fp32"):
        times(k)
    with pytest.raises(tracer.UserError, match="fp4"):
        times(kernel(cost(recompute=1, precision="fp4")))


def test_a_chip_without_vector_rates_is_limited_by_memory_there():
    t = times(kernel(cost(vector=10**12, nbytes=10**6)), chip=toy(vector={}), launch=0)
    assert t.step == pytest.approx(1e-6)


def test_shares_sum_to_one_and_split_the_launches_off():
    t = times(
        kernel(cost(flops=10**10)),  # 10 us
        kernel(cost(nbytes=5 * 10**6)),  # 5 us
        launch=2.5e-6,
    )
    shares = t.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == {
        "compute": pytest.approx(0.5), "memory": pytest.approx(0.25), "network": 0,
        "latency": pytest.approx(0.25),
    }  # fmt: skip


def test_nothing_takes_no_time():
    t = times()
    assert (t.step, t.bound) == (0, 0)
    assert all(share == 0 for share in t.shares().values())


def test_seconds_by_part_sum_to_the_step():
    parts = (Part(0, "a", "exact", cost(nbytes=3 * 10**6)), Part(1, "b", "exact",
             cost(nbytes=10**6)))  # fmt: skip
    fused = Kernel("fused", GEMM, "forward", 1, parts, Cost.sum(p.cost for p in parts))
    free = Kernel("free", GEMM, "forward", 1, (Part(2, "c", "exact", Cost()), Part(
        3, "d", "exact", Cost())), Cost())  # fmt: skip
    t = time_ledger(ledger_of(fused, free), toy(), roofline(launch=4e-6))
    by = t.by(lambda k, number: k.kernel.parts[number].module)
    assert by == {
        "a": pytest.approx(0.75 * 8e-6), "b": pytest.approx(0.25 * 8e-6),
        "c": pytest.approx(2e-6), "d": pytest.approx(2e-6),
    }  # fmt: skip
    assert sum(by.values()) == pytest.approx(t.step)


numbers = st.integers(0, 10**15)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers, numbers, st.integers(1, 60)), max_size=8),
    st.floats(0, 1e-4),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
)
def test_the_step_is_never_below_the_ideal_bound(rows, launch, matmul, memory):
    kernels = [
        kernel(cost(flops=f, vector=v, nbytes=b, recompute=f // 3), n) for f, v, b, n in rows
    ]
    t = times(*kernels, launch=launch, matmul_efficiency=matmul, memory_efficiency=memory)
    launches = sum(n for *_, n in rows)
    assert t.step >= t.bound * (1 - 1e-12)
    assert t.step >= launches * launch * (1 - 1e-12)
    assert t.step <= (t.compute + sum(k.vector for k in t.kernels) + t.memory
                      + launches * launch) * (1 + 1e-12)  # fmt: skip
    assert t.bound == max(t.compute, t.memory, t.network)
    assert math.isfinite(t.step)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 10))
def test_a_chip_that_is_n_times_faster_is_n_times_faster(n):
    k = [kernel(cost(flops=10**12, vector=10**9, nbytes=10**9)), kernel(cost(nbytes=10**7))]
    fast = toy(peak={"bf16": n * 1e15}, vector={"fp32": n * 1e13}, memory_bandwidth=n * 1e12)
    assert times(*k, chip=fast, launch=0).step == pytest.approx(times(*k, launch=0).step / n)


@pytest.mark.parametrize("model", ["roofline", "default"])
@pytest.mark.parametrize("name", ["h200_sxm", "a100_sxm", "mi300x", "tpu_v5p", "rtx_4090"])
def test_real_chips_obey_the_bound(name, model):
    module = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 8))
    module = module.to("meta", torch.bfloat16)
    with tracer.trace(module) as t:
        module(torch.empty(512, 64, device="meta", dtype=torch.bfloat16)).sum().backward()
    timed = t.on(name, roofline() if model == "roofline" else None)
    assert timed.step >= timed.bound > 0
    assert timed.why()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("launch", -1e-6), ("launch", 1), ("launch", float("nan")), ("launch", float("inf")),
        ("matmul_efficiency", 0), ("matmul_efficiency", 1.01), ("matmul_efficiency", -1),
        ("matmul_efficiency", float("nan")), ("memory_efficiency", 0), ("memory_efficiency", 2),
        ("fp32_matmul", "bf16"), ("fp32_matmul", ""),
    ],
)  # fmt: skip
def test_bad_timing_names_the_field_and_the_value(field, value):
    with pytest.raises(tracer.UserError, match=field) as caught:
        tracer.Timing(**{field: value})
    assert str(value) in str(caught.value)


def test_notes_say_what_the_seconds_assume():
    assert "2.6 us" in roofline().notes()[0]
    assert "datasheet peaks" in roofline().notes()[0]
    derated = " ".join(roofline(matmul_efficiency=0.7, memory_efficiency=0.9).notes())
    assert "70%" in derated
    assert "90%" in derated
    assert any("TF32" in note for note in roofline(fp32_matmul="tf32").notes())


def test_a_chip_may_be_given_by_name_file_or_value(tmp_path):
    with tracer.trace() as t:
        torch.ones(4, 4) @ torch.ones(4, 4)
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "Mine"\nvendor = "Me"\ngeneration = "one"\n'
        '[peak]\nfp32 = { value = 1e14, source = "me" }\n'
        '[memory]\ncapacity = { value = 1e9, source = "me" }\n'
        'bandwidth = { value = 1e12, source = "me" }\n'
    )
    mine = t.on(str(file), roofline())
    assert mine.chip.name == "Mine"
    assert t.on(mine.chip, roofline()).step == mine.step
    assert t.on("H200-SXM").chip.id == "h200_sxm"
    with pytest.raises(tracer.UserError, match="did you mean"):
        t.on("h200_smx")
