"""The short ways of a search, against every plan priced as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_programs import small

from tracer.errors import UserError
from tracer.parallel import experts
from tracer.parallel.plan import Plan
from tracer.parallel.schedules import SCHEDULES, Held, build, peak_bytes, shortest
from tracer.predict.training import Assumptions, predict_training
from tracer.report.plans import render_search
from tracer.study import plans
from tracer.study.fitting import advice, fewest, remedies

H100 = "h100_ib"
# Between what the smallest and the largest plans of these tests hold: some fit, some do not.
ASSUME = Assumptions(capacity=75e6)


def search(**options):
    return plans.search(small(), 8, H100, global_batch=96, seq=64, assume=ASSUME, **options)


def test_a_search_finds_what_each_plan_comes_to_alone():
    found = search()
    assert len(found.ranked) > 5
    for step in found.ranked:
        whole = predict_training(small(), step.plan, H100, seq=64, assume=ASSUME)
        assert step.seconds == pytest.approx(whole.seconds, rel=1e-12)
        assert step.memory == whole.memory
        assert whole.feasible
    dropped = [d for d in found.dropped if d.kind == "does not fit"]
    assert len(dropped) > 5
    for item in dropped:
        whole = predict_training(small(), item.plan, H100, seq=64, assume=ASSUME)
        assert not whole.feasible
        if "alone" not in item.reason:  # those were not traced
            assert item.reason == whole.reason


@pytest.mark.parametrize("capacity", [25e6, 1e6])
def test_where_none_fits_the_nearest_is_named(capacity):
    tight = Assumptions(capacity=capacity)
    found = plans.search(small(), 8, H100, global_batch=96, seq=64, assume=tight)
    assert not found.ranked
    for item in found.dropped:
        if item.kind == "does not fit":  # what it really takes is no less than what is said
            whole = predict_training(small(), item.plan, H100, seq=64, assume=tight).memory.total
            assert item.nbytes < whole if item.alone else item.nbytes == whole
            if item.alone == found.nearest.alone:
                assert found.nearest.nbytes <= item.nbytes
    text = render_search(found, 5)
    if capacity == 1e6:
        assert all(item.alone for item in found.dropped if item.nbytes)
        assert f"in every plan, {found.nearest.nbytes / 1e9:,.1f} GB a GPU and more" in text
    else:
        assert f"nearest to fitting is {found.nearest.plan}: {found.nearest.reason}; " in text
    assert "nearest" not in render_search(search(), 5)


def test_every_kind_of_reason_has_an_example_in_words():
    found = search()
    text = render_search(found, 5)
    for kind, count in found.reasons.items():
        item = next(item for item in found.dropped if item.kind == kind)
        (line,) = (line for line in text.splitlines() if line.startswith(f"dropped, {kind}: "))
        head = f"dropped, {kind}: {count:,}, such as {item.plan}: "
        assert line.startswith(head)
        # Neither the plan nor the kind is said twice.
        assert item.reason.endswith(line.removeprefix(head))
        assert str(item.plan) not in line.removeprefix(head)
        assert not line.removeprefix(head).startswith(kind)


def test_processes_find_the_same(monkeypatch):
    alone = search(schedules=("1f1b",))
    monkeypatch.setattr(plans, "MANY", 1)
    shared = search(schedules=("1f1b",), executor="local")
    assert [s.plan for s in shared.ranked] == [s.plan for s in alone.ranked]
    assert [s.seconds for s in shared.ranked] == pytest.approx(
        [s.seconds for s in alone.ranked], rel=1e-9
    )
    assert shared.dropped == alone.dropped


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("microbatches", [8, 48, 52])
def test_the_shortest_schedule_holds_as_much_as_the_whole(name, microbatches):
    chunks = 2 if name == "interleaved_1f1b" else None
    whole, short = (f(name, 4, microbatches, chunks) for f in (build, shortest))
    held = Held(*[tuple(float(2 + s) for s in range(whole.stages))] * 2)
    assert peak_bytes(short, held) == peak_bytes(whole, held)
    assert short.pairs == whole.pairs
    assert short.stages_of_rank == whole.stages_of_rank
    assert (short is whole) == (microbatches == 8 or not whole.period)


def test_the_shortest_schedule_is_refused_like_the_whole():
    with pytest.raises(UserError) as whole:
        build("interleaved_1f1b", 4, 50, 2)
    with pytest.raises(UserError) as short:
        shortest("interleaved_1f1b", 4, 50, 2)
    assert str(short.value) == str(whole.value)


@pytest.mark.parametrize("tokens", [64, 100_000])
def test_rows_of_the_slowest_rank_are_those_of_the_whole_load(tokens):
    routing = experts.uniform(48, 4, 4, 2)
    placement = experts.contiguous(48, 8, 8)
    whole = experts.expert_load(routing, placement, tokens)
    assert experts.slowest_rows(routing, placement, tokens) == whole.slowest_rows


def test_remedies_are_plans_that_hold_so_much():
    plan = Plan(dp=8, ep=8, zero=1, micro_batches=2)
    found = {r.options: r.memory for r in remedies(small(), plan, H100, seq=64, assume=ASSUME)}
    # No --kept fp8 without FP8 training.
    assert set(found) == {
        f"{first}{second}".strip()
        for first in ("", "--recompute selective", "--recompute full")
        for second in ("", " --moments bf16")
    } - {""}
    other = replace(plan, recompute="full", moments="bf16")
    whole = predict_training(small(), other, H100, seq=64, assume=ASSUME)
    assert found["--recompute full --moments bf16"] == whole.memory


def test_advice_names_what_fits_or_the_best_that_does_not():
    plan = Plan(dp=8, ep=8, zero=1, micro_batches=2)

    def told(capacity):
        assume = Assumptions(capacity=capacity)
        return advice(remedies(small(), plan, H100, seq=64, assume=assume))

    assert told(1e9).startswith("would fit with --moments bf16, or --recompute selective")
    assert told(1e6).startswith("does not fit with --recompute full --moments bf16 either")
    assert "known" in advice([])


def test_the_fewest_gpus_have_room_for_the_states_alone():
    count = sum(p.numel() for p in small().module("training", "meta").parameters())
    plan = Plan(dp=8, ep=8, zero=1, micro_batches=2)
    assume = replace(ASSUME, exchange="nccl")  # DeepEP's buffers are made for more than 75 MB
    memory = predict_training(small(), plan, H100, seq=64, assume=assume).memory
    room = 0.9 * 75e6  # the default keeps a tenth free
    assert fewest(small(), plan, memory, assume) == (16 * count, -(-16 * count // room))
    bf16 = replace(plan, moments="bf16")  # 2 + 4 + 4 + 2 * 2 bytes
    assert fewest(small(), bf16, memory, replace(assume, gradients="fp32")) == (
        14 * count,
        -(-14 * count // room),
    )
