"""The answer: results, conclusions and next steps."""

from __future__ import annotations

from ...predict.serving import ServingStep
from ...predict.training import TrainingStep
from ..blocks import Column, Section, Table, Text
from ..plan_facts import plan_facts
from ..plan_rules import plan_conclusions, plan_next_steps
from ..plan_study import PlanStudy
from ..plans import million
from ..sections.executive import advised, concluded
from ..text import si
from ..units import show


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
    step, money, runs = study.step, study.money, study.step.feasible
    gpus, rate = step.plan.world, step.tokens_per_s
    training = isinstance(step, TrainingStep)
    name = "step" if training else "TPOT" if study.phase == "decode" else "TTFT, no queue"
    rows: list[tuple[str, float | None, str]] = [
        (name if runs else f"{name}, hypothetical", step.seconds, "s")
    ]
    if runs:
        rows += [("tokens/s", rate, "tokens/s"), ("tokens/s a GPU", rate / gpus, "tokens/s")]
    if runs and isinstance(step, TrainingStep):
        rows += [
            (f"MFU of the {step.precision} peak, causal pairs", step.mfu, "ratio"),
            (f"MFU of the {step.precision} peak, all pairs", step.mfu_full, "ratio"),
            (
                "MFU with the FLOPs of the MTP module, causal pairs",
                step.mfu_with_mtp if step.plan.mtp else None,
                "ratio",
            ),
            ("GPU hours for 1e12 tokens", step.gpu_hours_per_trillion, "hours"),
        ]
    if runs and isinstance(step, ServingStep):
        hours, dollars = million(step, money)
        rows += [("GPU hours for 1e6 tokens", hours, "hours"),
                 ("USD for 1e6 tokens", dollars, "USD")]  # fmt: skip
    if runs and money.tokens is not None:
        tokens = f"{si(money.tokens).strip()} tokens"
        rows += [(f"GPU hours for {tokens}", money.hours(rate, gpus), "hours"),
                 (f"USD for {tokens}", money.dollars(rate, gpus), "USD")]  # fmt: skip
    if runs and money.price is not None:
        rows.append(("USD of a GPU hour", money.price, "USD"))
    m = step.memory
    rows += [("bytes of the fullest GPU", m.total, "B"), ("of a GPU", m.capacity, "B"),
             ("of them kept free", m.reserve, "B")]  # fmt: skip
    return Table(
        "results",
        "What the plan comes to." + (
            "" if runs else " It does not run, so it has no throughput and no price."
        ),
        (Column("what", "what"), Column("reads", "reads"),
         Column("value", "in base units", "number")),
        [(what, show(value, unit), value) for what, value, unit in rows if value is not None],
    )  # fmt: skip
