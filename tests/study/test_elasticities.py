"""Slopes of a step made by hand, the values that end them, and what a grid's ranking says."""

import math

import pytest
from study_models import KERNELS, by_hand, closed, model_of

from tracer.errors import UserError
from tracer.study.elasticities import elasticities, structural
from tracer.study.ranking import rank, structural_grid
from tracer.study.records import SweepTable
from tracer.study.structure import Cache, Structure


def by_knob(found):
    return {e.knob: e for e in found}


def test_slopes_by_hand():
    step, model = by_hand()
    found = by_knob(elasticities(step, model, {"B": 10}))
    # 1000.1 us of products that wait for memory, 10 us of a stream, 11 us of launches.
    whole = 1000.1 + 10 + 11
    assert found["bandwidth"].above == pytest.approx(-1010.1 / whole, abs=1e-4)
    assert found["launch"].above == pytest.approx(11 / whole, abs=1e-4)
    assert found["bytes.weights"].above == pytest.approx(1000 / whole, abs=1e-4)
    assert found["bytes.kv"].above == pytest.approx(10 / whole, abs=1e-4)
    assert found["bytes.activations"].above == pytest.approx(0.1 / whole, abs=1e-5)
    assert found["peak.bf16"].above == 0
    # 0.01 us of activations and 1 us of stream more for one more sequence, on ten launches.
    assert found["B"].above == pytest.approx(math.log1p((0.01 + 1) / whole) / math.log(11 / 10))
    assert found["launch"].doubled == pytest.approx(1 + 11 / whole)
    assert found["bandwidth"].halved == pytest.approx(1 + 1010.1 / whole)
    # A product's FLOPs take as long as its bytes at 10^-6 B = 10^-4 + 10^-9 B: B = 100.1.
    assert found["B"].kernel_above == 101
    assert found["B"].kernel_below is None
    # At B = 10 its bytes take 10.001 times as long as its FLOPs.
    assert found["bandwidth"].kernel_above == pytest.approx(10.001e12, rel=1e-6)
    assert found["peak.bf16"].kernel_below == pytest.approx(1e15 / 10.001, rel=1e-6)
    # The step waits for compute once the products do: they are 99 % of it.
    assert found["B"].step_above == (101, "compute")
    assert found["launch"].step_above is None  # at 91.8 us, more than 64 times the 1 us
    model.fix({"launch": 2e-6})
    at, waits = by_knob(elasticities(step, model, {"B": 10}))["launch"].step_above
    assert (at, waits) == (pytest.approx(1010.1e-6 / 11, rel=1e-6), "latency")


def test_a_kink_has_two_slopes():
    step, model = by_hand()
    model.fix({"peak.bf16": 1e15 / 10.001})  # the products' two sides meet at B = 10
    found = by_knob(elasticities(step, model, {"B": 10}))["peak.bf16"]
    assert found.below == pytest.approx(-1000.1 / 1021.1, abs=1e-3)
    assert found.above == pytest.approx(0, abs=1e-6)


def test_knobs_that_nothing_depends_on_are_left_out():
    found = by_knob(elasticities(closed(), model_of(closed(), KERNELS), {"B": 128, "L": 4096}))
    assert not {"peak.fp8", "host", "link", "EP"} & found.keys()
    assert {"sms", "frequency", "peak.bf16", "B", "L"} <= found.keys()
    assert found["clock"].doubled is None  # a share cannot double


def test_out_of_range():
    with pytest.raises(UserError, match=r"B=1.*B >= 2"):
        elasticities(closed(), model_of(closed()), {"B": 1, "L": 64})


def test_top_k_by_tracing_again(tmp_path):
    structure = Structure("deepseek-ai/DeepSeek-V3", "decode", layers=4)
    model = model_of(closed())
    cache = Cache(tmp_path)
    point = {"B": 2, "L": 64}
    (found,) = structural(structure, model, point, ["top_k"], cache)
    assert found.at == 8
    # Experts read by two tokens: E(1 - (1 - k/E)^2), of 3 * 7168 * 2048 * 2 bytes each; what
    # doubling k adds is nearly all in them.
    reads = {k: 256 * (1 - (1 - k / 256) ** 2) for k in (8, 16)}
    more = (reads[16] - reads[8]) * 3 * 7168 * 2048 * 2 / 4.8e12
    here = model.seconds(point)[0]
    assert found.doubled - 1 == pytest.approx(more / here, rel=0.02)
    assert found.above == pytest.approx(math.log(found.doubled) / math.log(2))
    assert len(list(tmp_path.glob("*.json"))) == 3
    again = structural(structure, model, point, ["top_k"], cache)
    assert again == (found,)


def test_a_smaller_latent_is_still_one_latent_for_all_heads(tmp_path):
    structure = Structure("deepseek-ai/DeepSeek-V3", "decode", layers=4)
    model = model_of(closed(), KERNELS)
    # At a long context: a cache of 256 + 64 elements a token is read faster than one of 512 + 64.
    (found,) = structural(structure, model, {"B": 8, "L": 16384}, ["rank"], Cache(tmp_path))
    assert found.halved < 1 < found.doubled


def test_ranking_by_hand():
    rows = [(a, b, 1.0 * a * b) for a in (1, 2, 4) for b in (10, 11)]
    table = SweepTable("", ("a", "b"), ("a", "b", "seconds"), tuple(rows), 6)
    first, second = rank(table)
    assert (first.knob, second.knob) == ("a", "b")
    assert first.medians == ((1, 10.5), (2, 21.0), (4, 42.0))
    assert first.effect == 3.0
    assert second.effect == pytest.approx(0.1)


def test_a_structural_grid_is_every_combination(tmp_path):
    structure = Structure("deepseek-ai/DeepSeek-V3", "decode", layers=4)
    model = model_of(closed())
    table = structural_grid(
        structure, model, {"top_k": (0.5, 1)}, {"L": (64, 4096), "bytes.kv": (1, 2)},
        ("efficient",), Cache(tmp_path), say=lambda text: None,
    )  # fmt: skip
    assert table.total == 8
    assert table.columns[:4] == ("execution", "top_k", "L", "bytes.kv")
    by_point = {row[1:4]: row[5] for row in table.rows}
    assert by_point[1, 64, 1] == pytest.approx(model.seconds({"B": 8, "L": 64})[0])
    assert by_point[0.5, 64, 1] < by_point[1, 64, 1]
    assert {r.knob for r in rank(table, {"execution": "efficient"})} == {"top_k", "L", "bytes.kv"}
