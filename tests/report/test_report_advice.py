"""What is advised to whom: no format below 4 bits, no higher peak for kernels too small for it."""

from dataclasses import replace

import pytest
from made_facts import DECODE, FACTS, advice, rules, shares, with_phase
from report_studies import study

from tracer.report.advice import next_steps
from tracer.report.facts import gather


def test_weights_are_not_asked_to_shrink_below_what_formats_allow():
    """675 GB in FP8 into 141 GB would be 1.7 bits a weight."""
    held = {"weights": 675e9, "kv": 1e8, "gradients": 0, "optimizer": 0, "activations": 4e6}
    facts = replace(with_phase(chips=5, held=held), dtype="fp8")
    first = next_steps(facts)[0]
    assert first.text == (
        "Spread it over at least 5 chips: until it fits, its other rows are hypothetical."
    )
    # 250 GB in FP8 are 125 GB in 4 bits, and 141 - 0.104 GB are there.
    fewer = replace(with_phase(chips=2, held=held | {"weights": 250e9}), dtype="fp8")
    assert "or bring its weights down to 141 GB" in next_steps(fewer)[0].text


def test_activations_that_do_not_fit_may_be_computed_again():
    """802 GB, 614 of them activations: the other 188 take 2 chips of 102 GB."""
    held = {"weights": 23.5e9, "kv": 0, "gradients": 23.5e9, "optimizer": 141.2e9,
            "activations": 614.1e9}  # fmt: skip
    facts = replace(with_phase(phase="training", chips=8, held=held), chip_memory=102e9)
    assert next_steps(facts)[0].text == (
        "Spread it over at least 8 chips, or over 2 with its activations recomputed in the "
        "backward (up to a third more work): until it fits, its other rows are hypothetical."
    )
    # Nothing to recompute without a backward.
    assert "recompute" not in next_steps(replace(facts, phases=(
        replace(facts.phases[0], phase="prefill"),)))[0].text  # fmt: skip


def test_logits_of_all_positions_of_a_prompt():
    """A head of 2 of 10 ms: of 4096 positions one is needed."""
    prompt = with_phase(phase="prefill", tokens=8 * 4096, categories={"head": 0.002})
    found = advice(prompt)["logits"]
    assert found.saves == pytest.approx(0.002 * 4095 / 4096)
    assert found.evidence == "the head takes 2.00 ms at all 32,768 positions"
    assert "logits" not in advice(with_phase(categories={"head": 0.002}))  # decode has one alone


def test_tables_that_are_looked_up_do_not_meet_every_sample():
    facts = replace(FACTS, tables=0.4, item="sample")
    assert rules(facts)["dense"].evidence == (
        "100 parameters, 40.0% of them in tables of which a sample meets a few rows"
    )
    recommender = replace(facts, tables=0.999)
    assert "dense" not in rules(recommender)
    assert rules(recommender)["tables"].text.startswith(
        "Tables that are looked up hold 99.9% of the parameters; the largest part"
    )
    moved = dict(DECODE.bytes) | {"optimizer": 5e10}  # half of all bytes
    learning = replace(recommender, phases=with_phase(phase="training", bytes=moved).phases)
    assert advice(learning)["sparse"].saves == pytest.approx(0.8 * 0.01 * 0.5 * 0.999)
    assert "optimizer" not in advice(learning)


def test_which_parameters_are_only_looked_up():
    """96 x 32 of a table; a tied one is multiplied with by the head and meets every token."""
    facts = gather(study("llama"))
    assert facts.tables == 96 * 32 / facts.parameters
    assert gather(study("vit")).tables == 0


def test_kernels_too_small_for_the_chip():
    small = with_phase(bound=0.0005, shares=shares(latency=0.6, compute=0.4), products=0.004,
                       compute=0.0002, faster=("fp8", 2.0, 1.0))  # fmt: skip
    found = advice(small)
    assert found["batch"].text.startswith("Put more sequences in a step: its kernels are too small")
    assert found["batch"].saves == pytest.approx(0.0095)
    assert found["batch"].evidence == "all work at full rates takes 500 us of 10.0 ms"
    assert "precision" not in found  # 0.2 of 4 ms at the peak: a higher one changes nothing
    assert "too small" not in advice(FACTS)["batch"].text
