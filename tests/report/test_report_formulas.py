"""What traces with symbols add: the same numbers as traces with numbers, at any size."""

import math
from dataclasses import asdict, replace

import pytest
from page_arithmetic import evaluate
from report_studies import formulas, given, study

from tracer import full_report
from tracer.algebra import Guard, Scope, ceil_div, distinct, most
from tracer.hardware import load_chip
from tracer.report import studied
from tracer.report.arithmetic import condition, written
from tracer.report.blocks import Text, blocks_of
from tracer.report.data import tables_of
from tracer.report.facts import gather, rates
from tracer.report.findings import conclusions
from tracer.report.records import ContextLimit, Elasticity, Grid, GridPoint, Sensitivity
from tracer.report.sections import build
from tracer.report.sections.sensitivity import _agreement
from tracer.run import parser

PHASES = ("prefill", "decode")


def names(step):
    return {"B": step.workload.batch, "S": step.workload.seq, "L": step.workload.context}


def sums(forms, phase, at, execution="efficient"):
    mine = [f for f in forms if (f.phase, f.execution) == (phase, execution)]
    flops = sum(f.times * evaluate(f.flops, at) for f in mine)
    moved = sum(f.times * evaluate(text, at) for f in mine for text in f.bytes.values())
    return flops, moved


def step_of(name, phase, *more):
    given = ("--phase", phase, "--exec", "efficient", *more)
    (step,) = study(name, *given).steps
    return step


@pytest.mark.parametrize("name", ["deepseek", "llama", "gpt_oss"])
@pytest.mark.parametrize(("phase", "execution"), [
    ("training", "efficient"), ("prefill", "efficient"), ("decode", "efficient"),
    ("prefill", "naive"), ("decode", "naive"),
])  # fmt: skip
def test_closed_forms_are_the_tables_numbers(name, phase, execution):
    """FLOPs, bytes, the seconds of both at datasheet peaks, and memory by what it is for."""
    (step,) = (s for s in study(name).steps
               if (s.workload.phase, s.ledger.execution) == (phase, execution))  # fmt: skip
    found, at = formulas(name), names(step)
    flops, moved = sums(found.closed_forms, phase, at, execution)
    assert flops == pytest.approx(step.cost.total_flops, rel=1e-12)
    assert moved == pytest.approx(step.cost.total_bytes, rel=1e-9)
    mine = [f for f in found.closed_forms if (f.phase, f.execution) == (phase, execution)]
    peak = rates(step)
    matrix = sum(
        f.times * (evaluate(f.flops, at) + evaluate(f.again, at)) / peak[f.precision]
        for f in mine if f.precision
    )  # fmt: skip
    vector = sum(f.times * evaluate(f.vector, at) for f in mine) / step.chip.vector["fp32"]
    assert max(matrix, vector) == pytest.approx(step.times.compute, rel=1e-9)
    assert (matrix > 0) and (vector > 0)
    (limits,) = (r for r in found.closed_ranges if (r.phase, r.execution) == (phase, execution))
    held = {name: evaluate(text, at) for name, text in limits.held.items()}
    assert held == pytest.approx(asdict(step.memory), rel=1e-9)
    assert all(evaluate(text, at) > 0 for _, text in limits.conditions)


@pytest.mark.parametrize("name", ["deepseek", "llama"])
def test_a_training_step_at_other_sizes_is_that_of_another_trace(name):
    (step,) = (s for s in study(name, "--batch", "6", "--seq", "80").steps
               if (s.workload.phase, s.ledger.execution) == ("training", "efficient"))  # fmt: skip
    found, at = formulas(name), names(step)
    flops, moved = sums(found.closed_forms, "training", at)
    assert flops == pytest.approx(step.cost.total_flops, rel=1e-12)
    assert moved == pytest.approx(step.cost.total_bytes, rel=1e-6)
    (limits,) = (r for r in found.closed_ranges
                 if (r.phase, r.execution) == ("training", "efficient"))  # fmt: skip
    held = sum(evaluate(text, at) for text in limits.held.values())
    assert held == pytest.approx(step.memory.total, rel=1e-6)


def test_naive_formulas_stop_where_ops_are_many(monkeypatch):
    """Those that most programs pay for little come first, and none is there beyond the bound."""
    monkeypatch.setattr(studied, "_MOST", 0)
    options = parser().parse_args([*given("llama"), "--phase", "decode", "--phase", "prefill"])
    found = full_report.studied(options)
    assert {(f.phase, f.execution) for f in found.closed_forms} == {
        ("decode", "efficient"), ("prefill", "efficient"),
    }  # fmt: skip
    assert not found.remarks


def test_training_of_a_model_with_many_ops_has_none_and_says_so(monkeypatch):
    monkeypatch.setattr(studied, "_TRAINED", 1)
    options = parser().parse_args([*given("deepseek"), "--seq", "16", "--context", "16"])
    found = full_report.studied(options)
    phases = [form.phase for form in found.closed_forms]
    assert set(phases) == {"prefill", "decode"}
    assert phases == sorted(phases, key=["prefill", "decode"].index)
    assert any(remark.startswith("training: no formulas in symbols") for remark in found.remarks)


@pytest.mark.parametrize("phase", PHASES)
def test_and_at_other_sizes_those_of_another_trace(phase):
    other = ("--batch", "6", "--seq", "80", "--context", "96")
    step = step_of("deepseek", phase, *other)
    flops, moved = sums(formulas("deepseek").closed_forms, phase, names(step))
    assert flops == pytest.approx(step.cost.total_flops, rel=1e-12)
    # An expected number of experts is rounded to bytes once an op, where there are several.
    assert moved == pytest.approx(step.cost.total_bytes, rel=1e-6)


def test_arithmetic_of_every_kind_of_term():
    scope = Scope()
    b, s = scope.symbol("B", 8), scope.symbol("S", 4096)
    at = {"B": 5, "S": 300}
    for value, expected in (
        (3 * b * s - 7, 3 * 5 * 300 - 7),
        (b * b * s / 2, 25 * 300 / 2),
        (ceil_div(b * s, 128), math.ceil(1500 / 128)),
        (b * s % 7, 1500 % 7),
        (most([b * 70, s]), 350),
        (distinct(256, 8, b * s), 256 * (1 - (1 - 8 / 256) ** 1500)),
        (2 * distinct(16, 4, b) * s, 2 * 16 * (1 - 0.75**5) * 300),
        (17, 17),
    ):
        assert evaluate(written(value), at) == pytest.approx(expected, rel=1e-12)


def test_conditions_are_above_zero_where_they_hold_and_nowhere_else():
    scope = Scope()
    b, s = scope.symbol("B", 8), scope.symbol("S", 4096)
    guards = [Guard(s - 64, ">"), Guard(b * s - 512, "<="), Guard(b - 4, "="),
              Guard(s, "divides", 16), Guard(s, "does not divide", 16)]  # fmt: skip
    for guard in guards:
        for batch in (2, 4, 9):
            for length in (48, 64, 65, 128, 200):
                at = {"B": batch, "S": length}
                assert (evaluate(condition(guard), at) > 0) == guard.holds(at), (str(guard), at)


def test_sweeps_pass_through_the_traced_steps():
    found = formulas("deepseek")
    for phase, axis in (("prefill", "seq"), ("decode", "batch")):
        (sweep,) = (s for s in found.sweeps if s.phase == phase)
        assert sweep.axis == axis
        step = step_of("deepseek", phase)
        own = step.workload.seq if axis == "seq" else step.workload.batch
        point = next(p for p in sweep.points if p.value == own)
        assert point.flops == step.cost.total_flops
        assert point.step == pytest.approx(step.times.step, rel=1e-9)
        assert point.memory == pytest.approx(step.times.memory, rel=1e-9)
        assert point.compute == pytest.approx(step.times.compute, rel=1e-9)
        assert point.held == pytest.approx(step.memory.total, rel=1e-9)
        assert (point.tokens, point.regime) == (step.workload.tokens, step.times.regime)


def test_a_batch_of_one_is_in_the_sweep_by_a_trace_of_its_own():
    (sweep,) = (s for s in formulas("llama").sweeps if s.phase == "decode")
    alone = step_of("llama", "decode", "--batch", "1")
    assert sweep.points[0].value == 1
    assert sweep.points[0].step == alone.times.step


def test_a_report_of_one_sequence_has_the_same_sweep():
    """Its own trace has no batch to vary; another one does."""
    one, two = (formulas("deepseek", "--batch", batch) for batch in ("1", "2"))
    for phase in PHASES:
        (mine,) = (s for s in one.sweeps if s.phase == phase)
        (other,) = (s for s in two.sweeps if s.phase == phase)
        if phase == "decode":
            assert mine.points[:4] == other.points[:4]
            assert [p.value for p in mine.points][:4] == [1, 2, 4, 8]
            assert mine.crossings == other.crossings
        else:
            assert mine.held == {"batch": 1} or "batch" not in mine.held
    assert one.decode_limits == two.decode_limits
    assert one.remarks == (
        "decode of one sequence: its experts are not spread over chips, a batch is",
    )  # fmt: skip


@pytest.mark.parametrize(("name", "batch"), [("gpt_oss", "1"), ("deepseek", "2"), ("llama", "2")])
def test_one_limit_and_one_batch_throughout_a_report(name, batch):
    """Wherever a report has decode's limit, its ridge or the batch there, it is the same number."""
    whole = replace(study(name, "--batch", batch), **{
        k: v for k, v in formulas(name, "--batch", batch)._asdict().items() if k != "remarks"
    })  # fmt: skip
    tables = {t.name: t for t in tables_of(build(whole))}

    def cells(table, **where):
        keys = [c.key for c in tables[table].columns]
        rows = [dict(zip(keys, row, strict=True)) for row in tables[table].rows]
        return next(r for r in rows if all(r.get(k, v) == v for k, v in where.items()))

    here = cells("decode_batching")
    context = here["context"]
    grid = cells("decode_limits", ep=1, context=context)
    assert grid["intensity"] == here["limit"]
    assert grid.get("batch") == here.get("batch")
    limits = {row[0]: row[1] for row in tables["limits"].rows}
    assert limits["FLOP/B of decode as the batch grows, at this context"] == here["limit"]
    crossing = cells("crossings_decode_batch_h200_sxm", what="FLOP/B reaches the ridge")
    assert crossing.get("value") == here.get("batch")
    found = {f.rule: f for f in conclusions(gather(whole)) if f.phase == "decode"}
    rule = found["no-crossover" if here.get("batch") is None else "crossover"]
    assert f"a ridge of {here['ridge']:,.0f} (" in rule.evidence


def test_images_are_swept_over_the_batch():
    (sweep,) = formulas("vit").sweeps
    assert (sweep.phase, sweep.axis, sweep.held) == ("forward", "batch", {})
    for batch in (1, 16):
        step = step_of("vit", "forward", "--batch", str(batch))
        point = next(p for p in sweep.points if p.value == batch)
        assert point.step == pytest.approx(step.times.step, rel=1e-9)
        assert point.flops == step.cost.total_flops


def test_where_something_changes_it_has_changed():
    (sweep,) = (s for s in formulas("llama").sweeps if s.phase == "decode")
    for crossing in sweep.crossings:
        if crossing.what.startswith("waits") and crossing.value is not None:
            regime = crossing.what.rpartition(" ")[2]
            batch = str(int(crossing.value))
            assert step_of("llama", "decode", "--batch", batch).times.regime == regime


def test_elasticities_by_traces_at_other_sizes():
    slope = next(e for e in formulas("llama").sensitivity.elasticities
                 if e.phase == "prefill" and e.knob == "B")  # fmt: skip
    four = step_of("llama", "prefill", "--batch", "4").times.step
    two = step_of("llama", "prefill").times.step
    assert slope.doubled == pytest.approx(four / two, rel=1e-9)


def test_experts_over_chips_send_what_leaves_a_chip():
    """Decode of 2 sequences, 4 experts a token, 5 layers of experts, 64 wide: rows of BF16 go and
    come, 7 of 8 to other chips.
    """
    found = formulas("deepseek")
    message = next(m for m in found.messages if m.phase == "decode" and m.plan == "dp = ep 8")
    assert message.calls == 2 * 5
    assert message.bytes == pytest.approx(2 * 5 * 2 * 4 * 64 * 2 * 7 / 8)
    chip = load_chip("h200_sxm")
    assert message.seconds > message.bytes / chip.link_bandwidth
    assert not formulas("llama").plans


def test_a_model_without_closed_form_says_why_and_keeps_the_rest():
    found = formulas("odd")
    assert found.closed_forms is not None or found.remarks


def test_a_sentence_where_grid_and_slopes_disagree():
    """Near the workload k matters more; over the grid, which spans more of m, m does."""
    slopes = tuple(
        Elasticity("decode", "efficient", "h200_sxm", knob, "chip", value)
        for knob, value in (("k", -0.9), ("m", -0.3))
    )
    points = tuple(
        GridPoint({"k": k, "m": m}, m * k**-0.1, "memory", True) for k in (1, 2) for m in (1, 8)
    )
    grid = Grid("decode", "efficient", "h200_sxm", points)
    text = _agreement(Sensitivity(slopes, (grid,))).text
    assert "near the workload `k` moves the step more than `m` (0.90 against 0.30" in text
    agreeing = Grid(
        "decode",
        "efficient",
        "h200_sxm",
        tuple(GridPoint({"k": k, "m": m}, 1 / k, "memory", True) for k in (1, 2) for m in (1, 8)),
    )
    assert "agree" in _agreement(Sensitivity(slopes, (agreeing,))).text


@pytest.mark.parametrize(("name", "flops", "moved", "near"), [
    # A key more, of one layer: 4 heads score 40 latent and rope elements and weigh 32 of them.
    ("deepseek", 4 * 2 * (40 + 32), 2 * 40, 1e-6),
    # 4 heads share 2 keys and 2 values; all layers share a mask, a few bytes a key.
    ("llama", 4 * 2 * (8 + 8), 2 * 2 * (8 + 8), 0.05),
])  # fmt: skip
def test_decode_of_a_long_context_tends_to_what_a_key_brings(name, flops, moved, near):
    """Not to the FLOP/B of the attention kernels at the context of the report."""
    (limit,) = formulas(name).context_limits
    assert limit.intensity == pytest.approx(flops / moved, rel=near)
    chip = load_chip("h200_sxm")  # BF16 throughout, whatever the rest of the step runs in
    assert limit.ridge == pytest.approx(chip.peak["bf16"] / chip.memory_bandwidth, rel=1e-6)
    at = {"B": 2, "S": 32, "L": 1e15}
    grown, bytes_grown = sums(formulas(name).closed_forms, "decode", at)
    assert limit.intensity == pytest.approx(grown / bytes_grown, rel=1e-6)


def test_a_long_context_is_beyond_the_ridge_of_its_own_flops():
    """MLA of DeepSeek-V3 absorbed: 278,528 FLOPs over 1,152 B a key, 241.8 against 206.1 of BF16,
    though its FP8 products have a ridge of 412.
    """
    limit = ContextLimit("h200_sxm", 278_528 / 1_152, 989.4e12 / 4.8e12)
    told = replace(study("deepseek"), context_limits=(limit,))
    text = " ".join(block.text for block in blocks_of(build(told)) if isinstance(block, Text))
    assert "decode tends to 241.8 FLOP/B" in text
    assert "beyond the ridge of 206" in text
    assert "Long contexts stay memory-bound" not in text
