"""`python -m tracer.sweep`: trace once with symbols, answer sweeps and limits from the formulas."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tracer.hardware import load_chip

from .cost.conventions import Conventions
from .errors import UserError, did_you_mean
from .machine import Timing
from .machine.symbolic import StepModel
from .progress import Say, progress
from .run import EXECUTIONS, PHASES, assumptions
from .study.closed import EP, Closed
from .study.engine import OBJECTIVES, TOKENS, Job
from .study.grid import Axis, parse_axis
from .study.records import SweepTable
from .study.structure import Cache, Structure, closed_form
from .study.sweeps import check_axes, executor_for, run, with_ones

STUDIES = {
    "decode-batch": "decode over the batch, at one context",
    "prefill-length": "prefill over the prompt's length, at one batch",
    "exploration": "from which batch decode is compute-bound, over EP and L",
    "crossovers": "where compute overtakes memory, KV weights, a context the memory, exchanges all",
    "elasticities": "d ln T / d ln knob for every knob, and where each slope ends",
    "structure": "the same for top-k, hidden, rank and experts, each traced again",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    studies = "\n".join(f"  {name:15} {text}" for name, text in STUDIES.items())
    p = _Parser(
        prog="tracer.sweep", description=__doc__, epilog=f"studies:\n{studies}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = p.add_argument
    add(
        "--hf-config", metavar="MODEL", required=True, help="Hugging Face id, folder or config.json"
    )
    add("--phase", default="decode", metavar="P", help="|".join(PHASES) + " (decode)")
    add("--dtype", default="bf16", metavar="T", help="bf16 (default) or fp8")
    add("--exec", default="efficient", metavar="E", help="efficient (default) or naive")
    add("--layers", type=int, metavar="N", help="keep only N layers")
    add("--chip", default="h200_sxm", metavar="ID", help="default h200_sxm")
    add("--assume", action="append", default=[], metavar="NAME=VALUE", help="as of tracer")
    add("--at", action="append", default=[], metavar="NAME=VALUE",
        help="repeatable; a size or knob that stays: B=128, EP=64, bandwidth=8e12")  # fmt: skip
    add("--sweep", action="append", default=[], metavar="NAME=LOW:HIGH:x2",
        help="repeatable; or NAME=LOW:HIGH:STEP, NAME=A,B,C; last one fastest")  # fmt: skip
    add("--study", action="append", default=[], metavar="NAME", help="repeatable; see below")
    add("--top", type=int, default=0, metavar="N", help="only the N best points")
    add("--by", default=TOKENS, metavar="OBJECTIVE", help="of --top: tokens_per_s or seconds")
    add("--pareto", action="store_true", help="only points that none beats in latency and tokens/s")
    add("--fits", action="store_true", help="of --top and --pareto: only points that fit one chip")
    add("--csv", type=Path, metavar="FILE", help="every point, as it is computed")
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--executor", default="local", metavar="E", help="local, serial or dask://HOST:PORT")
    add("--no-cache", action="store_true", help="trace again, keep nothing")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for bad input, said in one line."""
    try:
        _run(parser().parse_args(sys.argv[1:] if argv is None else list(argv)))
    except UserError as error:
        print(f"tracer.sweep: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `| head` closed the pipe
            sys.stderr.close()
            return 0
        print(f"tracer.sweep: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tracer.sweep: interrupted; rows so far are in the .partial file", file=sys.stderr)
        return 130
    return 0


class _Asked(NamedTuple):
    """Everything that was given, checked."""

    structure: Structure
    timing: Timing
    cache: Cache
    point: dict[str, float]
    axes: list[Axis]
    say: Say


def _run(options: argparse.Namespace) -> None:
    with progress() as say:
        documents, texts = _answers(options, _checked(options, say))
    print(json.dumps(documents, indent=1) if options.json else "\n\n".join(texts))


def _answers(options: argparse.Namespace, asked: _Asked) -> tuple[list[Any], list[str]]:
    """Every sweep and study as a document and as text."""
    chip = load_chip(options.chip)
    documents: list[Any] = []
    texts: list[str] = []

    def keep(name: str, text: str, answers: Any) -> None:
        texts.append(text)
        documents.append({"study": name, "answers": [a.as_dict() for a in answers]})

    if asked.axes:
        closed, model = _closed(asked, chip, {axis.name for axis in asked.axes})
        for table in _sweep(options, asked, closed, model):
            from .report.studies import table as shown

            keep("sweep", shown(table), [table])
    for name in dict.fromkeys(options.study):
        asked.say(f"study {name}")
        _study(name, asked, chip, keep)
    return documents, texts


def _checked(options: argparse.Namespace, say: Say) -> _Asked:
    """Whatever can be refused before anything is traced, is."""
    for flag, value, known in (
        ("--phase", options.phase, PHASES), ("--exec", options.exec, EXECUTIONS),
        ("--by", options.by, OBJECTIVES), *(("--study", s, STUDIES) for s in options.study),
    ):  # fmt: skip
        if value not in known:
            raise UserError(f"{flag} {value!r}: {did_you_mean(value, known)}")
    if options.top < 0:
        raise UserError(f"--top {options.top}: give at least 1")
    if not options.sweep and not options.study:
        raise UserError(
            "nothing to do: give --sweep NAME=VALUES or --study NAME (--help lists them)"
        )
    if options.csv is not None and not options.sweep:
        raise UserError("--csv goes with --sweep")
    if options.csv is not None and not options.csv.absolute().parent.is_dir():
        raise UserError(f"--csv {options.csv}: no such folder")
    conventions, timing = assumptions(options.assume, Conventions, Timing)
    axes = [parse_axis(text) for text in options.sweep]
    point: dict[str, float] = {}
    for text in options.at:
        axis = parse_axis(text)
        if len(axis.values) != 1 or axis.name in point:
            raise UserError(f"--at {text!r}: one value of a name; several go to --sweep")
        if axis.name in {a.name for a in axes}:
            raise UserError(f"--at {text!r}: {axis.name} is swept already")
        point[axis.name] = axis.values[0]
    batch = int(point.get("B", 8))
    structure = Structure(
        options.hf_config, options.phase, options.dtype, options.exec,
        1 if batch == 1 else 8, layers=options.layers, conventions=conventions,
    )  # fmt: skip
    if batch == 1:
        del point["B"]
    cache = Cache(None) if options.no_cache else Cache.of_user()
    return _Asked(structure, timing, cache, point, axes, say)


def _closed(
    asked: _Asked, chip: Any, names: set[str], structure: Structure | None = None
) -> tuple[Closed, StepModel]:
    structure = structure or asked.structure
    asked.say(f"tracing {structure.phase} with symbols")
    closed = closed_form(structure, asked.cache)
    if EP in names | asked.point.keys():
        closed = closed.over_experts()
    model = StepModel(closed.rows, chip, asked.timing, closed.scope, closed.network)
    point = {n: v for n, v in asked.point.items() if n in closed.scope.symbols}
    model.fix(_settled(closed, model, asked.point))
    closed.check({**closed.scope.samples, **point})
    return closed, model


def _settled(closed: Closed, model: StepModel, point: dict[str, float]) -> dict[str, float]:
    """`--at` by the names that the model has, in range."""
    if not point:
        return {}
    grid = check_axes(closed, model, [Axis(name, (value,)) for name, value in point.items()])
    return {axis.name: axis.values[0] for axis in grid.axes}


def _sweep(
    options: argparse.Namespace, asked: _Asked, closed: Closed, model: StepModel
) -> list[SweepTable]:
    title = f"{closed.name}, on {model.chip.name}"
    fixed = {n: v for n, v in model.defaults.items()
             if n in closed.scope.symbols and n not in {a.name for a in asked.axes}}  # fmt: skip
    title += "".join(f", {name} = {value:g}" for name, value in fixed.items())
    ones = any(a.name == "B" and 1.0 in a.values for a in asked.axes)
    if ones and not (options.top or options.pareto or options.csv):
        alone = _closed(asked, model.chip, {a.name for a in asked.axes}, asked.structure.alone())
        return [with_ones(closed, model, *alone, asked.axes, title)]
    grid = check_axes(closed, model, asked.axes, os.cpu_count() or 1)
    job = Job(closed, model, grid, options.top, options.by, options.pareto, options.fits)
    asked.say(f"{grid.size:,} points")
    with executor_for(options.executor, grid.size) as executor:
        found, tables = run(
            job, executor=executor, path=options.csv, title=title,
            tell=lambda done, whole: asked.say(f"{done:,} of {whole:,} points", done, whole),
        )  # fmt: skip
    count = f"{found.points:,} points"
    if options.fits:
        count += f", of which {found.feasible:,} fit"
    print(f"{count}; {found.fastest:.4g} s to {found.slowest:.4g} s", file=sys.stderr)
    return tables


def _study(name: str, asked: _Asked, chip: Any, keep: Any) -> None:
    from .report import studies as shown
    from .study import crossovers, elasticities
    from .study.exploration import compute_bound_exploration

    if name in ("decode-batch", "prefill-length"):
        phase, axis = ("decode", "B=1:1024:x2") if name == "decode-batch" else (
            "prefill", "S=128:131072:x2")  # fmt: skip
        structure = asked.structure.of(phase, 8 if name == "decode-batch" else None)
        given = _of_phase(asked, phase, axis[0])._replace(structure=structure)
        closed, model = _closed(given, chip, set())
        axes = [parse_axis(axis)]
        longest = closed.longest or 131072
        axes = [Axis(a.name, tuple(v for v in a.values if v <= longest), a.geometric) for a in axes]
        title = f"{closed.name}, on {chip.name}"
        if name == "decode-batch":
            alone = _closed(given, chip, set(), structure.alone())
            table = with_ones(closed, model, *alone, axes, title)
        else:
            job = Job(closed, model, check_axes(closed, model, axes))
            table = run(job, title=title)[1][0]
        keep(name, shown.table(table), [table])
        return
    structure = asked.structure.of("decode", None)
    asked = _of_phase(asked, "decode")
    if name == "exploration":
        spread, model = _closed(asked, chip, {EP}, structure)
        assert spread.experts is not None
        sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if spread.experts.count % n == 0]
        lengths = [n for n in (2048, 4096, 8192, 16384) if n <= (spread.longest or n)]
        table = compute_bound_exploration(spread, model, sizes, lengths)
        keep(name, shown.table(table), [table])
        return
    closed, model = _closed(asked, chip, set(), structure)
    sizes_at = {n: int(model.defaults[n]) for n in closed.scope.symbols}
    if name == "crossovers":
        found = [
            crossovers.compute_bound_batch(closed, model, _without(sizes_at, "B")),
            crossovers.kv_outweighs_weights(closed, model, _without(sizes_at, "L")),
            crossovers.longest_context(closed, model, _without(sizes_at, "L")),
        ]
        if closed.experts is not None or closed.network is not None:
            spread, over = _closed(asked, chip, {EP}, structure)
            point = _without({n: int(over.defaults[n]) for n in spread.scope.symbols}, EP)
            found.append(crossovers.network_overtakes_memory(spread, over, point))
        keep(name, shown.crossovers(found), found)
    elif name == "elasticities":
        answers = elasticities.elasticities(closed, model, sizes_at)
        keep(name, f"{closed.name}, at {sizes_at}\n{shown.elasticities(answers)}", answers)
    else:
        knobs = [k for k in ("top_k", "hidden", "rank", "experts") if _has(structure, k)]
        answers = elasticities.structural(structure, model, sizes_at, knobs, asked.cache)
        keep(name, f"{closed.name}, at {sizes_at}\n{shown.elasticities(answers)}", answers)


def _of_phase(asked: _Asked, phase: str, swept: str = "") -> _Asked:
    """`--at` without sizes that a study's phase does not have, or sweeps itself."""
    other = {"decode": "S", "prefill": "L"}[phase]
    return asked._replace(point={n: v for n, v in asked.point.items() if n not in (other, swept)})


def _has(structure: Structure, knob: str) -> bool:
    from .study.structure import config_value

    try:
        config_value(structure.model, knob)
    except UserError:
        return False
    return True


def _without(point: dict[str, int], name: str) -> dict[str, int]:
    return {key: value for key, value in point.items() if key != name}


if __name__ == "__main__":
    sys.exit(main())
