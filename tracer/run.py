"""`python -m tracer.run`: build on meta, trace, price, time, answer. The pipeline on one screen."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from tracer.hardware import Chip, chip_ids, cluster_ids, load_chip, load_cluster

from .collector import seldom
from .errors import UserError
from .progress import progress

if TYPE_CHECKING:
    from .capture.program import Program
    from .report.summary import Study

PHASES = ("training", "prefill", "decode", "forward")
EXECUTIONS = ("efficient", "naive")
TOKENS = 4096  # default of --seq and --context, where the model's positions reach so far


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def parser() -> argparse.ArgumentParser:
    """The command line of the main job."""
    p = _Parser(
        prog="tracer",
        description="Trace a model on the meta device and say what limits training, prefill and "
        "decode on a chip.",
    )
    add = p.add_argument
    add("--hf-config", metavar="MODEL", help="Hugging Face id, folder or config.json")
    add("--module", metavar="PKG.MOD:FACTORY", help="your own: FACTORY() returns an nn.Module")
    add("--exported", metavar="FILE.pt2", help="a program that torch.export.save wrote")
    add("--input", action="append", default=[], metavar="NAME:DTYPE[B,S,64]",
        help="repeatable; an input of --module; B, S, L are --batch, --seq, --context")  # fmt: skip
    add("--chip", action="append", metavar="ID", help="repeatable; default h200_sxm")
    add(
        "--phase",
        action="append",
        metavar="PHASE",
        help="|".join(PHASES) + "; default those it has",
    )
    add("--batch", type=int, default=8, metavar="B", help="sequences (default 8)")
    add("--seq", type=int, metavar="S", help="tokens a sequence (4096, or all that it has)")
    add("--context", type=int, metavar="L", help="keys that a decoded token sees (as --seq)")
    add("--dtype", metavar="T", help="of --hf-config: bf16 (default) or fp8")
    add("--exec", action="append", metavar="E", help="|".join(EXECUTIONS) + "; default both")
    add("--optimizer", default="adamw", metavar="O", help="of training: adamw (default) or none")
    add("--layers", type=int, metavar="N", help="keep only N layers")
    add("--mtp", action="store_true", help="train the module of multi-token prediction too")
    add("--assume", action="append", default=[], metavar="NAME=VALUE",
        help="counting: weight_residency, activation_fusion, causal, routing, kv; seconds: model "
        "(kernels|roofline), launch, matmul_efficiency, memory_efficiency, fp32_matmul, host, "
        "clock, reserved_sms, attention (best|portable); printed when used")  # fmt: skip
    add(
        "--out",
        metavar="DIR",
        help="write the report there: report.html, .md, .json, tables, figures",
    )
    add(
        "--compare",
        metavar="OTHER",
        help="of --out: another model, chip, or report.json of a run; of a plan another plan",
    )
    add("--checkpoint", metavar="DIR", help="of --out: read its weights, and say how they lie")
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--strict", action="store_true", help="an op without a formula is an error")
    add("--full", action="store_true", help="trace every layer, not a few of each kind")
    add("--trust-remote-code", action="store_true", help="let transformers run the model's code")
    from .plan_options import add_axes

    add_axes(p)
    add("--list-chips", action="store_true", help="the chips that --chip knows")
    add("--list-clusters", action="store_true", help="the bundled clusters")
    add("--list-models", action="store_true", help="the bundled models")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (0, or 2 for bad input, said in one line)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parser().parse_args(arguments)
        if options.list_chips:
            from .report.terminal import chip_table

            print(chip_table([load_chip(name) for name in chip_ids()]))
            return 0
        if options.list_clusters:
            from .report.terminal import cluster_table

            print(cluster_table([load_cluster(name) for name in cluster_ids()]))
            return 0
        if options.list_models:
            from tracer.models import bundled_ids

            print("\n".join(bundled_ids()))
            return 0
        from .plan_options import AXES, given_in

        command = shlex.join(["tracer", *arguments])
        if any(getattr(options, axis) is not None for axis in AXES):
            from .plan import run_from_main

            run_from_main(options, given_in(parser(), arguments), command)
            return 0
        with seldom():
            _run(options, command)
    except UserError as error:
        print(f"tracer: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` closed the pipe: not an error
        sys.stderr.close()
    return 0


def _run(options: argparse.Namespace, command: str) -> None:
    _check_model(options)
    if options.out is None:
        _show(answer(options, command), options.json)
        return
    check(options)
    from .beside import beside

    with beside(meanwhile=_ready_to_draw) as other:  # before the imports, which take both a while
        from .full_report import whole_answer
        from .report import files
        from .report.document import report_of

        out = files.check_folder(options.out)
        study = whole_answer(options, command, other)
        _show(study, options.json)
        for line in files.write(report_of(study), out, other).lines():
            print(line, file=sys.stderr)


def _ready_to_draw() -> None:
    from .report.pictures import warm

    warm()


def _show(study: Study, as_json: bool) -> None:
    from .report import terminal
    from .report.document import as_document

    print(json.dumps(as_document(study), indent=1) if as_json else terminal.render(study))


def check(
    options: argparse.Namespace,
) -> tuple[tuple[Chip, ...], list[str] | None, list[str]]:
    """Chips, phases (None: all) and executions, once everything that can be refused is.

    Raises:
        UserError: something that no run can use.
    """
    named = {chip.id: chip for chip in map(load_chip, options.chip or ["h200_sxm"])}
    asked = _chosen(options.phase, PHASES, "--phase") if options.phase else None
    executions = _chosen(options.exec, EXECUTIONS, "--exec")
    _check_sizes(options)
    for chip in named.values():
        if options.hf_config and (options.dtype or "bf16") in {"bf16", "fp8"} - set(chip.peak):
            raise UserError(
                f"--dtype {options.dtype or 'bf16'}: {chip.name} has no such rate, "
                f"only {', '.join(chip.peak)}"
            )
    return tuple(named.values()), asked, executions


def answer(options: argparse.Namespace, command: str) -> Study:
    """Everything the outputs show. Input is checked before any model is built."""
    chips, asked, executions = check(options)

    from .capture.workload import Workload, record
    from .cost import Conventions, price
    from .machine import Timing
    from .predict import predict, take_inventory
    from .report.summary import Study, plain_config

    conventions, timing = assumptions(options.assume, Conventions, Timing)
    fold = not options.full
    with progress() as say:
        say(f"building {options.hf_config or options.module or options.exported}")
        program = program_of(options)
        phases = available(program, asked)
        seq, context = lengths(options, program)
        say("counting parameters")
        first = next((p for p in ("prefill", "forward") if p in program.phases), program.phases[0])
        small = Workload(first, 1, min(program.shortest, seq), context, "none")
        trace = record(program, small, fold=fold)
        tokens, longer = small.as_run(trace).tokens, None
        if first == "prefill" and 2 * small.seq <= min(TOKENS, program.longest or TOKENS):
            twice = record(program, Workload(first, 1, 2 * small.seq, context, "none"), fold=fold)
            longer = (twice, 2 * tokens)
        inventory = take_inventory(trace, tokens, longer, conventions)
        steps, notes = [], list[str]()
        for phase in phases:
            workload = Workload(phase, options.batch, seq, context, options.optimizer)
            for execution in executions:
                say(f"tracing {phase}, {execution}")
                attention = "naive" if execution == "naive" else "fused"
                trace = record(program, workload, attention=attention, fold=fold)
                notes += [f"{phase}: {note}" for note in trace.header["notes"]]
                say(f"pricing {phase}, {execution}")
                ledger = price(trace, conventions, execution=execution, strict=options.strict)
                run = workload.as_run(trace)
                steps += [predict(run, ledger, chip, timing) for chip in chips]
    for note in dict.fromkeys(notes):
        print(f"note: {note}", file=sys.stderr)
    return Study(
        program.name, program.source, program.dtype, inventory, chips, tuple(steps), conventions,
        timing, versions(), command, tuple(dict.fromkeys(notes)),
        plain_config(getattr(program, "config", None)),
    )  # fmt: skip


def lengths(options: argparse.Namespace, program: Program) -> tuple[int, int]:
    """Tokens of a sequence, and keys that a decoded token attends."""
    longest = min(TOKENS, program.longest or TOKENS)
    return options.seq or longest, options.context or options.seq or longest


def _check_model(options: argparse.Namespace) -> None:
    """Exactly one model, and options only where they apply."""
    for name in ("compare", "checkpoint"):
        if getattr(options, name) is not None and options.out is None:
            raise UserError(f"--{name} goes with --out: the report has it")
    for name, value in vars(options).items():
        if isinstance(value, list) and name in (
            "hf_config", "module", "exported", "out", "compare", "checkpoint",
        ):  # fmt: skip
            # argparse turns a lone '--' into an empty list
            raise UserError(f"--{name.replace('_', '-')} has no value")
    given = [f for f in ("hf_config", "module", "exported") if getattr(options, f) is not None]
    names = " and ".join("--" + name.replace("_", "-") for name in given)
    if not given:
        raise UserError(
            "name a model: --hf-config deepseek-ai/DeepSeek-V3, --module PACKAGE.MODULE:FACTORY "
            "or --exported FILE.pt2"
        )
    if len(given) > 1:
        raise UserError(f"{names}: give one model, not {len(given)}")
    if options.hf_config is None:
        for name in ("dtype", "layers", "mtp", "trust_remote_code"):
            if getattr(options, name):
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} goes with --hf-config; {names} is traced as it is")
    if options.input and options.exported is not None:
        raise UserError("--input: an exported program has the inputs that it was exported with")


def program_of(options: argparse.Namespace) -> Program:
    """What `--hf-config`, `--module` or `--exported` names."""
    from .capture.inputspec import parse_input
    from .capture.program import load_program

    inputs = [parse_input(text) for text in options.input]
    if options.module is not None:
        from .capture.usermodule import ModuleProgram

        return ModuleProgram(options.module, inputs)
    if options.exported is not None:
        from .capture.exported import ExportedProgram

        return ExportedProgram(options.exported)
    return load_program(
        options.hf_config,
        dtype="bf16" if options.dtype is None else options.dtype,
        layers=options.layers,
        remote_code=options.trust_remote_code,
        inputs=inputs,
        mtp=options.mtp,
    )


def available(program: Program, asked: list[str] | None) -> list[str]:
    """The phases to run: those asked for, all of which must exist, or all that there are."""
    for phase in asked or ():
        if phase not in program.phases:
            raise UserError(
                f"{program.name} cannot run phase {phase!r}: it has {', '.join(program.phases)}"
            )
    return asked or list(program.phases)


def _chosen(given: list[str] | None, known: tuple[str, ...], flag: str) -> list[str]:
    for name in given or []:
        if name not in known:
            raise UserError(f"{flag} {name!r}: choose one of {', '.join(known)}")
    return list(dict.fromkeys(given or known))


def _check_sizes(options: argparse.Namespace) -> None:
    for name in ("batch", "seq", "context"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: give at least 1")


def assumptions(given: list[str], *kinds: Any) -> list[Any]:
    """`--assume name=value` for whichever of `kinds` has the field.

    Raises:
        UserError: no such name, or no number.
    """
    values: dict[str, Any] = {}
    known = {name: kind for kind in kinds for name in kind.names()}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or name not in known:
            raise UserError(f"--assume {item!r}: write NAME=VALUE with one of {', '.join(known)}")
        default = getattr(known[name](), name)
        try:
            values[name] = text if isinstance(default, str) else float(text)
        except ValueError:
            raise UserError(f"--assume {item!r}: {text!r} is not a number") from None
    return [kind(**{k: v for k, v in values.items() if known[k] is kind}) for kind in kinds]


def versions() -> dict[str, str]:
    """Of what the numbers rest on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("tracer", "torch")}


if __name__ == "__main__":
    sys.exit(main())
