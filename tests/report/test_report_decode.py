"""What one decode step says of larger batches, against steps that were traced at them."""

import pytest
from report_studies import study

from tracer.report.decode import batching
from tracer.report.facts import routing, steps_of


def step_at(name, batch):
    given = ("--batch", str(batch), "--phase", "decode", "--exec", "efficient")
    (step,) = steps_of(study(name, *given))
    return step


@pytest.mark.parametrize("name", ["llama", "deepseek", "mixtral"])
def test_flops_and_bytes_of_a_larger_batch(name):
    """At 64 sequences of 16 experts every one is hit but for a share (1 - 4/16)^64 = 1e-8."""
    small, large = batching(step_at(name, 2)), step_at(name, 64)
    again = batching(large)
    assert 64 * small.flops == pytest.approx(large.cost.total_flops)
    assert small.weights == pytest.approx(again.weights, rel=1e-3)
    # Tables of sines, masks and positions do not grow with the batch: they count here, where a
    # sequence moves a few kB.
    assert small.moved == pytest.approx(again.moved, rel=0.12)
    assert large.cost.intensity == pytest.approx(
        64 * small.flops / (small.weights + 64 * small.moved), rel=0.12
    )


def test_the_crossing_is_where_the_formula_says():
    found = batching(step_at("llama", 64))
    again = batching(step_at("llama", 2))
    assert found.limit == pytest.approx(again.limit, rel=0.15)
    # A model this small keeps no batch on the compute side: its activations outweigh its products.
    assert found.limit < found.ridge
    assert found.crossing is None


def test_the_crossing_by_hand():
    step = step_at("llama", 2)
    one = batching(step)
    kind = type(one)
    made = kind(flops=500.0, moved=1.0, weights=1e6, ridge=200.0, cache=0.0,
                held_weights=1e6)  # fmt: skip
    # B f / (W + B a) = ridge  <=>  B = 200 x 1e6 / (500 - 200)
    assert made.crossing == pytest.approx(200e6 / 300)
    batch = made.crossing
    assert batch * 500 / (1e6 + batch) == pytest.approx(200)
    assert made.limit == 500


def test_experts_are_read_off_the_shapes():
    assert routing(study("deepseek")) == (16, 4)
    assert routing(study("mixtral")) == (8, 2)
    assert routing(study("llama")) == (0, 0)
