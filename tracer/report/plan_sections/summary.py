"""The answer: results, conclusions and next steps."""

from __future__ import annotations

from ...predict.serving import ServingStep
from ...predict.training import TrainingStep
from ..blocks import Column, Section, Table, Text, table_of
from ..plan_facts import plan_facts
from ..plan_rules import plan_conclusions, plan_next_steps
from ..plan_study import PlanStudy
from ..plans import million
from ..sections.executive import advised, concluded
from ..text import si


def section(study: PlanStudy) -> Section:
    """Results first; what does not fit has no throughput."""
    facts = plan_facts(study)
    step = study.step
    lead: tuple[Text, ...] = ()
    if not step.feasible:
        advice = f" {study.advice.capitalize()}." if study.advice else ""
        lead = (Text(f"**INFEASIBLE**: {step.reason}.{advice}"),)
    parts = (concluded(plan_conclusions(facts)), advised(plan_next_steps(facts)))
    return Section(
        "Summary",
        (
            *lead, _results(study),
            Text("Sentences are made by rules from the numbers of this report, each with the "
                 "figures that it rests on."),
        ),
        tuple(part for part in parts if part is not None),
    )  # fmt: skip


def _results(study: PlanStudy) -> Table:
    step, money = study.step, study.money
    runs = step.feasible
    gpus = step.plan.world
    rate = step.tokens_per_s
    columns = [Column("phase", "phase"), Column("gpus", "GPUs", "size")]
    cells: list[object] = [study.phase, gpus]

    def add(column: Column, value: object) -> None:
        columns.append(column)
        cells.append(value)

    name = "step" if isinstance(step, TrainingStep) else (
        "TPOT" if step.phase == "decode" else "TTFT, no queue"
    )  # fmt: skip
    add(Column("step", name if runs else f"{name}, hypothetical", "s"), step.seconds)
    if runs:
        add(Column("tokens_per_s", "tokens/s", "tokens/s"), rate)
        add(Column("per_gpu", "a GPU", "tokens/s"), rate / gpus)
    if runs and isinstance(step, TrainingStep):
        add(Column("mfu", "MFU, causal", "ratio"), step.mfu)
        add(Column("mfu_full", "MFU, not causal", "ratio"), step.mfu_full)
        add(Column("hours_per_trillion", "GPU hours for 1e12 tokens", "hours"),
            step.gpu_hours_per_trillion)  # fmt: skip
    if runs and isinstance(step, ServingStep):
        hours, dollars = million(step, money)
        add(Column("hours_per_million", "GPU hours for 1e6 tokens", "hours"), hours)
        add(Column("usd_per_million", "USD for 1e6 tokens", "USD"), dollars)
    if runs and money.tokens is not None:
        add(Column("run_hours", f"GPU hours for {si(money.tokens)}tokens", "hours"),
            money.hours(rate, gpus))  # fmt: skip
        add(Column("run_usd", f"USD at {money.price or 0:g} an hour", "USD"),
            money.dollars(rate, gpus))  # fmt: skip
    add(Column("held", "fullest GPU holds", "B"), step.memory.total)
    add(Column("capacity", "of", "B"), step.memory.capacity)
    add(Column("fits", "fits"), "yes" if runs else "no")
    found = table_of(
        "results",
        "What the plan comes to." + (
            "" if runs else " It does not run, so it has no throughput and no price."
        ), columns, [tuple(cells)],
    )  # fmt: skip
    assert found is not None
    return found
