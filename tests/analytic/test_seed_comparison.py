"""The seed report and the trace: what differs in FLOPs, weights and KV is said without remainder.

Each equation takes the report's figure of a line, applies the reasons which
`scripts/compare_seed.py` gives for it, and must arrive at the trace's integer. Activations,
temporaries and seconds have no such equation; what is said of them is checked where it is a number.
"""

import importlib
import sys
from pathlib import Path

import pytest
import seed_report_rules as rules
import seed_report_traced as traced
from mla_formulas import absorbed_core_flops, attention_matrices, distinct_experts, fp8_matrix_bytes
from seed_report_claims import claims
from seed_report_rules import ATTENTION, EMBEDDING, EXPERTS, FFN, HEAD, V3
from seed_report_traced import OPTIMIZER, REST, Point, anchor, line_of, lines

SCRIPTS = Path(__file__).parents[2] / "scripts"
EXECUTIONS = [x.name for x in rules.EXECUTIONS]
MOE = V3.layers - V3.dense_layers
MATRICES = sum(k * n for k, n in attention_matrices(V3).values())
EXPERT = 3 * V3.hidden * V3.expert_width
TABLE = V3.vocab * V3.hidden
BLOCKS = 128 * 128

FORWARD = [("prefill", 8, 255), ("prefill", 8, 4096), ("decode", 8, 255), ("decode", 8, 32768)]


@pytest.fixture(scope="module")
def script():
    """`scripts/compare_seed.py`, as it finds itself when it is run."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("compare_seed")
    sys.path.remove(str(SCRIPTS))


def naive(phase, batch, length):
    """The report with no residency and no fusion: its bytes before its factors."""
    return rules.PHASES[phase](batch, length, rules.NAIVE).lines


def every(executions=EXECUTIONS):
    names = "phase,batch,length,execution"
    return pytest.mark.parametrize(names, [(*f, x) for f in FORWARD for x in executions])


@every()
def test_flops_of_a_forward(phase, batch, length, execution):
    """(a) softmax, (b) causality, (c) absorption, (d) the gather; nothing else."""
    ours, theirs = lines(Point(phase, batch, length, execution)), naive(phase, batch, length)
    for same in (EXPERTS, FFN, HEAD):
        assert ours[same].flops == theirs[same].flops
    assert theirs[EMBEDDING].flops > 0 == ours[EMBEDDING].flops
    heads = V3.layers * V3.heads
    if phase == "decode":
        head_space = heads * batch * length * 641  # core, softmax included
        kv_b = V3.layers * 2 * batch * 512 * 128 * 256
        absorbed = V3.layers * absorbed_core_flops(V3, batch, length)
        assert ours[ATTENTION].flops == theirs[ATTENTION].flops - head_space - kv_b + absorbed
    else:
        softmax = heads * batch * length**2
        above = heads * batch * (length * (length - 1) // 2) * 640  # pairs above the diagonal
        acausal = above if execution == "efficient" else 0
        assert ours[ATTENTION].flops == theirs[ATTENTION].flops - softmax - acausal


@every()
def test_weights_of_a_forward(phase, batch, length, execution):
    """(g) scales and BF16, (h) absorbed halves, (i) distinct experts, (j) rows of the table."""
    tokens = batch * (1 if phase == "decode" else length)
    ours, theirs = lines(Point(phase, batch, length, execution)), naive(phase, batch, length)
    norms = V3.layers * (1536 + 512)  # one more byte each
    scales = sum(fp8_matrix_bytes(k, n) - k * n for k, n in attention_matrices(V3).values())
    attention = theirs[ATTENTION].weights + norms + V3.layers * scales
    if phase == "decode":  # kv_b_proj: 2 bytes an element, no scales
        kv_b = 512 * 128 * 256
        attention += V3.layers * (kv_b - 4 * kv_b // BLOCKS)
    assert ours[ATTENTION].weights == attention
    assert ours[FFN].weights == theirs[FFN].weights * (1 + 4 / BLOCKS)
    assert ours[HEAD].weights == 2 * theirs[HEAD].weights
    assert ours[EMBEDDING].weights == 2 * tokens * V3.hidden
    # Poisson's experts out, exact ones in; scales of all of them; gate BF16, its bias FP32.
    poisson = MOE * EXPERT * rules.distinct_experts(V3, tokens)
    exact = MOE * EXPERT * distinct_experts(V3, tokens)
    gate = MOE * (V3.hidden * V3.experts + 4 * V3.experts)
    shared = MOE * EXPERT * 4 / BLOCKS
    want = theirs[EXPERTS].weights - poisson + exact * (1 + 4 / BLOCKS) + shared + gate
    assert ours[EXPERTS].weights == pytest.approx(want, abs=6 * MOE)  # whole bytes a kernel
    # What the efficient mode divides away was never free.
    x = next(x for x in rules.EXECUTIONS if x.name == execution)
    for name, line in rules.PHASES[phase](batch, length, x).lines.items():
        assert line.weights * x.residency(name) == pytest.approx(theirs[name].weights, rel=1e-15)


@every()
def test_cache_of_a_forward(phase, batch, length, execution):
    """(p) Two bytes an element; unfused decode reads the first 512 of 576 again for the values."""
    ours, theirs = lines(Point(phase, batch, length, execution)), naive(phase, batch, length)
    again = V3.layers * batch * length * 512 * 2
    unfused = phase == "decode" and execution == "naive"
    assert ours[ATTENTION].kv == 2 * theirs[ATTENTION].kv + (again if unfused else 0)
    assert {line.kv for name, line in ours.items() if name != ATTENTION} == {0}


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_flops_of_training(execution):
    """(e) FP8 weight gradients contract over 2,048 for 2,040 tokens, or 16,384 for 16,320 rows."""
    ours, theirs = lines(anchor("training", execution)), naive("training", 8, 255)
    a_token = 2 * V3.layers * MATRICES, 2 * MOE * 9 * EXPERT, 2 * 3 * 3 * V3.hidden * 18432
    for line, padded in zip((ATTENTION, EXPERTS, FFN), a_token, strict=True):
        more = 8 * padded
        if line == ATTENTION:
            heads = 3 * V3.layers * V3.heads * 8
            above = 640 * 255 * 254 // 2 if execution == "efficient" else 0
            more -= heads * (255**2 + above)
        assert ours[line].flops == theirs[line].flops + more
    assert ours[HEAD].flops == theirs[HEAD].flops
    assert {ours[name].flops for name in (EMBEDDING, REST, OPTIMIZER)} == {0}


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_weights_of_training(execution):
    """(k) BF16 weights read for the maxima and again for the cast; the backward has FP8 copies."""
    ours = lines(anchor("training", execution))
    kv_a, norms = V3.hidden * V3.latent, 1536 + 512  # kv_a_proj is read once, to be padded
    attention = 4 * (MATRICES - kv_a) + 2 * kv_a + 2 * 2 * norms
    assert ours[ATTENTION].weights == V3.layers * attention
    assert ours[FFN].weights == 4 * 3 * 3 * V3.hidden * V3.dense_width
    gate = 2 * 2 * V3.hidden * V3.experts + 4 * V3.experts
    assert ours[EXPERTS].weights == MOE * (4 * (V3.experts + 1) * EXPERT + gate)
    assert ours[HEAD].weights == 2 * 2 * TABLE
    assert ours[EMBEDDING].weights == 2 * 2040 * V3.hidden


def test_training_has_states_and_no_cache():
    """(q), (u) AdamW writes what it reads but for the gradient: 28 bytes a parameter in all."""
    ours = lines(anchor("training"))
    assert sum(line.kv for line in ours.values()) == 0
    count = rules.parameter_count()
    assert ours[OPTIMIZER].weights == 2 * count
    # Master and two moments, FP32, in and out; the BF16 gradient; and a step count a tensor.
    states = ours[OPTIMIZER].states - (6 * 4 + 2) * count
    assert 0 <= states < 10_000


@every(["efficient"])
def test_activations_that_have_an_equation(phase, batch, length, execution):
    """(l) BF16 in and out of the head; (j) a row and an index of 8 bytes; halved by the report."""
    ours = lines(Point(phase, batch, length, execution))
    theirs = rules.PHASES[phase](batch, length, rules.EFFICIENT).lines
    tokens = batch * (1 if phase == "decode" else length)
    assert ours[HEAD].activations == 4 * theirs[HEAD].activations
    assert ours[EMBEDDING].activations == 4 * theirs[EMBEDDING].activations + 8 * tokens


def test_lines_hold_every_op():
    """By path and phase; and what no line claims has no product and little time."""
    assert line_of("forward", "model.layers.0.mlp.gate_proj") == FFN
    assert line_of("forward", "model.layers.3.mlp.gate") == EXPERTS
    assert line_of("backward", "model.layers.60.self_attn.q_a_layernorm") == ATTENTION
    assert line_of("forward", "model.layers.60.post_attention_layernorm") == REST
    assert line_of("optimizer", "") == OPTIMIZER
    for phase in rules.PHASES:
        point = anchor(phase)
        cut = lines(point).values()
        total = traced.ledger(point).total()
        assert sum(line.flops for line in cut) == total.total_flops
        assert sum(line.bytes_hbm for line in cut) == total.total_bytes
        assert sum(line.seconds for line in cut) == pytest.approx(traced.times(point).step)
        assert lines(point)[REST].seconds < 0.01 * traced.times(point).step


# What the trace gives for the review's numbers, in plain figures where it is no estimate.
PARAMETERS = 671_026_404_352
TRACED = {
    ("A1", "278,656"): 128 * (2 * 576 + 2 * 512),
    ("A1", "242"): 128 * 2176 / 1152,
    ("B13", "181,312"): 181_312 + 128 * 4 / 2 + 16 / (2 * 2040),  # statistics; seeds of a call
    ("B15", "18.8"): 28 * PARAMETERS / 1e12,
    ("B16", "57"): 8 * 7168 * 2 / 1e3,
    ("B16", "3.78"): 2 * 2040 * 7168 * 129280 / 1e12,
    ("B16", "0.015"): 2 * 8 * 7168 * 129280 / 1e12,
    ("C18", "7.88"): 8,
    ("C18", "1.4"): 100 * (1 - 56.62699953372 / 57.42083078599),
}
ACTIVE = 36_624_596_992
for stated, seq in (("1.009", 255), ("1.12", 4096), ("1.53", 32768), ("1.85", 163840)):
    core = 61 * 128 * 320
    TRACED["B8", stated] = (ACTIVE + core * seq) / (ACTIVE + core * (seq + 1) / 2)


def test_traced_numbers_of_the_review():
    checked = {(c.at, c.stated): c.traced() for c in claims() if c.traced}
    for key, want in TRACED.items():
        assert checked[key] == pytest.approx(want, rel=1e-7), key
    # The floor of A5 holds for the step as estimated, and the report's efficient step is below it.
    assert checked["A5", "16.1"] > checked["A5", "33.7"] > 33.7 > 2 * 16.1
    # A6: decode's FLOP/B rises with L, and attention's is above the experts'.
    assert checked["A6", "57.9"] > checked["A6", "7.70"]
    assert checked["A6", "65.6"] > checked["A6", "5.0"]
    # B9: no product of the estimate comes near the report's ceiling.
    assert 0.5 < checked["B9", "0.964"] < 0.8


def test_page_is_what_the_script_writes(script):
    """Whole. After a change of formulas or constants: python scripts/compare_seed.py."""
    committed = (SCRIPTS.parent / "docs" / "seed_report.md").read_text()
    assert committed.splitlines() == script.page().splitlines()


def test_page_lists_the_23_tables(script):
    """In the report's order; one a section but two in 4.1 (and its Config) and 6.2."""
    sections = [entry.section for entry in script.TABLES]
    numbers = [tuple(map(int, s.split("."))) for s in sections]
    assert len(sections) == 23 and numbers == sorted(numbers)
    assert {s for s in sections if sections.count(s) > 1} == {"4.1", "6.2"}


def test_every_reason_is_used_and_known(script):
    used = {
        letter
        for point in script.points()
        for name in lines(point)
        for letter in script.reasons(point, name)
    }
    assert used == set(script.REASONS)
    for point in script.points():
        for name in lines(point):
            assert len(script.reasons(point, name)) > 0


def test_check_fails_on_an_old_page(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "page", lambda: "new\n")
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["compare_seed.py", "--check"])
    assert script.main() == 1 and "out of date" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["compare_seed.py"])
    assert script.main() == 0
    monkeypatch.setattr(sys, "argv", ["compare_seed.py", "--check"])
    assert script.main() == 0
