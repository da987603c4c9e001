"""Every branch of the rules, on facts made by hand: what is said, and on which figures."""

from dataclasses import replace

import pytest
from made_facts import DECODE, FACTS, advice, rules, shares, with_phase
from report_studies import study

from tracer.report.advice import next_steps
from tracer.report.facts import Naive, gather


@pytest.mark.parametrize("regime", ["compute", "memory", "network", "latency"])
def test_what_a_phase_waits_for(regime):
    rest = next(n for n in ("memory", "compute") if n != regime)
    found = rules(with_phase(shares=shares(**{regime: 0.7, rest: 0.3})))
    finding = found[f"{regime}-bound"]
    assert finding.text == (
        f"Decode is {regime}-bound: 70% of its 10.0 ms waits for {regime}, 30% for {rest}."
    )
    assert "20.0 FLOP/B against a ridge of 200 (bf16)" in finding.evidence
    # Left of the ridge: compute-bound time contradicts the sums, and that is said.
    assert ("by its sums alone it would be memory-bound" in finding.evidence) == (
        regime == "compute"
    )


def test_no_resource_alone():
    found = rules(with_phase(shares=shares(compute=0.45, memory=0.4, latency=0.15)))
    assert found["split"].text.startswith("Decode is split, compute first: 45%")
    assert not any(rule.endswith("-bound") for rule in found)


def test_right_of_the_ridge_and_waiting_for_memory_is_said():
    evidence = rules(with_phase(intensity=500.0))["memory-bound"].evidence
    assert "by its sums alone it would be compute-bound" in evidence
    late = with_phase(intensity=500.0, shares=shares(latency=0.9, compute=0.1))
    assert "by its sums" not in rules(late)["latency-bound"].evidence  # neither side is latency


def test_the_ridge_is_that_of_the_mix():
    mixed = rules(with_phase(mix="fp8 and bf16"))["memory-bound"]
    assert mixed.evidence == "20.0 FLOP/B against a ridge of 200 (fp8 and bf16)"


def test_it_fits():
    # One phase: there is no "every" and no "most".
    assert rules(FACTS)["fits"].text == "Decode fits in one Chip."
    assert rules(FACTS)["fits"].evidence == "decode holds 51 GB of 141 GB"
    two = replace(FACTS, phases=(DECODE, replace(DECODE, phase="prefill", held={"kv": 1e9})))
    assert rules(two)["fits"].text == "Every phase fits in one Chip."
    assert rules(two)["fits"].evidence == "decode holds most: 51 GB of 141 GB"
    assert "shard" not in advice(FACTS)
    full = with_phase(held={"weights": 136e9})  # 5 of 141 GB
    assert rules(full)["fits"].evidence == (
        "decode holds 136 GB of 141 GB; 4% are left for allocator and driver"
    )


def test_it_does_not_fit():
    held = {"weights": 4e11, "kv": 1e10, "gradients": 0, "optimizer": 0, "activations": 1e9}
    facts = with_phase(chips=3, held=held)
    finding = rules(facts)["infeasible"]
    assert "decode needs at least 3 chips" in finding.text
    assert "that phase on one chip is hypothetical" in finding.text
    # 4e11 of 4.11e11 is 97 %.
    assert finding.evidence == "decode holds 411 GB, 97% of it weights; one chip has 141 GB"
    assert "fits" not in rules(facts)
    first = next_steps(facts)[0]
    assert (first.rule, first.saves) == ("shard", None)
    # 1.1e10 are held beside the weights: 1.3e11 of 1.41e11 are left for them.
    assert "at least 3 chips, or bring its weights down to 130 GB" in first.text


def test_no_part_alone_makes_it_fit():
    held = {"weights": 4e11, "kv": 0, "gradients": 4e11, "optimizer": 2.4e12, "activations": 1e11}
    first = next_steps(with_phase(phase="training", chips=24, held=held))[0]
    assert first.text.startswith("Spread it over at least 24 chips: until it fits")
    assert first.evidence == "optimizer state 2,400 GB of 3,300 GB; one chip has 141 GB"
    assert "73% of it optimizer state" in (
        rules(with_phase(phase="training", chips=24, held=held))["infeasible"].evidence
    )  # fmt: skip


def test_every_phase_that_does_not_fit_says_so():
    held = dict(DECODE.held, weights=4e11)
    phases = tuple(replace(DECODE, phase=p, chips=3, held=held) for p in ("prefill", "decode"))
    facts = replace(FACTS, phases=phases)
    assert [f.phase for f in next_steps(facts) if f.rule == "shard"] == ["prefill", "decode"]
    text = rules(facts)["infeasible"].text
    assert "prefill needs at least 3 chips and decode needs at least 3 chips" in text
    assert "those phases" in text


@pytest.mark.parametrize(
    "role", ["weights", "kv", "activations", "temporary", "optimizer", "gradients"]
)
def test_the_role_that_dominates(role):
    moved = dict.fromkeys(DECODE.bytes, 1e9) | {role: 45e9}
    finding = rules(with_phase(bytes=moved))[f"{role}-dominated"]
    names = {"kv": "KV cache", "temporary": "temporary tensors", "optimizer": "optimizer state"}
    assert finding.evidence == f"90.0% of 50.00 GB are {names.get(role, role)}"  # 45 of 45 + 5


def test_no_role_dominates_or_memory_is_not_the_limit():
    even = dict.fromkeys(DECODE.bytes, 1e9)
    assert not any("dominated" in rule for rule in rules(with_phase(bytes=even)))
    busy = with_phase(shares=shares(compute=0.9, memory=0.1))
    assert not any("dominated" in rule for rule in rules(busy))


def test_experts_or_dense():
    assert rules(FACTS)["dense"].text == (
        "The model is dense; the largest part of the time goes to feed-forward in decode (60%)."
    )
    assert rules(FACTS)["dense"].evidence == "100 parameters, all of which meet every token"
    assert "every sample" in rules(replace(FACTS, item="sample"))["dense"].evidence
    categories = {"attention": 0.002, "experts": 0.008}
    moe = replace(
        with_phase(categories=categories), experts=64, top_k=8, expert_parameters=0.95, active=20
    )  # fmt: skip
    finding = rules(moe)["moe"]
    assert finding.text == "The experts hold 95.0% of the parameters and take 80% of decode time."
    assert finding.evidence == "64 experts, a token takes 8; 20.0% of the parameters meet a token"
    assert "dense" not in rules(moe)


def test_fusion_is_only_praised_where_it_helps():
    fast = rules(with_phase(naive=Naive(0.020, 1e11)))["fusion"]
    assert "2.0 times as fast" in fast.text
    assert fast.evidence == "20.0 ms to 10.0 ms; bytes 100.0 GB to 50.00 GB"
    assert "fusion" not in rules(with_phase(naive=Naive(0.0101, 5e10)))
    assert "fusion" not in rules(FACTS)


def test_crossovers():
    assert not {"crossover", "no-crossover"} & rules(FACTS).keys()
    ahead = rules(with_phase(crossing=640.0, searched=None))["crossover"]
    assert ahead.text == "Decode reaches the ridge at batch 640."
    assert ahead.evidence == "20.0 FLOP/B at batch 8 against a ridge of 200 (bf16)"
    behind = rules(with_phase(crossing=5.0, searched=None, intensity=300.0))["crossover"]
    assert behind.text == "Decode is beyond the ridge from batch 5 on."
    none = rules(with_phase(searched=4096, crossing_note="too few"))["no-crossover"]
    assert none.text == "Decode reaches the ridge at no batch up to 4,096."
    assert none.evidence.endswith("(bf16); too few")
    prefill = with_phase(phase="prefill", axis="length", searched=None)
    assert rules(prefill)["no-crossover"].text == "Prefill reaches the ridge at no length."


def test_how_sure():
    finding = rules(replace(FACTS, estimated=0.3))["spread"]
    assert "-10%..+15%" in finding.text
    assert finding.evidence == "up to 30% of a phase's time rests on estimates"
    assert rules(FACTS)["spread"].evidence == "every count follows from shapes"
    traces = rules(replace(FACTS, estimated=0.001, unmodelled=0.002))["spread"].evidence
    assert (
        traces == "less than 1% of a phase's time rests on estimates, less than 1% on bytes alone"
    )
    assert "2% on bytes alone" in rules(replace(FACTS, unmodelled=0.02))["spread"].evidence
    strange = rules(replace(FACTS, calibrated=False))
    assert strange["uncalibrated"].text.startswith(
        "No kernel was measured on Chip: its constants are another chip's, -10%..+15%"
    )
    assert "spread" not in strange
    assert not {"spread", "uncalibrated"} & rules(with_phase(spread=None)).keys()


def test_what_halving_the_weights_saves():
    # 80 % of 10 ms waits for memory, 4e10 of 5e10 bytes are weights: 6.4 ms, half of it 3.2 ms.
    finding = advice(FACTS)["weights"]
    assert finding.saves == pytest.approx(0.0032)
    assert finding.share == pytest.approx(0.32)
    assert "FP8" in finding.text
    assert "4-bit" in advice(replace(FACTS, dtype="fp8"))["weights"].text
    assert "weights" not in advice(with_phase(phase="training"))
    assert "weights" not in advice(replace(FACTS, dtype="int8"))


def test_what_the_cache_and_fusion_save():
    # 8e9 of 5e10 bytes: 0.8 x 0.16 x 10 ms = 1.28 ms, half of it is 6.4 % of the step.
    assert advice(FACTS)["kv"].saves == pytest.approx(0.00064)
    # 2e9 of 5e10: 3.2 % of the step, less than matters.
    assert "fuse" not in advice(FACTS)
    moved = dict(DECODE.bytes) | {"temporary": 9e9, "weights": 3.2e10}
    assert advice(with_phase(bytes=moved))["fuse"].saves == pytest.approx(0.8 * 0.01 * 0.2)


def test_more_sequences_only_for_a_decode_that_reads_weights():
    assert "10 times as high" in advice(FACTS)["batch"].evidence  # 200 / 20
    assert "experts" not in advice(FACTS)["batch"].text
    assert "experts that were not hit yet" in advice(replace(FACTS, experts=8))["batch"].text
    assert "batch" not in advice(with_phase(phase="prefill"))
    assert "batch" not in advice(with_phase(bytes=dict(DECODE.bytes) | {"kv": 9e10}))


def test_compute_bound_advice():
    busy = with_phase(shares=shares(compute=0.9, memory=0.1), compute=0.004, products=0.009,
                      faster=("fp8", 2.0, 1.0))  # fmt: skip
    found = advice(busy)
    assert found["precision"].saves == pytest.approx(0.0045)  # half of 9 ms
    # A third of the products' time is FP8 already.
    mixed = advice(replace(busy, phases=(replace(busy.phases[0], faster=("fp8", 2.0, 2 / 3)),)))
    assert mixed["precision"].saves == pytest.approx(0.003)
    assert mixed["precision"].text.startswith("Run the bf16 products in fp8")
    assert found["utilisation"].saves == pytest.approx(0.005)  # 9 ms take 4 at the peak
    assert "precision" not in advice(with_phase(shares=shares(compute=0.9, memory=0.1)))
    full = with_phase(shares=shares(compute=0.9, memory=0.1), compute=0.009, products=0.009)
    assert "utilisation" not in advice(full)


def test_copies_that_wait_for_compute_are_no_products():
    """Instructions bound them: larger tiles do nothing for them, fusion does."""
    copies = with_phase(shares=shares(compute=0.9, memory=0.1), compute=0.001, products=0.002,
                        faster=("fp8", 2.0, 1.0))  # fmt: skip
    found = advice(copies)
    assert found["utilisation"].saves == pytest.approx(0.001)
    assert found["precision"].saves == pytest.approx(0.001)
    # 9 ms less 2 ms of products, and 2e9 of 5e10 bytes of the 1 ms that waits for memory.
    assert found["fuse"].saves == pytest.approx(0.007 + 0.001 * 0.04)
    assert "70% for the instructions of copies" in found["fuse"].evidence


def test_latency_and_network_advice():
    late = with_phase(shares=shares(latency=0.7, memory=0.3))
    assert advice(late)["latency"].saves == pytest.approx(0.007)
    assert "CUDA graph" not in advice(late)["latency"].text
    assert "CUDA graph" in advice(replace(late, eager=True))["latency"].text
    sent = advice(with_phase(shares=shares(network=0.5, memory=0.5)))["network"]
    assert sent.saves == pytest.approx(0.005)


def test_the_optimizer_is_for_training():
    moved = dict(DECODE.bytes) | {"optimizer": 5e10}
    found = advice(with_phase(phase="training", bytes=moved))
    assert found["optimizer"].saves == pytest.approx(0.8 * 0.01 * 0.5)
    assert "optimizer" not in advice(with_phase(bytes=moved))


def test_steps_are_ranked_and_few():
    found = next_steps(FACTS, most=2)
    assert [f.rule for f in found] == ["batch", "weights"]
    assert [f.share for f in found] == sorted((f.share for f in found), reverse=True)
    assert all(f.saves <= DECODE.step for f in found)


def test_a_model_without_matrix_work_has_no_intensity():
    found = rules(with_phase(intensity=0.0, flops=0))
    assert found["memory-bound"].evidence == "no matrix work"


@pytest.mark.parametrize("name", ["deepseek", "llama", "vit", "nothing"])
def test_facts_say_what_the_steps_say(name):
    """The record that the rules see, against the results that the tables show."""
    facts = gather(study(name))
    steps = {s.workload.phase: s for s in study(name).steps if s.ledger.execution == "efficient"}
    assert {p.phase for p in facts.phases} == steps.keys()
    for p in facts.phases:
        step = steps[p.phase]
        assert p.step == step.times.step
        assert p.regime == step.times.regime
        assert p.moved == step.cost.total_bytes
        assert sum(p.categories.values()) == pytest.approx(step.times.device)
        assert p.fits == step.feasible
        assert sum(p.held.values()) == step.memory.total
        assert p.naive is not None
