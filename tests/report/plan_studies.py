"""Studies of small plans for the report's tests, each made once a process."""

from __future__ import annotations

import functools
from dataclasses import replace

from report_studies import given

from tracer.plan_options import parser
from tracer.plan_pricing import other_side, price_plan, study_of
from tracer.plan_search import search_plans
from tracer.report.plan_report import plan_report
from tracer.report.plan_study import PlanStudy
from tracer.report.report import Report
from tracer.report.search_report import SearchStudy

TRAINING = ("--gpus", "16", "--pp", "2", "--ep", "8", "--microbatches", "8", "--price", "2",
            "--tokens-budget", "1e12")  # fmt: skip
DECODE = ("--phase", "decode", "--dp", "4", "--ep", "4", "--batch", "4", "--context", "256")
# 1 GB with 0.99999 of it kept free leaves 10 kB.
INFEASIBLE = ("--gpus", "2", "--microbatches", "2", "--capacity", "1e9", "--reserve", "0.99999")
MTP = ("--hf-config", given("deepseek_mtp")[1], *TRAINING, "--mtp")
SEARCH = ("--search", "--gpus", "4", "--global-batch", "6", "--schedule", "1f1b", "--tp", "2",
          "--out", "-")  # fmt: skip


def arguments(*more: str) -> list[str]:
    return [*given("deepseek")[:2], "--seq", "64", "--cluster", "h100_ib", *more]


@functools.cache
def plan_study(*more: str) -> PlanStudy:
    """The study of a plan of the small DeepSeek."""
    options = parser().parse_args(arguments(*more))
    priced = price_plan(options)
    compared = None if options.compare is None else other_side(options)
    study = study_of(priced, "tracer.plan", compared, priced.advice())
    return replace(study, placements=priced.placements())


@functools.cache
def report(*more: str) -> Report:
    """Its report."""
    return plan_report(plan_study(*more))


@functools.cache
def search_study() -> SearchStudy:
    """A search over 4 GPUs."""
    return search_plans(parser().parse_args(arguments(*SEARCH)), "tracer.plan --search")
