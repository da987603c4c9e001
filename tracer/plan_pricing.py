"""From the options of a plan to its price: the plan, what is assumed, the step and its parts."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from tracer.hardware import Cluster

    from .capture.program import Program
    from .parallel.plan import Plan
    from .predict.assumptions import Assumptions
    from .predict.detail import Detail
    from .predict.expert_load import ExpertChoice
    from .predict.money import Money
    from .predict.placements import Placed
    from .predict.serving import Serving, ServingStep
    from .predict.structure import Kernels
    from .predict.training import TrainingStep
    from .report.plan_sides import PlanSide
    from .report.plan_study import PlanStudy


def plan_of(options: argparse.Namespace) -> Plan:
    """The `Plan` that the options describe.

    Raises:
        UserError: numbers that do not multiply up.
    """
    from .parallel.plan import Plan

    axes: dict[str, Any] = {n: getattr(options, n) or 1 for n in ("tp", "ep", "pp", "cp")}
    for name in ("tp", "ep", "pp", "dp", "cp", "gpus", "microbatches", "seq", "context"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: give at least 1")
    other = axes["tp"] * axes["cp"] * axes["pp"]
    dp = options.dp
    if options.gpus is not None:
        if options.gpus % other:
            raise UserError(f"--gpus {options.gpus} does not divide by tp * cp * pp = {other}")
        if dp is not None and dp * other != options.gpus:
            raise UserError(
                f"--gpus {options.gpus} is not tp * cp * pp * dp = {other} * {dp} = {other * dp}"
            )
        dp = options.gpus // other
    training = options.phase == "training"
    plan = Plan(
        **axes,
        dp=dp or 1,
        micro_batch=options.micro_batch,
        chunks=options.chunks,
        zero=(1 if options.zero is None else options.zero) if training else 0,
        schedule=options.schedule or "1f1b",
        recompute=options.recompute,
        moments=options.moments,
        mtp=options.mtp,
        redundant_experts=options.redundant,
        attention_dp=options.attention_dp,
        sequence_parallel=axes["tp"] > 1 and not options.attention_dp,
    )
    if not training:
        return plan
    each = plan.data_ranks * plan.micro_batch
    count = options.microbatches
    if options.global_batch is not None:
        if options.global_batch < 1 or options.global_batch % each:
            raise UserError(
                f"--global-batch {options.global_batch} does not divide by {each} sequences "
                f"({plan.data_ranks} data ranks of {plan.micro_batch})"
            )
        if count is not None and count * each != options.global_batch:
            raise UserError(
                f"--microbatches {count} of {each} sequences are not --global-batch "
                f"{options.global_batch}"
            )
        count = options.global_batch // each
    return replace(plan, micro_batches=count or 2 * plan.pp)


def assumptions(options: argparse.Namespace) -> Assumptions:
    """What a training plan's price rests on."""
    from .parallel.memory import Headroom
    from .predict.assumptions import Assumptions

    if options.capacity is not None and not 1e9 <= options.capacity <= 1e13:
        raise UserError(f"--capacity {options.capacity:g}: give bytes of a GPU, 80e9 for 80 GB")
    return Assumptions(
        kernels=_kernels(options),
        headroom=Headroom(options.reserve),
        experts=experts_of(options),
        gradients=options.gradients,
        kept=options.kept,
        capacity=options.capacity,
        engine=options.engine,
    )


def serving(options: argparse.Namespace) -> Serving:
    from .parallel.memory import Headroom
    from .predict.serving import Serving

    return Serving(
        _kernels(options),
        Headroom(options.reserve),
        2 if options.overlap else 1,
        experts=experts_of(options),
        weights=options.weights,
        engine=options.engine,
    )


def experts_of(options: argparse.Namespace) -> ExpertChoice:
    """How tokens choose experts, from `--routing`, `--placement` and `--imbalance`.

    Raises:
        UserError: a law that does not exist, a file that holds no counts.
    """
    from .predict.expert_load import UNIFORM, ZIPF, ExpertChoice

    law, zipf = options.routing, 0.0
    counts: tuple[float, ...] = ()
    if law.startswith(f"{ZIPF}:"):
        try:
            zipf = float(law.removeprefix(f"{ZIPF}:"))
        except ValueError as error:
            raise UserError(f"--routing {law}: give the exponent as a number: zipf:0.5") from error
    elif law != UNIFORM:
        counts = recorded_counts(Path(law))
    return ExpertChoice(zipf, counts, options.placement, options.imbalance)


def recorded_counts(path: Path) -> tuple[float, ...]:
    """Tokens by expert of a file: a JSON list, or a number a line in a text or CSV file.

    Raises:
        UserError: no such file, something else in it.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--routing {path}: give uniform, zipf:0.5 or a file of tokens by expert ({error})"
        ) from error
    try:
        if text.lstrip().startswith("["):
            return tuple(float(item) for item in json.loads(text))
        return tuple(float(line) for line in text.replace(",", " ").split())
    except (ValueError, TypeError) as error:
        raise UserError(
            f"--routing {path}: a JSON list of numbers, or a number a line; found {error}"
        ) from error


def _kernels(options: argparse.Namespace) -> Kernels:
    from .cost import Conventions
    from .machine import Timing
    from .predict.structure import Kernels
    from .run import assumptions

    conventions, timing = assumptions(options.assume, Conventions, Timing)
    if not any(item.startswith("rows=") for item in options.assume):
        timing = replace(timing, rows="vector")
    return Kernels(timing, conventions=conventions)


def program_of(options: argparse.Namespace) -> Program:
    """The model that the options name."""
    from .capture.program import load_program

    program = load_program(
        options.hf_config,
        dtype=options.dtype,
        layers=options.layers,
        remote_code=options.trust_remote_code,
    )
    if options.mtp:
        from .predict.mtp import trained_with

        trained_with(program)  # a model that has no MTP module is told so
    return program


def money_of(options: argparse.Namespace, cluster: Cluster) -> Money:
    """Price of a GPU hour and tokens of a run."""
    from .predict.money import Money

    price = cluster.chip_hour if options.price is None else options.price
    return Money(price, options.tokens_budget)


@dataclass(frozen=True)
class Priced:
    """A step, and what it was priced from."""

    program: Program
    step: TrainingStep | ServingStep
    assume: Assumptions | Serving
    money: Money

    def detail(self) -> Detail:
        """Its parts."""
        from .predict.detail import detail_of

        return detail_of(self.program, self.step, self.assume)

    def placements(self) -> tuple[Placed, ...]:
        """What placements of experts would make of its routing."""
        from .parallel.network import network_of
        from .predict.placements import placements
        from .predict.serving import Serving, ServingStep, served

        step, assume, tokens = self.step, self.assume, self.step.seq
        if isinstance(step, ServingStep) and isinstance(assume, Serving):
            assume = served(assume, self.program, step.phase)
            tokens = step.seq if step.phase == "prefill" else 1
        return placements(
            self.program,
            step.plan,
            network_of(step.cluster),
            tokens,
            assume.experts,
            assume.exchange or "normal",
        )

    def advice(self) -> str:
        """What would make a plan fit; empty where it does."""
        from .predict.training import TrainingStep

        step = self.step
        if step.feasible:
            return ""
        from .report.text import size
        from .study.fitting import advice, fewest, remedies, serving_advice

        assume: Any = self.assume
        if not isinstance(step, TrainingStep):
            return serving_advice(self.program, step, assume)
        found = remedies(self.program, step.plan, step.cluster, seq=step.seq, assume=assume)
        states, gpus = fewest(self.program, step.plan, step.memory, assume)
        return (
            f"{advice(found)}; weights, gradients and optimizer held once are {size(states)}: at "
            f"least {gpus:,} of these GPUs"
        )


def price_plan(options: argparse.Namespace, plan: Plan | None = None) -> Priced:
    """The priced step that the options describe, or the same of another `plan`.

    Of a server, a plan that says how many sequences run at once says --batch.

    Raises:
        UserError: a model, a cluster or a plan that cannot be used.
    """
    from tracer.hardware import load_cluster

    from .predict.program import supported

    cluster = load_cluster(options.cluster)
    batch = options.batch
    if plan is None:
        plan = plan_of(options)
    elif plan.micro_batch > 1:
        batch = plan.micro_batch * plan.micro_batches
    program, money = program_of(options), money_of(options, cluster)
    plan = supported(program, plan)
    if options.phase == "training":
        from .predict.training import predict_training

        assume = assumptions(options)
        step = predict_training(program, plan, cluster, seq=options.seq, assume=assume, money=money)
        return Priced(program, step, assume, money)
    from .predict.serving import predict_serving

    assumed = serving(options)
    served = predict_serving(
        program,
        plan,
        cluster,
        options.phase,
        batch=batch,
        seq=options.seq,
        context=options.context or options.seq,
        assume=assumed,
        solve=True,
    )
    return Priced(program, served, assumed, money)


def check_strict(detail: Detail) -> None:
    """Refuse ops without a formula."""
    if detail.unmodelled:
        names = ", ".join(f"{op} ({n:,})" for op, n in sorted(detail.unmodelled.items()))
        raise UserError(f"--strict: no formula for {names}")


def other_side(options: argparse.Namespace) -> PlanSide:
    """What `--compare` names, priced unless it is the file of an earlier run.

    Raises:
        UserError: nothing that it could be.
    """
    from tracer.hardware import cluster_ids

    from .parallel.plan import Plan
    from .report.plan_sides import names_a_file, plan_side_from, side_of_plan

    other = options.compare
    file = names_a_file(other)
    if file is not None:
        return plan_side_from(file)
    changed, plan = argparse.Namespace(**vars(options)), None
    if other in cluster_ids() or other.endswith(".toml"):
        changed.cluster = other
    elif Path(other).exists() or ("/" in other and "=" not in other):
        changed.hf_config = other
    else:
        try:
            plan = Plan.parse(other)
        except UserError as error:
            raise UserError(
                f"--compare {other!r}: give a plan as it is printed ('pp=8 dp=32 zero=1'), a "
                f"cluster, a model, or report.json or plan.json of a run; {error}"
            ) from error
    try:
        return side_of_plan(study_of(price_plan(changed, plan)))
    except UserError as error:
        raise UserError(f"--compare {other}: {error}") from error


def study_of(
    priced: Priced, command: str = "", compared: PlanSide | None = None, advice: str = ""
) -> PlanStudy:
    """What a report of the priced step is made from."""
    from .report.plan_study import PlanStudy
    from .run import versions

    program = priced.program
    return PlanStudy(
        priced.step, priced.detail(), priced.money, program.source, program.dtype,
        priced.assume.kernels.timing, command, versions(), advice, compared,
        str(priced.assume.experts),
    )  # fmt: skip
