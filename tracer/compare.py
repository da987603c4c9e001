"""`python -m tracer.compare TRACE.json`: a measured profile against the prediction, op by op.

Takes a `torch.profiler` Chrome trace or an Nsight Systems SQLite export. With `--hf-config` or
`--trace` the prediction is that model's; without, the ops of the profile itself are priced.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tabulate import tabulate

from tracer.hardware import Chip, load_chip

from .cost import NAIVE, price
from .errors import UserError
from .machine import Timing
from .profiles import MeasuredKernel, Profile, ProfileError, read_profile
from .profiles.matching import (
    Match,
    Matching,
    Predicted,
    against_model,
    from_ledger,
    on_its_own,
)


class Gap(NamedTuple):
    """The GPU had nothing to do; seconds, and the kernels on either side."""

    seconds: float
    after: str
    before: str


class Line(NamedTuple):
    """One class, module or op: seconds measured and predicted, of the ops that have both."""

    name: str
    ops: int
    measured: float
    predicted: float
    unpriced: float  # measured seconds of ops without a prediction


@dataclass(frozen=True)
class Comparison:
    """A profile beside its prediction. All seconds.

    `steps` lead from the floor to the measured step and sum up to it.
    """

    profile: Profile
    chip: Chip
    matching: Matching
    span: float  # from the first kernel's start to the last one's end
    busy: float  # at least one kernel runs
    gaps: tuple[Gap, ...]
    floor: float  # the ideal bound: everything overlaps with everything
    steps: tuple[tuple[str, float], ...]

    def by(self, key: Callable[[Match], str]) -> list[Line]:
        """Matches summed by what `key` says, longest measured first."""
        groups: dict[str, list[Match]] = {}
        for match in self.matching.matches:
            groups.setdefault(key(match), []).append(match)
        lines = []
        for name, members in groups.items():
            both = [m for m in members if m.predicted is not None]
            lines.append(Line(
                name, len(members), sum(m.seconds for m in both),
                sum(m.predicted.seconds for m in both if m.predicted is not None),
                sum(m.seconds for m in members if m.predicted is None),
            ))  # fmt: skip
        return sorted(lines, key=lambda line: -(line.measured + line.unpriced))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(prog="tracer.compare", description="A measured profile against the prediction.")
    add = p.add_argument
    add("profile", type=Path, metavar="TRACE.json", help="torch.profiler trace or nsys SQLite")
    add("--chip", default="h200_sxm", metavar="ID", help="what it ran on (default h200_sxm)")
    add("--hf-config", metavar="MODEL", help="the model that ran; without, the profile's own ops")
    add("--trace", type=Path, metavar="FILE", help="a trace that Session.save wrote, for the same")
    add("--phase", default="prefill", help="of --hf-config: training|prefill|decode|forward")
    add("--batch", type=int, default=1, metavar="B", help="sequences (default 1)")
    add("--seq", type=int, default=4096, metavar="S", help="tokens a sequence (default 4096)")
    add("--context", type=int, metavar="L", help="keys that a decoded token sees (as --seq)")
    add("--dtype", default="bf16", help="of --hf-config: bf16 (default) or fp8")
    add("--layers", type=int, metavar="N", help="keep only N layers")
    add("--attention", default="portable", help="best, or portable (default: torch's own kernels)")
    add("--step", type=int, metavar="N", help="the ProfilerStep to take (default the last)")
    add("--top", type=int, default=12, metavar="N", help="rows of each table (default 12)")
    add("--json", action="store_true", help="one JSON document on standard output")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for input that cannot be used, said in one line."""
    try:
        options = parser().parse_args(argv)
        result = _answer(options)
        document = json.dumps(as_document(result), indent=1) if options.json else ""
        print(document or render(result, options.top))
    except UserError as error:
        print(f"tracer.compare: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` closed the pipe: not an error
        sys.stderr.close()
    return 0


def _answer(options: argparse.Namespace) -> Comparison:
    if options.hf_config is not None and options.trace is not None:
        raise UserError("--hf-config and --trace: give one prediction, not 2")
    if options.top < 1:
        raise UserError(f"--top {options.top}: give at least 1")
    chip = load_chip(options.chip)
    timing = Timing(attention=options.attention)
    profile = read_profile(options.profile, options.step)
    predicted = _predicted(options, chip, timing)
    return compare(profile, chip, timing, predicted)


def _predicted(options: argparse.Namespace, chip: Chip, timing: Timing) -> list[Predicted] | None:
    if options.trace is not None:
        from .capture.store import load

        return from_ledger(price(load(options.trace), execution=NAIVE), chip, timing)
    if options.hf_config is None:
        return None
    from .capture.program import load_program
    from .capture.workload import Workload, record

    context = options.context or options.seq
    work = Workload(options.phase, options.batch, options.seq, context)
    program = load_program(options.hf_config, dtype=options.dtype, layers=options.layers)
    trace = record(program, work, fold=False)
    return from_ledger(price(trace, execution=NAIVE), chip, timing)


def compare(
    profile: Profile,
    chip: Chip,
    timing: Timing | None = None,
    predicted: Iterable[Predicted] | None = None,
) -> Comparison:
    """Match `profile` with `predicted`, or with its own ops' prices.

    Raises:
        ProfileError: no `predicted`, and a profile without shapes.
    """
    if predicted is None and not profile.has_shapes:
        raise ProfileError(
            f"{profile.path}: no shapes recorded: profile with record_shapes=True, or name the "
            "model with --hf-config or --trace"
        )
    if predicted is None:
        matching = on_its_own(profile, chip, timing or Timing())
    else:
        matching = against_model(profile, predicted)
    start, end = profile.kernels[0].start, max(kernel.end for kernel in profile.kernels)
    gaps = tuple(sorted(_gaps(profile.kernels), key=lambda gap: -gap.seconds))
    span, idle = end - start, sum(gap.seconds for gap in gaps)
    known = [m.predicted for m in matching.matches if m.predicted is not None]
    # Ops that a model must run and that ran elsewhere (fused, say) belong to its floor.
    whole = [*known, *(matching.absent if predicted is not None else ())]
    floor = max(
        sum(p.matrix for p in whole), sum(p.vector for p in whole), sum(p.memory for p in whole)
    )
    matched = sum(m.seconds for m in matching.matches if m.predicted is not None)
    unpriced = sum(m.seconds for m in matching.matches if m.predicted is None)
    strays = sum(kernel.seconds for kernel in matching.unexplained)
    estimate, absent = sum(p.seconds for p in whole), sum(p.seconds for p in whole[len(known) :])
    steps = (
        ("floor: everything overlaps", floor),
        ("one kernel after the other, launches, efficiencies", estimate - floor),
        ("predicted ops that launched no kernel", -absent),
        ("kernels slower (+) or faster (-) than predicted", matched - (estimate - absent)),
        ("ops without a prediction", unpriced),
        ("kernels that no op explains", strays),
        ("kernels that ran side by side", span - idle - matched - unpriced - strays),
        ("idle gaps", idle),
    )
    return Comparison(profile, chip, matching, span, span - idle, gaps, floor, steps)


def _gaps(kernels: Sequence[MeasuredKernel]) -> Iterable[Gap]:
    """Times without any kernel, whatever the stream."""
    last = kernels[0]
    for kernel in kernels[1:]:
        if kernel.start > last.end:
            yield Gap(kernel.start - last.end, last.name, kernel.name)
        if kernel.end > last.end:
            last = kernel


# -- what it shows ---------------------------------------------------------------------------------


def _class_of(match: Match) -> str:
    return match.predicted.kind if match.predicted is not None else "not predicted"


def _module_of(match: Match) -> str:
    return match.module or "(no module)"


def _op_of(match: Match) -> str:
    return match.op.name


def _strays(matching: Matching) -> dict[str, tuple[int, float]]:
    return _summed((kernel.name, kernel.seconds) for kernel in matching.unexplained)


def _summed(items: Iterable[tuple[str, float]]) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    for name, seconds in items:
        count, total = found.get(name, (0, 0.0))
        found[name] = (count + 1, total + seconds)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def render(result: Comparison, top: int = 12) -> str:
    """The tables as text; times in microseconds."""
    matching = result.matching
    pairs = sum(m.predicted is not None for m in matching.matches)
    parts = [
        f"{result.profile.path} on {result.chip.name}: {len(result.profile.kernels):,} kernels in "
        f"{_us(result.span)} us, busy {result.busy / (result.span or 1):.0%}; {pairs:,} of "
        f"{len(matching.matches):,} ops with kernels are predicted"
    ]
    parts += [f"note: {note}" for note in result.profile.notes]
    parts.append(_table("op class", result.by(_class_of), top))
    if any(match.module for match in matching.matches):
        parts.append(_table("module", result.by(_module_of), top))
    else:
        parts.append(_table("op", result.by(_op_of), top))
    absent = _summed((item.name, item.seconds) for item in matching.absent)
    for title, table in (
        ("kernels that no op explains", _strays(matching)),
        ("ops without kernels (predicted us)", absent),
    ):
        if table:
            rows = [(name[:60], f"{n:,}", _us(seconds)) for name, (n, seconds) in table.items()]
            rows = _cut(rows, top)
            parts.append(_plain((title, "count", "us"), rows))
    if result.gaps:
        rows = [(_us(gap.seconds), gap.after[:36], gap.before[:36]) for gap in result.gaps]
        parts.append(_plain(("idle us", "after", "before"), _cut(rows, top), ("right",)))
    steps = [(name, _us(seconds)) for name, seconds in (*result.steps, ("measured", result.span))]
    parts.append(_plain(("from the floor to the step", "us"), steps))
    return "\n\n".join(parts)


def _table(what: str, lines: Sequence[Line], top: int) -> str:
    rows = [
        (line.name, f"{line.ops:,}", _us(line.measured), _us(line.predicted), _ratio(line),
         _us(line.unpriced))
        for line in lines
    ]  # fmt: skip
    headers = (what, "ops", "measured us", "predicted us", "measured/predicted", "unpredicted us")
    return _plain(headers, _cut(rows, top))


def _cut(rows: list[Any], top: int) -> list[Any]:
    if len(rows) <= top:
        return rows
    return [*rows[:top], (f"{len(rows) - top} more", *[""] * (len(rows[0]) - 1))]


def _plain(headers: Sequence[str], rows: Sequence[Any], align: Sequence[str] = ()) -> str:
    first = align or ("left", *["right"] * (len(headers) - 1))
    align = (*first, *["left"] * (len(headers) - len(first)))
    return tabulate(rows, headers, colalign=align if rows else None, disable_numparse=True)


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}"


def _ratio(line: Line) -> str:
    return f"{line.measured / line.predicted:.2f}" if line.predicted else "-"


def as_document(result: Comparison) -> Mapping[str, Any]:
    """Everything as one JSON document; all times in seconds."""
    matching = result.matching

    def lines(key: Callable[[Match], str]) -> list[dict[str, Any]]:
        return [
            {**line._asdict(), "ratio": line.measured / line.predicted if line.predicted else None}
            for line in result.by(key)
        ]

    return {
        "profile": result.profile.path,
        "chip": result.chip.id,
        "notes": list(result.profile.notes),
        "kernels": len(result.profile.kernels),
        "span": result.span,
        "busy": result.busy,
        "floor": result.floor,
        "by_class": lines(_class_of),
        "by_module": lines(_module_of),
        "by_op": lines(_op_of),
        "ops": [
            {
                "op": m.op.name, "shapes": m.op.shapes(), "dtypes": m.op.dtypes(),
                "module": m.module, "kernels": [k.name for k in m.kernels], "measured": m.seconds,
                "predicted": m.predicted.seconds if m.predicted is not None else None,
            }
            for m in matching.matches
        ],
        "unexplained": [
            {"kernel": name, "count": n, "seconds": s} for name, (n, s) in _strays(matching).items()
        ],
        "ops_without_kernels": [
            {"op": p.name, "shapes": p.shapes, "module": p.module, "predicted": p.seconds}
            for p in matching.absent
        ],
        "gaps": [gap._asdict() for gap in result.gaps],
        "steps": [{"what": name, "seconds": seconds} for name, seconds in result.steps],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
