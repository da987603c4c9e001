"""Rules of plans, driven into each branch by facts made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tracer.report.plan_facts import AxisFacts, PlanFacts
from tracer.report.plan_rules import plan_conclusions, plan_next_steps
from tracer.report.plan_study import LIMITS

COMPUTE, MEMORY, LATENCY = (LIMITS[name] for name in ("compute", "memory", "latency"))
MESSAGES, BUBBLE = LIMITS["exposed communication"], LIMITS["pipeline bubble"]


def facts(limits, **more):
    inside = sum(s for name, s in limits.items() if name in (COMPUTE, MEMORY, LATENCY))
    given = {
        "phase": "training", "seconds": sum(limits.values()), "limits": limits, "compute": inside,
        "bubble": limits.get(BUBBLE, 0.0), "peak_seconds": 0.0, "axes": {},
        "held": {"weights": 30e9}, "capacity": 80e9, "reserve": 8e9, "chip": "chip",
    }  # fmt: skip
    return PlanFacts(**{**given, **more})


def rules(found):
    return {f.rule: f for f in found}


@pytest.mark.parametrize(
    ("limits", "rule", "text"),
    [
        ({COMPUTE: 7.0, MESSAGES: 3.0}, "compute-bound", "compute-bound: 70% of its 10.0 s"),
        ({MEMORY: 6.0, COMPUTE: 4.0}, "memory-bound", "memory-bound: 60% of its 10.0 s"),
        ({LATENCY: 6.5, COMPUTE: 3.5}, "launch-bound", "launch-bound: 65%"),
        ({MESSAGES: 6.1, COMPUTE: 3.9}, "communication-bound", "communication-bound: 61%"),
        ({BUBBLE: 8.0, COMPUTE: 2.0}, "bubble-bound", "bubble-bound: 80%"),
        ({LIMITS["waiting for the host"]: 9.0, COMPUTE: 1.0}, "host-bound", "host-bound: 90%"),
        ({COMPUTE: 5.0, MESSAGES: 3.0, BUBBLE: 2.0}, "split",
         "split, compute first: 50% of its 10.0 s waits for compute units, 30% for messages, "
         "20% for other stages (bubble)."),
        ({COMPUTE: 1.0}, "compute-bound", "100% of its 1.00 s waits for compute units."),
    ],
)  # fmt: skip
def test_what_limits_the_step(limits, rule, text):
    found = plan_conclusions(facts(limits))[0]
    assert found.rule == rule
    assert text in found.text


def test_memory_that_is_not_there_comes_first():
    tight = facts(
        {COMPUTE: 1.0, MESSAGES: 1.0},
        held={"weights": 60e9, "activations": 40e9},
        reason="does not fit: too much",
        advice="would fit with --recompute full; 9 GB: 2 GPUs",
    )
    first, second, *_ = plan_conclusions(tight)
    assert first.rule == "infeasible"
    assert "Memory capacity is the limit" in first.text
    assert "weights, 60 GB" in first.evidence
    assert "would be split, compute first if it had the memory" in second.text
    assert not {"fits", "tight"} & rules(plan_conclusions(tight)).keys()
    step = plan_next_steps(tight)[0]
    assert step.text == "Would fit with --recompute full; 9 GB: 2 GPUs."
    assert "28 GB are missing" in step.evidence  # 60 + 40 + 8 - 80
    plain = plan_next_steps(replace(tight, advice=""))[0]
    assert "Spread it over more GPUs" in plain.text
    assert "recompute" not in rules(plan_next_steps(replace(tight, again=0.5)))


def test_memory_that_is_left():
    found = rules(plan_conclusions(facts({COMPUTE: 1.0})))["fits"]
    assert found.text == "It fits: 42 GB of the fullest GPU are left."  # 80 - 8 - 30
    found = rules(plan_conclusions(facts({COMPUTE: 1.0}, held={"weights": 70e9})))["tight"]
    assert found.text == "It fits, but only just: 2 GB of the fullest GPU are left."


def test_messages_exposed_and_hidden():
    axes = {"ep": AxisFacts(64, 8, 4.0, 3.0), "tp": AxisFacts(8, 1, 1.0, 1.0)}
    exposed = facts({COMPUTE: 6.0, MESSAGES: 4.0}, axes=axes)
    found = rules(plan_conclusions(exposed))["ep-exposed"]
    assert found.text == ("Messages of ep are most of what nothing hides: 30% of the step.")
    assert found.evidence == (
        "3.00 s exposed of 4.00 s, groups of 64 over 8 nodes; all groups 4.00 s of 5.00 s"
    )
    steps = rules(plan_next_steps(exposed))
    assert steps["ep-nodes"].saves == 3.0
    assert steps["tp-less"].saves == 1.0
    assert steps["overlap"].saves == 4.0
    assert "--schedule dualpipe, with --pp." in steps["overlap"].text
    assert "overlap" not in rules(plan_next_steps(replace(exposed, hides=True)))
    deep = rules(plan_next_steps(replace(exposed, pp=4)))["overlap"]
    assert deep.text.endswith("--schedule dualpipe.")
    assert "--overlap" in rules(plan_next_steps(replace(exposed, phase="decode")))["overlap"].text
    # What hides is no more than the compute that there is.
    little = facts({COMPUTE: 1.0, MESSAGES: 9.0}, axes={"ep": AxisFacts(64, 8, 9.0, 9.0)})
    assert rules(plan_next_steps(little))["overlap"].saves == 1.0
    near = facts({COMPUTE: 10.0}, axes={"tp": AxisFacts(8, 1, 2.0, 0.0)})
    assert "by 0.0% only" in rules(plan_conclusions(near))["messages-hidden"].text
    assert not {"tp-less", "overlap"} & rules(plan_next_steps(near)).keys()


def test_data_ranks():
    axes = {"dp": AxisFacts(16, 2, 1.0, 1.0), "edp": AxisFacts(4, 4, 1.0, 0.5)}
    steps = rules(plan_next_steps(facts({COMPUTE: 8.5, MESSAGES: 1.5}, axes=axes)))
    assert steps["data-ranks"].saves == 1.5
    assert "dp-exposed" in rules(plan_conclusions(facts({COMPUTE: 8.5, MESSAGES: 1.5}, axes=axes)))


def test_bubbles():
    deep = facts({COMPUTE: 8.0, BUBBLE: 2.0}, pp=16, micro_batches=32, pace=1.25)
    found = rules(plan_conclusions(deep))["bubble"]
    assert found.text == "Ranks of the pipeline wait for one another 20% of the step."
    assert found.evidence == (
        "PP=16, 32 micro-batches, 1f1b; the slowest stage takes +25.0% of the mean"
    )
    assert rules(plan_next_steps(deep))["micro-batches"].saves == 2.0
    shallow = facts({COMPUTE: 9.9, BUBBLE: 0.1}, pp=2)
    assert "bubble" not in rules(plan_conclusions(shallow))
    assert "micro-batches" not in rules(plan_next_steps(shallow))


def test_recomputation_and_uneven_experts():
    again = facts({COMPUTE: 10.0}, again=3.0, recompute="full", imbalance=1.0, skew=1.4)
    found = rules(plan_conclusions(again))
    assert "30% of the step computes activations again" in found["recompute"].text
    assert "10% of the step" in found["uneven-experts"].text
    steps = rules(plan_next_steps(again))
    assert steps["recompute"].saves == 3.0
    assert steps["recompute"].text.endswith("--recompute selective or none.")
    some = rules(plan_next_steps(replace(again, recompute="latent")))["recompute"]
    assert some.text.endswith("--recompute none.")
    assert "42 GB of the fullest GPU are left" in steps["recompute"].evidence
    assert steps["balance"].saves == 1.0
    none = facts({COMPUTE: 10.0})
    assert not {"recompute", "uneven-experts"} & rules(plan_conclusions(none)).keys()
    assert not {"recompute", "balance"} & rules(plan_next_steps(none)).keys()


def test_products_and_precision():
    slow = facts({COMPUTE: 10.0}, peak_seconds=6.0, faster=("fp8", 2.0), mfu=0.4, peak=989e12)
    steps = rules(plan_next_steps(slow))
    assert steps["utilisation"].saves == 4.0
    assert steps["precision"].saves == 5.0
    assert "2.0 times the peak of bf16" in steps["precision"].text
    assert rules(plan_conclusions(slow))["mfu"].text.startswith("GPUs do 40.0% of")
    assert (
        not {"utilisation", "precision"}
        & rules(plan_next_steps(facts({COMPUTE: 10.0}, peak_seconds=10.0))).keys()
    )


def test_decode():
    slow = facts({MEMORY: 8.0, LATENCY: 2.0}, phase="decode", batch=8, largest=64, floor=2.5,
                 estimated=0.2, unmodelled=0.1)  # fmt: skip
    steps = rules(plan_next_steps(slow))
    # Of 64 sequences each would wait for an eighth of the weights, if nothing else is read.
    assert steps["batch"].saves == 8.0 * (1 - 8 / 64)
    assert "8 sequences of a data rank, 64 fit" in steps["batch"].evidence
    assert steps["latency"].saves == 2.0
    found = rules(plan_conclusions(slow))
    assert "4.0 times that" in found["exchange-floor"].text
    assert found["estimates"].text == (
        "20% of the kernels' time rests on estimates, 10% on bytes alone."
    )
    over = replace(slow, reason="does not fit", held={"kv": 90e9})
    assert plan_next_steps(over)[0].text == ("Take at most 64 sequences of a data rank, which fit.")
    assert "exchange-floor" not in rules(plan_conclusions(over))
    full = replace(slow, largest=8)
    assert "batch" not in rules(plan_next_steps(full))
    assert "bytes" in rules(plan_next_steps(replace(slow, phase="training")))
    assert "bytes" not in steps


def test_the_largest_come_first_and_small_ones_are_left_out():
    many = facts(
        {COMPUTE: 4.0, MEMORY: 3.0, BUBBLE: 2.0, MESSAGES: 1.0}, pp=2, again=0.4,
        axes={"ep": AxisFacts(16, 2, 1.0, 1.0)},
    )  # fmt: skip
    steps = plan_next_steps(many)
    assert [f.saves for f in steps] == sorted((f.saves for f in steps), reverse=True)
    assert all(f.share >= 0.05 for f in steps)
    assert "recompute" not in rules(steps)  # 0.4 of 10 s
    assert len(plan_next_steps(many, most=2)) == 2
