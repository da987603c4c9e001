"""`python -m tracer.run`: build on meta, trace, price, time, answer. The pipeline on one screen."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from tracer.hardware import chip_ids, load_chip

from .errors import UserError

if TYPE_CHECKING:
    from .report.summary import Study

PHASES = ("training", "prefill", "decode")
EXECUTIONS = ("efficient", "naive")


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
    add("--chip", action="append", metavar="ID", help="repeatable; default h200_sxm")
    add("--phase", action="append", metavar="PHASE", help="|".join(PHASES) + "; default all")
    add("--batch", type=int, default=8, metavar="B", help="sequences (default 8)")
    add("--seq", type=int, default=4096, metavar="S", help="training, prefill tokens (4096)")
    add("--context", type=int, default=4096, metavar="L", help="keys a decoded token sees (4096)")
    add("--dtype", default="bf16", metavar="T", help="bf16 (default) or fp8")
    add("--exec", action="append", metavar="E", help="|".join(EXECUTIONS) + "; default both")
    add("--optimizer", default="adamw", metavar="O", help="of training: adamw (default) or none")
    add("--layers", type=int, metavar="N", help="keep only N layers")
    add("--assume", action="append", default=[], metavar="NAME=VALUE",
        help="weight_residency, activation_fusion, causal, routing, launch, matmul_efficiency, "
        "memory_efficiency, fp32_matmul; printed when used")  # fmt: skip
    add("--out", metavar="DIR", help="write report.md, report.json, ops.csv and rooflines there")
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--strict", action="store_true", help="an op without a formula is an error")
    add("--full", action="store_true", help="trace every layer, not a few of each kind")
    add("--trust-remote-code", action="store_true", help="let transformers run the model's code")
    add("--list-chips", action="store_true", help="the chips that --chip knows")
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
        if options.list_models:
            from tracer.models import bundled_ids

            print("\n".join(bundled_ids()))
            return 0
        _run(options, shlex.join(["tracer", *arguments]))
    except UserError as error:
        print(f"tracer: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` closed the pipe: not an error
        sys.stderr.close()
    return 0


def _run(options: argparse.Namespace, command: str) -> None:
    from .report import files, terminal
    from .report.document import as_document

    if options.hf_config is None:
        raise UserError("name a model, such as --hf-config deepseek-ai/DeepSeek-V3")
    out = files.prepare(options.out) if options.out is not None else None
    study = answer(options, command)
    print(json.dumps(as_document(study), indent=1) if options.json else terminal.render(study))
    if out is not None:
        for path in files.write(study, out):
            print(f"wrote {path}", file=sys.stderr)


def answer(options: argparse.Namespace, command: str) -> Study:
    """Everything the outputs show. Input is checked before any model is built."""
    chips = tuple(load_chip(name) for name in dict.fromkeys(options.chip or ["h200_sxm"]))
    phases = _chosen(options.phase, PHASES, "--phase")
    executions = _chosen(options.exec, EXECUTIONS, "--exec")
    _check_sizes(options)
    for chip in chips:
        if options.dtype not in chip.peak and options.dtype in ("bf16", "fp8"):
            raise UserError(
                f"--dtype {options.dtype}: {chip.name} has no {options.dtype} rate, "
                f"only {', '.join(chip.peak)}"
            )

    from .capture.program import load_program
    from .capture.workload import Workload, record
    from .cost import Conventions, price
    from .machine import Timing
    from .predict import predict, take_inventory
    from .report.summary import Study

    conventions, timing = _assumptions(options.assume, Conventions, Timing)
    workloads = [
        Workload(phase, options.batch, options.seq, options.context, options.optimizer)
        for phase in phases
    ]
    fold = not options.full
    with _progress() as say:
        say(f"building {options.hf_config}")
        program = load_program(
            options.hf_config,
            dtype=options.dtype,
            layers=options.layers,
            remote_code=options.trust_remote_code,
        )
        say("counting parameters")
        small = Workload("prefill" if "prefill" in program.phases else program.phases[0], seq=16)
        inventory = take_inventory(record(program, small, fold=fold), small.tokens)
        steps = []
        for workload in workloads:
            for execution in executions:
                say(f"tracing {workload.phase}, {execution}")
                attention = "naive" if execution == "naive" else "fused"
                trace = record(program, workload, attention=attention, fold=fold)
                say(f"pricing {workload.phase}, {execution}")
                ledger = price(trace, conventions, execution=execution, strict=options.strict)
                steps += [predict(workload, ledger, chip, timing) for chip in chips]
    return Study(
        program.name, program.source, options.dtype, inventory, chips, tuple(steps), conventions,
        timing, _versions(), command,
    )  # fmt: skip


def _chosen(given: list[str] | None, known: tuple[str, ...], flag: str) -> list[str]:
    for name in given or []:
        if name not in known:
            raise UserError(f"{flag} {name!r}: choose one of {', '.join(known)}")
    return list(dict.fromkeys(given or known))


def _check_sizes(options: argparse.Namespace) -> None:
    for name in ("batch", "seq", "context"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: give at least 1")


def _assumptions(given: list[str], *kinds: Any) -> list[Any]:
    """`--assume name=value` for whichever of `kinds` has the field."""
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


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A spinner with what is being done, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda message: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("tracer", "torch")}


if __name__ == "__main__":
    sys.exit(main())
