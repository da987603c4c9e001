"""The closed form of a step against a concrete trace priced one by one, and against itself."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_models import CHIP, KERNELS, LAYERS, MODEL, ROOFLINE, by_hand, closed, model_of

from tracer.capture.program import load_program
from tracer.capture.workload import Workload, record
from tracer.cost import price
from tracer.hardware import load_chip
from tracer.machine import Timing
from tracer.machine.bounds import Box
from tracer.machine.parts import Bound, Maxima
from tracer.machine.symbolic import StepModel
from tracer.machine.tables import Values
from tracer.predict import predict
from tracer.study.engine import Job
from tracer.study.grid import Axis, Grid

EXACT = 1e-9


@pytest.mark.parametrize("timing", [ROOFLINE, KERNELS], ids=lambda t: t.model)
@pytest.mark.parametrize(
    ("phase", "dtype", "sizes"),
    [
        ("decode", "bf16", ((3, 700), (200, 9001))),
        ("prefill", "bf16", ((2, 129), (7, 5000))),
        ("decode", "fp8", ((65, 2048),)),
    ],
)
def test_equals_the_prediction_of_a_concrete_trace(phase, dtype, sizes, timing):
    program = load_program(MODEL, dtype=dtype, layers=LAYERS)
    step = closed(phase, dtype)
    rng = np.random.default_rng(len(phase))
    for batch, tokens in sizes:
        ledger = price(record(program, Workload(phase, batch, tokens, tokens)))
        chip = replace(
            CHIP,
            memory_bandwidth=CHIP.memory_bandwidth * rng.uniform(0.2, 5),
            peak={p: rate * rng.uniform(0.5, 2) for p, rate in CHIP.peak.items()},
            vector={**CHIP.vector, "fp32": CHIP.vector["fp32"] * rng.uniform(0.1, 2)},
            sm_count=int(rng.integers(80, 200)),
            clock=CHIP.clock * rng.uniform(0.7, 1.3),
        )
        assumed = replace(
            timing, launch=rng.uniform(0, 1e-5), clock=rng.uniform(0.5, 1), reserved_sms=16,
            matmul_efficiency=0.9, memory_efficiency=0.8, host=rng.choice([0.0, 1e-3]),
        )  # fmt: skip
        expected = predict(Workload(phase, batch, tokens, tokens), ledger, chip, assumed)
        point = {
            "B": batch, "L" if phase == "decode" else "S": tokens,
            "bandwidth": chip.memory_bandwidth, "vector": chip.vector["fp32"],
            "sms": chip.sm_count, "frequency": chip.clock,
            **{f"peak.{p}": rate for p, rate in chip.peak.items()},
            **{n: getattr(assumed, n) for n in ("launch", "clock", "reserved_sms", "host",
                                                "matmul_efficiency", "memory_efficiency")},
        }  # fmt: skip
        model = model_of(step, timing)
        found = model.seconds({name: np.full(3, value) for name, value in point.items()})
        assert found == pytest.approx(expected.times.step, rel=EXACT)
        answer = model.answer(point)
        assert answer.seconds[0] == pytest.approx(expected.times.step, rel=EXACT)
        for resource, share in expected.times.shares().items():
            part = getattr(answer, resource)[0] / answer.seconds[0]
            assert part == pytest.approx(share, abs=1e-9), resource
        assert answer.flops[0] == expected.cost.total_flops
        assert answer.moved[0] == pytest.approx(expected.cost.total_bytes, rel=1e-12)
        assert answer.ideal_compute[0] == pytest.approx(expected.times.compute, rel=EXACT)
        assert answer.ideal_memory[0] == pytest.approx(expected.times.memory, rel=EXACT)


@pytest.mark.parametrize("timing", [ROOFLINE, KERNELS], ids=lambda t: t.model)
def test_blocks_of_a_grid_equal_single_points(timing):
    model = model_of(closed(), timing)
    grid = Grid((Axis("launch", (1e-6, 5e-6)), Axis("B", tuple(range(2, 90))),
                 Axis("bandwidth", (1e12, 9e12)), Axis("L", (64, 4096, 70000))))  # fmt: skip
    blocks = model.over(grid.ranges())
    found = np.concatenate([blocks.seconds(b.axes, b.fixed, key=b.key).ravel() for b in grid])
    points = grid.points(np.arange(grid.size))
    assert found == pytest.approx(model.answer(points).seconds, rel=1e-12)


@pytest.mark.parametrize("chip", ["tpu_v5e", "gaudi3", "mi300x", "rtx_4090"])
def test_every_knob_of_any_chip_can_vary(chip):
    """Blocks of points are single points, whatever figures the chip's datasheet lacks."""
    step = closed()
    model = StepModel(step.rows, load_chip(chip), Timing(), step.scope, step.network)
    point = {"B": 16, "L": 512}
    for knob in (model.names - {"B", "L", "EP"}) & model.defaults.keys():
        values = [model.defaults[knob] * factor for factor in (0.5, 1.0)]
        both = model.seconds({**point, knob: np.array(values)})
        single = [float(model.seconds({**point, knob: value})[0]) for value in values]
        assert list(both) == pytest.approx(single, rel=1e-12), knob


def test_by_hand():
    _, model = by_hand()
    # B=10: ten products of 10^10 FLOPs (10 us) and 10^8 + 10^4 bytes (100.01 us), a stream of
    # 10^7 bytes (10 us), eleven launches of 1 us.
    assert model.seconds({"B": 10})[0] == pytest.approx(10 * 100.01e-6 + 10e-6 + 11e-6)
    # B=1000: 1000 us of FLOPs against 101 us of bytes.
    answer = model.answer({"B": 1000})
    assert answer.seconds[0] == pytest.approx(10 * 1000e-6 + 1000e-6 + 11e-6)
    assert answer.compute[0] == pytest.approx(10e-3)
    assert answer.memory[0] == pytest.approx(1e-3)
    assert answer.latency[0] == pytest.approx(11e-6)
    # Weights of half the bytes: 0.5 * 10^8 + 10^4 bytes a product.
    assert model.seconds({"B": 10, "bytes.weights": 0.5})[0] == pytest.approx(
        10 * 50.01e-6 + 10e-6 + 11e-6
    )


def test_kernel_seconds_follow_the_bytes_of_weights():
    model = model_of(closed(), KERNELS)
    point = {"B": 8, "L": 4096}
    half, whole = model.seconds({**point, "bytes.weights": np.array([0.5, 1.0])})
    moved = sum(
        row.times * float(bytes_.at({"B": 8, "L": 4096}) if hasattr(bytes_, "at") else bytes_)
        for row in model.rows for role, bytes_ in row.moved if role == "weights"
    )  # fmt: skip
    # Kernels reach 75 to 100 % of the bandwidth on weights, and most of the step is weights.
    assert 0.6 * moved / 2 / 4.8e12 < whole - half < 1.4 * moved / 2 / 4.8e12


def test_a_job_survives_pickling_with_its_fixed_values():
    spread = closed().over_experts()
    model = model_of(spread, KERNELS)
    model.fix({"bandwidth": 1e12, "EP": 16})
    job = Job(spread, model, Grid((Axis("B", (8, 9)),)), top=1)
    again = pickle.loads(pickle.dumps(job))
    assert again.model.seconds({"B": 8}) == model.seconds({"B": 8})
    assert (again.grid, again.top) == (job.grid, 1)


# -- proofs on boxes -------------------------------------------------------------------------------

COEFFICIENTS = st.one_of(st.just(0.0), st.floats(0.01, 100.0))
SIDES = st.fixed_dictionaries(
    {(): COEFFICIENTS, (("x", 1),): COEFFICIENTS, (("x", 2),): COEFFICIENTS,
     (("x", 1), ("y", 1)): COEFFICIENTS, (("y", -1),): COEFFICIENTS}
)  # fmt: skip
RANGES = st.tuples(st.floats(0.1, 50), st.floats(1, 8)).map(lambda r: (r[0], r[0] * r[1]))


@settings(deadline=None)
@given(SIDES, SIDES, RANGES, RANGES)
def test_what_a_box_proves_holds_at_its_points(x, y, one, two):
    if not Box({"x": one, "y": two}, {}, {}).never_above(x, y):
        return
    for a in np.linspace(*one, 7):
        for b in np.linspace(*two, 7):
            values = Values({"x": a, "y": b}, {})
            left, right = (sum(c * values.product(m) for m, c in side.items()) for side in (x, y))
            assert left <= right * (1 + 1e-12) + 1e-12


def test_a_box_cancels_what_terms_share():
    # 2 x y <= 3 x for y <= 1.5, whatever x.
    box = Box({"x": (1, 1e9), "y": (0.1, 1.5)}, {}, {})
    assert box.never_above({(("x", 1), ("y", 1)): 2.0}, {(("x", 1),): 3.0})
    wider = Box({"x": (1, 1e9), "y": (0.1, 1.6)}, {}, {})
    assert not wider.never_above({(("x", 1), ("y", 1)): 2.0}, {(("x", 1),): 3.0})


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), SIDES, SIDES, SIDES), min_size=1, max_size=6),
    RANGES,
    RANGES,
)
def test_settled_rows_sum_to_the_same_as_all_maxima(rows, one, two):
    bounds = [Bound(n, {(): 1.0}, a, v, m) for n, a, v, m in rows]
    box = Box({"x": one, "y": two}, {}, {})
    x, y = (np.linspace(*r, 11) for r in (one, two))
    values = Values({"x": x, "y": y}, {})
    found = Maxima(bounds, {}, box).seconds(values, frozenset("xy"), 11)
    expected = sum(
        n * (1.0 + np.max([sum(c * values.product(k) for k, c in side.items()) + 0 * x
                           for side in (a, v, m)], axis=0))
        for n, a, v, m in rows
    )  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-9)
