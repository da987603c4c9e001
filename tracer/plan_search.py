"""`--search`: every legal plan of so many GPUs, ranked, as text, JSON, CSV or a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError, did_you_mean
from .plan_options import flag
from .plan_pricing import assumptions, money_of, program_of, serving
from .progress import Say, quiet

if TYPE_CHECKING:
    from tracer.hardware import Cluster

    from .predict.serving import ServingStep
    from .report.search_report import SearchStudy
    from .study.plans import Found

_PRICED = 8  # of the best plans, with the parts of their seconds


def search_servers(options: argparse.Namespace, say: Say = quiet) -> Found[ServingStep]:
    """The search for a prefill or decode instance that the options ask for.

    Raises:
        UserError: options that cannot be searched with, or not one split.
    """
    from .parallel.plan import Plan
    from .study.serving_plans import search_serving

    cluster = _checked(options)
    like = Plan(redundant_experts=options.redundant, attention_dp=options.attention_dp)
    say("tracing and pricing plans")
    return search_serving(
        program_of(options),
        options.gpus,
        cluster,
        options.phase,
        sequences=options.global_batch,
        seq=options.seq,
        context=options.context or options.seq,
        like=like,
        assume=serving(options),
        most={a: getattr(options, a) for a in ("tp", "pp", "ep") if getattr(options, a)},
        executor="local",
        tell=lambda done, whole: say(f"{done:,} of {whole:,} plans", done, whole),
    )


def _checked(options: argparse.Namespace) -> Cluster:
    """The cluster of a search.

    Raises:
        UserError: numbers below 1, GPUs that it does not have, a CSV that cannot be written.
    """
    from tracer.hardware import load_cluster

    if options.gpus is None or options.global_batch is None:
        raise UserError("--search needs --gpus and --global-batch")
    for name in (
        "gpus", "global_batch", "top", "tp", "ep", "pp", "cp", "seq", "context", "micro_batch",
    ):  # fmt: skip
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{flag(name)} {value}: give at least 1")
    if options.csv is not None and not Path(options.csv).absolute().parent.is_dir():
        raise UserError(f"--csv {options.csv}: no such folder: {Path(options.csv).parent}")
    if options.csv is not None and Path(options.csv).is_dir():
        raise UserError(f"--csv {options.csv}: is a folder; give a file")
    cluster = load_cluster(options.cluster)
    if options.gpus > cluster.largest:
        raise UserError(
            f"--gpus {options.gpus:,}: {cluster.name} ({cluster.id}) goes up to {cluster.largest:,}"
        )
    return cluster


def search_plans(options: argparse.Namespace, command: str, say: Say = quiet) -> SearchStudy:
    """The search that the options ask for; the best plans with parts, if a report wants them.

    Raises:
        UserError: options that cannot be searched with, or not one legal plan.
    """
    from .parallel.plan import Plan
    from .parallel.ranks import sizes_of
    from .parallel.schedules import SCHEDULES
    from .predict.training import predict_training
    from .report.search_report import SearchStudy
    from .run import versions
    from .study.plans import bounds_of, search

    cluster = _checked(options)
    if options.schedule and options.schedule not in SCHEDULES:
        known = did_you_mean(options.schedule, SCHEDULES)
        raise UserError(f"--schedule {options.schedule}: no pipeline schedule: {known}")
    like = Plan(
        micro_batch=options.micro_batch,
        zero=1 if options.zero is None else options.zero,
        recompute=options.recompute,
        moments=options.moments,
        mtp=options.mtp,
    )
    program, assume = program_of(options), assumptions(options)
    money = money_of(options, cluster)
    most = {a: getattr(options, a) for a in ("tp", "cp", "pp", "ep") if getattr(options, a)}
    schedules = (options.schedule,) if options.schedule else tuple(SCHEDULES)
    say("tracing and pricing plans")
    found = search(
        program,
        options.gpus,
        cluster,
        global_batch=options.global_batch,
        seq=options.seq,
        like=like,
        assume=assume,
        money=money,
        most=most,
        schedules=schedules,
        executor="local",
        tell=lambda done, whole: say(f"{done:,} of {whole:,} plans", done, whole),
    )
    best = found.ranked[: min(options.top, _PRICED)] if options.out is not None else ()
    detailed = tuple(
        predict_training(program, s.plan, cluster, seq=options.seq, assume=assume, money=money)
        for s in best
    )
    return SearchStudy(
        program.name, program.dtype, cluster.name, cluster.chip.name, options.gpus,
        options.global_batch, options.seq, found, detailed, options.top, command, versions(),
        bounds_of(sizes_of(program).experts, most), schedules,
        found.ranked[0].notes if found.ranked else (),
    )  # fmt: skip
