"""Crossings: hand arithmetic, brute force beside the solver, and proofs that there is none."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_models import CHIP, by_hand, closed, model_of

from tracer.algebra import Scope, distinct, least
from tracer.algebra.expression import value_at
from tracer.errors import UserError
from tracer.report.studies import crossovers as text_of
from tracer.study import crossovers
from tracer.study.closed import EP
from tracer.study.crossovers import crossover, first_crossing, never
from tracer.study.exploration import compute_bound_exploration

SIDES = ("left", "right")


def symbol(name="B"):
    return Scope().symbol(name, 8)


def test_a_line_crosses_where_arithmetic_says():
    b = symbol()
    found = crossover("?", "B", 3 * b, b + 100, SIDES, 2)  # 2 B = 100
    assert found.value == 50
    assert found.below == (49, 147, 149)
    assert found.above == (50, 150, 150)
    assert found.limit == pytest.approx(3)


def test_none_is_proven_by_the_slope_at_infinity():
    b = symbol()
    found = crossover("?", "B", 2 * b, 3 * b + 7, SIDES, 2)
    assert found.value is None
    assert found.high is None
    assert "none for any B" in found.proof
    assert found.limit == pytest.approx(2 / 3)


def test_experts_saturate_and_then_the_line_wins():
    b = symbol()
    # 256 experts of 10 bytes: the reads level off at 2,560, so 5 B reaches them near 512.
    reads = round(distinct(256, 8, b) * 10)
    found = first_crossing(5 * b, reads, "B", 2, 10**6)
    brute = next(n for n in range(2, 10**6) if 5 * n >= round(256 * (1 - (1 - 8 / 256) ** n) * 10))
    assert found == brute
    assert brute == 512


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9), st.integers(0, 30), st.integers(0, 2000), st.integers(0, 30),
    st.integers(1, 3000), st.integers(1, 40),
)  # fmt: skip
def test_the_first_crossing_is_the_first(square, slope, constant, other, cap, step):
    b = symbol()
    left = square * b * b + slope * b + 1
    right = constant + other * b + least((cap, step * b))
    expected = next(
        (n for n in range(2, 300)
         if square * n * n + slope * n + 1 >= constant + other * n + min(cap, step * n)), None
    )  # fmt: skip
    assert first_crossing(left, right, "B", 2, 299) == expected
    if never(left, right, "B", 2, 299):
        assert all(value_at(left, {"B": n}) < value_at(right, {"B": n}) for n in range(2, 300))


# -- a step made by hand ---------------------------------------------------------------------------


def test_compute_bound_batch_by_hand():
    step, model = by_hand()
    # 10 * 10^9 B / 10^15 >= (10 * (10^8 + 10^3 B) + 10^6 B) / 10^12
    # 10^-5 B >= 10^-3 + 1.01e-6 B: B >= 10^-3 / 8.99e-6 = 111.2
    found = crossovers.compute_bound_batch(step, model, {})
    assert found.value == math.ceil(1e-3 / 8.99e-6) == 112
    assert found.below.left < found.below.right
    assert found.above.left >= found.above.right
    assert found.limit == pytest.approx(1e-5 / 1.01e-6)
    assert found.notes == ()  # 10^9 + 112 * 10^6 bytes fit into 2 * 10^9


def test_a_slow_chip_never_is_memory_bound_for_long():
    step, model = by_hand()
    model.fix({"peak.bf16": 2e16})  # 5e-7 B of FLOPs under 1.01e-6 B of bytes, for ever
    found = crossovers.compute_bound_batch(step, model, {})
    assert found.value is None
    assert found.high is None
    assert found.limit == pytest.approx(5e-7 / 1.01e-6)


# -- DeepSeek-V3, four layers ----------------------------------------------------------------------


def test_kv_outweighs_weights_where_brute_force_says():
    step = closed()
    model = model_of(step)
    found = crossovers.kv_outweighs_weights(step, model, {"B": 64})
    kv, weights = (
        sum(row.times * x for row in step.rows for role, x in row.moved if role == name)
        for name in ("kv", "weights")
    )
    point = {"B": 64, "L": found.value}
    assert kv.at(point) >= weights.at(point)
    assert kv.at({**point, "L": found.value - 1}) < weights.at(point)
    # 576 latents of 2 bytes, four layers: 64 * 4,608 bytes a position read, and one more written.
    assert kv.at(point) == 64 * 4608 * (found.value + 1)


def test_the_longest_context_fits_and_the_next_does_not():
    step = closed()
    model = model_of(step)
    found = crossovers.longest_context(step, model, {"B": 64})
    held = step.memory
    free = CHIP.memory_capacity - held.weights - value_at(held.activations, {"B": 64, "L": 1})
    assert found.value - 1 == free // (64 * 4 * 576 * 2)
    assert found.below.left <= CHIP.memory_capacity < found.above.left


def test_where_nothing_fits_no_length_is_the_answer():
    step = closed()
    model = model_of(step)
    model.defaults["capacity"] = 1e9  # the weights of the layer alone take more
    found = crossovers.longest_context(step, model, {"B": 64})
    held = value_at(step.memory.total, {"B": 64, "L": found.low}) / 1e9
    assert held > 1
    assert found.proof == f"none fits: L = {found.low} already holds {held:,.0f} GB"
    lines = text_of([found]).splitlines()
    assert lines[1] == f"  {found.proof}"
    assert len([line for line in lines if "bytes held" in line]) == 1  # not the same line twice


def test_exchanges_by_hand():
    spread = closed().over_experts()
    # One MoE layer: 8 rows of 7,168 BF16 elements a token, there and back, local ones stay.
    at = {"B": 100, "L": 64, EP: 4}
    assert value_at(spread.network.moved, at) == 100 * 8 * 7168 * 2 * 2 * 3 / 4
    assert spread.network.exchanges == 2
    # Experts of one layer: 3 * 7168 * 2048 * 2 bytes each.
    assert spread.experts.weights == 256 * 3 * 7168 * 2048 * 2
    whole, quarter = (value_at(spread.memory.weights, {EP: n}) for n in (1, 4))
    assert whole - quarter == spread.experts.weights * 3 / 4
    assert whole == closed().memory.weights


def test_on_one_gpu_spreading_changes_nothing():
    step = closed()
    spread = step.over_experts()
    one, other = model_of(step), model_of(spread)
    point = {"B": 77, "L": 5000}
    assert other.seconds({**point, EP: 1}) == pytest.approx(one.seconds(point), rel=1e-12)


def test_the_network_overtakes_where_every_divisor_says():
    spread = closed().over_experts()
    model = model_of(spread)
    point = {"B": 4096, "L": 64}
    found = crossovers.network_overtakes_memory(spread, model, point)
    sizes = [2**i for i in range(1, 9)]
    answer = model.answer({**point, EP: [float(n) for n in sizes]})
    slower = [
        n for n, late in zip(sizes, answer.network >= answer.ideal_memory, strict=True) if late
    ]
    assert found.value == min(slower)
    assert found.above.left >= found.above.right
    # By hand at the answer: exchanged bytes over 450 GB/s in one domain of 8, 50 GB/s beyond.
    wire = 450e9 if found.value <= 8 else 50e9
    moved = 4096 * 8 * 7168 * 2 * 2 * (1 - 1 / found.value)
    waits = 2 * model.defaults["exchange"]
    assert found.above.left == pytest.approx(moved / wire + waits)


def test_exploration_keeps_what_physics_keeps():
    spread = closed(layers=None).over_experts()
    model = model_of(spread)
    table = compute_bound_exploration(spread, model, (1, 64), (2048, 160000))
    limits = dict(
        zip([row[:2] for row in table.rows], table.column("flop_per_byte_limit"), strict=True)
    )
    # Routed work a GPU does not fall with EP, nor do the bytes that grow with the batch.
    assert limits[1, 2048] == pytest.approx(limits[64, 2048])
    # Absorbed MLA: 2 * 128 * (576 + 512) FLOPs on 1,152 bytes, 241.8 a byte, right of 206.
    assert 241.8 < limits[1, 160000] < 251
    assert limits[1, 160000] > CHIP.ridge("bf16")
    # No batch that is compute-bound fits beside the weights of 671 billion parameters.
    assert not any(table.column("fits"))
    by_point = {row[:2]: row for row in table.rows}
    assert by_point[1, 2048][-1] is None
    largest = by_point[64, 2048][-1]
    at = {"L": 2048, EP: 64}
    held = spread.memory.total
    assert held.at({**at, "B": largest}) <= CHIP.memory_capacity
    assert held.at({**at, "B": largest + 1}) > CHIP.memory_capacity


def test_sizes_that_are_not_there():
    step, model = by_hand()
    with pytest.raises(UserError, match="no size L"):
        crossovers.kv_outweighs_weights(step, model, {"B": 8})
    with pytest.raises(UserError, match="no routed experts"):
        step.over_experts()
