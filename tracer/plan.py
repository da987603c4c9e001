"""`python -m tracer.plan`: what a plan over many GPUs takes in seconds, memory and dollars.

Prices one plan, or with `--search` every legal plan of so many GPUs and ranks those that fit.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import UserError, did_you_mean

if TYPE_CHECKING:
    from .predict.serving import ServingStep
    from .predict.training import TrainingStep

PHASES = ("training", "prefill", "decode")
AXES = ("cluster", "gpus", "tp", "ep", "pp", "dp", "cp", "zero", "schedule", "microbatches")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def add_axes(p: argparse.ArgumentParser) -> None:
    """The options that say how a model is cut; the main command has them too."""
    add = p.add_argument
    add("--cluster", metavar="ID", help="h800_ib, h100_ib, ... or a .toml (--list-clusters)")
    add("--gpus", type=int, metavar="N", help="all GPUs; by default tp * cp * pp * dp")
    for axis, what in (("tp", "tensor"), ("ep", "expert"), ("pp", "pipeline"), ("dp", "data"),
                       ("cp", "context")):  # fmt: skip
        add(f"--{axis}", type=int, metavar="N", help=f"{what} parallel ranks")
    add("--zero", type=int, metavar="N", help="0, 1, 2 or 3 (FSDP); default 1")
    add("--schedule", metavar="S", help="1f1b, dualpipe, zb1p, ...; default 1f1b")
    add("--microbatches", type=int, metavar="N", help="of a pipeline in a step")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(prog="tracer.plan", description="Price a plan over many GPUs, or search for one.")
    add = p.add_argument
    add("--hf-config", metavar="MODEL", help="Hugging Face id, folder or config.json")
    add("--dtype", default="bf16", metavar="T", help="bf16 (default) or fp8")
    add_axes(p)
    add("--phase", default="training", metavar="P", help="training (default), prefill or decode")
    add("--seq", type=int, default=4096, metavar="S", help="tokens a sequence (default 4096)")
    add("--context", type=int, metavar="L", help="keys that a decoded token sees (as --seq)")
    add("--global-batch", type=int, metavar="B", help="sequences of a training step")
    add("--batch", type=int, default=8, metavar="B", help="serving: sequences of a data rank (8)")
    add("--micro-batch", type=int, default=1, metavar="B", help="sequences at once (default 1)")
    add("--chunks", type=int, default=1, metavar="N", help="stages a rank when interleaved")
    add("--recompute", default="none", metavar="R", help="none, latent, selective or full")
    add("--moments", default="fp32", metavar="T", help="of AdamW: fp32 (default) or bf16")
    add("--gradients", default="parameter", metavar="T", help="kept as parameter (default) or fp32")
    add("--kept", default="trace", metavar="K", help="activations: trace (default) or fp8")
    add("--redundant", type=int, default=0, metavar="N", help="copies of experts, serving")
    add("--attention-dp", action="store_true", help="TP ranks have sequences of their own")
    add("--weights", metavar="fp8", help="serve a transformers model with FP8 linears")
    add("--overlap", action="store_true", help="serving: two micro-batches that hide messages")
    add("--engine", default="fused", metavar="E", help="serving: an engine's kernels, or traced")
    add("--imbalance", type=float, metavar="X", help="busiest expert rank over the mean")
    add("--reserve", type=float, default=0.1, metavar="X", help="share of memory kept free (0.1)")
    add("--capacity", type=float, metavar="BYTES", help="of a GPU; default what the chip file says")
    add("--tokens-budget", type=float, metavar="N", help="tokens of a whole run (14.8e12)")
    add("--price", type=float, metavar="USD", help="of a GPU hour; default the cluster file's")
    add("--assume", action="append", default=[], metavar="NAME=VALUE",
        help="as in the main command: host, clock, model, rows, causal, ...")  # fmt: skip
    add("--search", action="store_true", help="every legal plan of --gpus, ranked")
    add("--top", type=int, default=10, metavar="N", help="rows of a search (default 10)")
    add("--verbose", action="store_true", help="notes; of a search also every dropped plan")
    add("--csv", metavar="FILE", help="of a search: all plans with their reasons")
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--out", metavar="DIR", help="write plan.json, a Gantt chart and a Chrome trace there")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for input that cannot be used, said in one line."""
    try:
        run(parser().parse_args(argv))
    except UserError as error:
        print(f"tracer.plan: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` closed the pipe: not an error
        sys.stderr.close()
    return 0


def run_from_main(given: argparse.Namespace) -> None:
    """`run` with the options of the main command, where they name a plan.

    Raises:
        UserError: options that a plan does not take.
    """
    options = parser().parse_args([])
    if len(given.phase or ()) > 1:
        raise UserError("a plan is priced for one --phase: training, prefill or decode")
    for name in ("chip", "module", "exported", "exec"):
        if getattr(given, name):
            raise UserError(f"--{name} does not go with a plan: --cluster names the chip")
    for name in (*AXES, "hf_config", "context", "batch", "assume", "out", "json"):
        setattr(options, name, getattr(given, name))
    options.phase = given.phase[0] if given.phase else "training"
    options.dtype = given.dtype or "bf16"
    options.seq = given.seq or options.seq
    run(options)


def run(options: argparse.Namespace) -> None:
    """Answer what the options ask."""
    if options.hf_config is None:
        raise UserError("name a model: --hf-config deepseek-ai/DeepSeek-V3")
    if options.cluster is None:
        raise UserError("name a cluster: --cluster h800_ib (tracer --list-clusters has them all)")
    if options.phase not in PHASES:
        raise UserError(f"--phase {options.phase!r}: choose one of {', '.join(PHASES)}")
    if options.search and options.phase != "training":
        raise UserError("--search ranks training plans; price serving plans one by one")
    from .report.files import check_folder

    out = check_folder(options.out) if options.out is not None else None
    if options.search:
        _search(options)
        return
    step = price_plan(options)
    advice = _advice(step, options)
    if options.json:
        more = {"advice": advice} if advice else {}
        print(json.dumps(step.as_dict() | more, indent=1))
    else:
        from .report.plans import render

        print(render(step, verbose=options.verbose, advice=advice))
    if out is not None:
        _write(step, out, options)


def plan_of(options: argparse.Namespace) -> Any:
    """The `Plan` that the options describe.

    Raises:
        UserError: numbers that do not multiply up.
    """
    from .parallel.plan import Plan

    axes = {name: getattr(options, name) or 1 for name in ("tp", "ep", "pp", "cp")}
    for name in ("tp", "ep", "pp", "dp", "cp", "gpus", "microbatches"):
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


def assumptions(options: argparse.Namespace) -> Any:
    """`Assumptions` of a training plan."""
    from .parallel.memory import Headroom
    from .predict.training import Assumptions

    if options.capacity is not None and not 1e9 <= options.capacity <= 1e13:
        raise UserError(f"--capacity {options.capacity:g}: give bytes of a GPU, 80e9 for 80 GB")
    return Assumptions(
        kernels=_kernels(options),
        headroom=Headroom(options.reserve),
        imbalance=options.imbalance,
        gradients=options.gradients,
        kept=options.kept,
        capacity=options.capacity,
    )


def _kernels(options: argparse.Namespace) -> Any:
    from .cost import Conventions
    from .machine import Timing
    from .predict.structure import Kernels
    from .run import assumptions

    conventions, timing = assumptions(options.assume, Conventions, Timing)
    if not any(item.startswith("rows=") for item in options.assume):
        timing = replace(timing, rows="vector")
    return Kernels(timing, conventions=conventions)


def _money(options: argparse.Namespace, cluster: Any) -> Any:
    from .predict.money import Money

    price = cluster.chip_hour if options.price is None else options.price
    return Money(price, options.tokens_budget)


def price_plan(options: argparse.Namespace) -> TrainingStep | ServingStep:
    """The priced step that the options describe."""
    from tracer.hardware import load_cluster

    from .capture.program import load_program

    cluster = load_cluster(options.cluster)
    plan = plan_of(options)
    program = load_program(options.hf_config, dtype=options.dtype)
    if options.phase == "training":
        from .predict.training import predict_training

        return predict_training(
            program,
            plan,
            cluster,
            seq=options.seq,
            assume=assumptions(options),
            money=_money(options, cluster),
        )
    from .parallel.memory import Headroom
    from .predict.serving import Serving, predict_serving

    assume = Serving(
        _kernels(options),
        Headroom(options.reserve),
        2 if options.overlap else 1,
        imbalance=options.imbalance,
        weights=options.weights,
        engine=options.engine,
    )
    return predict_serving(
        program,
        plan,
        cluster,
        options.phase,
        batch=options.batch,
        seq=options.seq,
        context=options.context or options.seq,
        assume=assume,
        solve=True,
    )


def _advice(step: TrainingStep | ServingStep, options: argparse.Namespace) -> str:
    """What would make a training plan fit; empty where it does."""
    if options.phase != "training" or step.feasible:
        return ""
    from .capture.program import load_program
    from .study.fitting import advice, remedies

    program = load_program(options.hf_config, dtype=options.dtype)
    return advice(
        remedies(program, step.plan, step.cluster, seq=options.seq, assume=assumptions(options))
    )


def _search(options: argparse.Namespace) -> None:
    from tracer.hardware import load_cluster

    from .capture.program import load_program
    from .parallel.plan import Plan
    from .parallel.schedules import SCHEDULES
    from .report.plans import render_search
    from .study.plans import search

    if options.gpus is None or options.global_batch is None:
        raise UserError("--search needs --gpus and --global-batch")
    for name in ("gpus", "global_batch"):
        if getattr(options, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {getattr(options, name)}: give at least 1")
    if options.schedule and options.schedule not in SCHEDULES:
        known = did_you_mean(options.schedule, SCHEDULES)
        raise UserError(f"--schedule {options.schedule}: no pipeline schedule: {known}")
    if options.csv is not None and not Path(options.csv).absolute().parent.is_dir():
        raise UserError(f"--csv {options.csv}: no such folder: {Path(options.csv).parent}")
    cluster = load_cluster(options.cluster)
    if options.gpus > cluster.largest:
        raise UserError(
            f"--gpus {options.gpus:,}: {cluster.name} ({cluster.id}) goes up to {cluster.largest:,}"
        )
    like = Plan(
        micro_batch=options.micro_batch,
        zero=1 if options.zero is None else options.zero,
        recompute=options.recompute,
        moments=options.moments,
    )
    program = load_program(options.hf_config, dtype=options.dtype)
    most = {a: getattr(options, a) for a in ("tp", "cp", "pp", "ep") if getattr(options, a)}
    found = search(
        program,
        options.gpus,
        cluster,
        global_batch=options.global_batch,
        seq=options.seq,
        like=like,
        assume=assumptions(options),
        money=_money(options, cluster),
        most=most,
        schedules=(options.schedule,) if options.schedule else tuple(SCHEDULES),
        executor="local",
    )
    if options.csv is not None:
        with Path(options.csv).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["plan", "step_s", "tokens_per_s_per_gpu", "memory_gb", "dropped"])
            for step in found.ranked:
                speed = step.tokens_per_s / step.plan.world
                gb = step.memory.total / 1e9
                writer.writerow([step.plan, step.seconds, speed, gb, ""])
            writer.writerows([item.plan, "", "", "", item.reason] for item in found.dropped)
    if options.json:
        print(json.dumps({
            "ranked": [step.as_dict() for step in found.ranked[: options.top]],
            "dropped": found.reasons,
        }, indent=1))  # fmt: skip
        return
    print(render_search(found, options.top, verbose=options.verbose))


def _write(step: TrainingStep | ServingStep, out: Path, options: argparse.Namespace) -> None:
    """plan.json, and of a pipeline its chart and timeline."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan.json").write_text(json.dumps(step.as_dict(), indent=1))
    print(f"wrote {out / 'plan.json'}", file=sys.stderr)
    if options.phase != "training" or step.plan.pp == 1:
        return
    from .predict.training import timeline_of
    from .report.chrome import pipeline_trace
    from .report.gantt import gantt

    timeline = timeline_of(step)  # type: ignore[arg-type]
    gantt(timeline, out / "pipeline.svg")
    (out / "pipeline.json").write_text(json.dumps(pipeline_trace(timeline)))
    for name in ("pipeline.svg", "pipeline.json"):
        print(f"wrote {out / name}", file=sys.stderr)


__all__ = ["add_axes", "main", "parser", "plan_of", "price_plan", "run"]

if __name__ == "__main__":
    sys.exit(main())
