"""Searches for servers: plans hold the same sequences; what is ranked is what a plan costs."""

from __future__ import annotations

import pytest
from plan_programs import small

from tracer.errors import UserError
from tracer.parallel.plan import Plan
from tracer.predict.serving import Serving, predict_serving
from tracer.study.serving_plans import search_serving, serving_bounds, serving_splits

H100 = "h100_ib"
SEQUENCES = 64


def found(gpus: int = 8, phase: str = "decode", sequences: int = SEQUENCES, **more):
    return search_serving(small(), gpus, H100, phase, sequences=sequences, seq=128, context=256,
                          **more)  # fmt: skip


def test_splits_use_all_gpus_and_have_each_only_once():
    plans = [p for some in serving_splits(8, 48, Plan(), serving_bounds(48)) for p in some]
    assert all(p.world == 8 for p in plans)
    assert len({str(p) for p in plans}) == len(plans)
    # By hand: (tp, pp) with tp * pp dividing 8 are 10; over s = 8 / pp ranks experts lie on one,
    # or on any divisor of s: 4, 3, 2 and 1 ways of pp 1, 2, 4 and 8, for 4, 3, 2 and 1 tps.
    assert len(plans) == 4 * 4 + 3 * 3 + 2 * 2 + 1
    assert max(p.ep for p in plans) == 8


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_the_best_is_what_one_plan_costs(phase):
    result = found(phase=phase)
    speeds = [step.tokens_per_s for step in result.ranked]
    assert speeds == sorted(speeds, reverse=True)
    best = result.ranked[0]
    alone = predict_serving(small(), best.plan, H100, phase, batch=best.batch, seq=128, context=256)
    assert alone.seconds == best.seconds
    for step in result.ranked:  # a pipeline has a batch in every stage
        assert step.batch * step.plan.data_ranks * step.plan.pp == SEQUENCES


def test_every_plan_is_ranked_or_has_a_reason():
    result = found(sequences=4, assume=Serving(micro_batches=2))
    plans = sum(map(len, serving_splits(8, 48, Plan(), serving_bounds(48))))
    assert len(result.ranked) + len(result.dropped) == plans
    # Eight sequences of a data rank each and stage are more than four.
    assert result.reasons["batch does not divide"] > 0
    assert "4 sequences do not divide by 8" in {item.why for item in result.dropped}
    assert any("a batch of 1 is not two micro-batches" in item.why for item in result.dropped)


def test_bounds_and_what_is_given():
    result = found(most={"tp": 1, "pp": 1, "ep": 8}, like=Plan(redundant_experts=16))
    plans = [step.plan for step in result.ranked]
    assert {(p.tp, p.pp) for p in plans} == {(1, 1)}
    assert {p.redundant_experts for p in plans if p.ep > 1} == {16}
    with pytest.raises(UserError, match="no split within the bounds"):
        found(most={"tp": 0})
