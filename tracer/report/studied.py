"""Everything that a report takes from traces with symbols: formulas, sweeps, sensitivity, limits.

Separate from the steps of the report, so that another process can do it at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tracer.hardware import Chip

from ..cost import EFFICIENT, NAIVE, Conventions, Ledger, price
from ..errors import UserError
from ..machine import Timing
from ..predict import predict
from ..study.closed import Closed, close
from ..study.structure import SYMBOLS
from . import moved, spread, swept
from .closed import closed_forms, closed_range, sublayers
from .records import (
    ClosedForm,
    ClosedRange,
    ContextLimit,
    DecodeLimit,
    Elasticity,
    Grid,
    Message,
    PlanRow,
    Sensitivity,
    Sublayer,
    Sweep,
)

if TYPE_CHECKING:
    from ..capture.program import Program
    from ..capture.workload import Workload

T = TypeVar("T")

_MOST = 6_000  # ops that are traced with symbols, beyond which only the main execution is
_TRAINED = 1_000  # ops of a forward, beyond which training, 3 to 7 times as many, is not
_AXES = {"prefill": ("seq",), "decode": ("batch",), "forward": ("batch",)}


@dataclass(frozen=True)
class Asked:
    """The sizes and assumptions of a report."""

    batch: int
    seq: int
    context: int
    phases: tuple[str, ...]
    executions: tuple[str, ...]
    chips: tuple[Chip, ...]
    timing: Timing
    conventions: Conventions
    optimizer: str = "none"  # of training

    @property
    def main(self) -> str:
        """The execution that questions are asked of; of others there are formulas alone."""
        return EFFICIENT if EFFICIENT in self.executions else self.executions[0]


class Studied(NamedTuple):
    """Fields of a `Study`; `remarks` say what could not be made, and why."""

    closed_forms: tuple[ClosedForm, ...] | None
    closed_ranges: tuple[ClosedRange, ...] | None
    sublayers: tuple[Sublayer, ...] | None
    sweeps: tuple[Sweep, ...] | None
    sensitivity: Sensitivity | None
    decode_limits: tuple[DecodeLimit, ...] | None
    context_limits: tuple[ContextLimit, ...] | None
    plans: tuple[PlanRow, ...] | None
    messages: tuple[Message, ...] | None
    remarks: tuple[str, ...]


def study(program: Program, asked: Asked) -> Studied:
    """Trace every phase with symbols, and answer the report's questions from all but training.

    A phase that cannot be traced with symbols costs its own answers and nothing else.
    """
    told: list[str] = []
    forms: list[ClosedForm] = []
    ranges: list[ClosedRange] = []
    lines: list[Sublayer] = []
    answers = _Answers([], [], [], [], [], [], [])
    ops: dict[str, int] = {}
    for phase in sorted(asked.phases, key=lambda phase: phase == "training"):
        found: dict[str, Closed] = {}
        if phase == "training" and max(ops.values(), default=0) > _TRAINED:
            told.append(
                f"training: no formulas in symbols, as a forward alone has {max(ops.values()):,} "
                "ops and a report is to be had in seconds"
            )
            continue
        try:
            ledger = _ledger(program, _workload(asked, phase), asked.conventions, asked.main)
            if phase != "training":
                found[asked.main] = _closed(program, ledger, phase)
        except UserError as error:
            told.append(f"{phase}, {asked.main}: no formulas in symbols ({error})")
            continue
        ops[phase] = len(ledger.trace.ops)
        _formulas(ledger, phase, forms, ranges)
        lines += sublayers(ledger, phase)
        if phase == "training":
            continue
        batched, alone = found, list[Ledger]()
        if "batch" in _AXES.get(phase, ()):
            batched = _tried(told, f"{phase} of many", _many, program, asked, phase, found) or {}
            alone = _tried(told, f"{phase} of one", _alone, program, asked, phase, batched) or []
        for chip in asked.chips:
            _answer(answers, told, asked, phase, found, chip)
            _sweep(answers, told, asked, phase, batched, alone, chip)
    whole = sum(ops.values())
    for phase, count in sorted(ops.items(), key=lambda item: item[1]):
        for execution in (e for e in asked.executions if e != asked.main):
            whole += count
            if whole > _MOST:
                continue
            given = program, _workload(asked, phase), asked.conventions, execution
            other = _tried(told, f"{phase}, {execution}: no formulas in symbols", _ledger, *given)
            if other is not None:
                _formulas(other, phase, forms, ranges)
    for listed in (forms, ranges, lines):
        listed.sort(key=lambda item: asked.phases.index(item.phase))
    sensitivity = Sensitivity(tuple(answers.elasticities), tuple(answers.grids))
    return Studied(
        tuple(forms) or None, tuple(ranges) or None, tuple(lines) or None,
        tuple(answers.sweeps) or None, sensitivity if sensitivity.elasticities else None,
        tuple(answers.limits) or None, tuple(answers.far) or None, tuple(answers.plans) or None,
        tuple(answers.messages) or None, tuple(told),
    )  # fmt: skip


def _formulas(
    ledger: Ledger, phase: str, forms: list[ClosedForm], ranges: list[ClosedRange]
) -> None:
    """What the page evaluates of one step."""
    mine = closed_forms(ledger, phase)
    forms += mine
    ranges.append(closed_range(ledger, phase, mine))


class _Answers(NamedTuple):
    sweeps: list[Sweep]
    elasticities: list[Elasticity]
    grids: list[Grid]
    limits: list[DecodeLimit]
    far: list[ContextLimit]
    plans: list[PlanRow]
    messages: list[Message]


def _on(
    told: list[str], asked: Asked, phase: str, found: Mapping[str, Closed], chip: Chip
) -> list[swept.Formulas]:
    """The closed forms of a phase on one chip."""
    return [
        f for execution, closed in found.items()
        if (f := _tried(told, f"{phase}, {execution} on {chip.id}", swept.formulas, execution,
                        closed, chip, asked.timing)) is not None
    ]  # fmt: skip


def _sweep(
    answers: _Answers, told: list[str], asked: Asked, phase: str, found: Mapping[str, Closed],
    alone: Sequence[Ledger], chip: Chip,
) -> None:  # fmt: skip
    """What asks for other sizes than those of the report: sweeps, and decode of any batch."""
    every = _on(told, asked, phase, found, chip)
    for axis in _AXES.get(phase, ()):
        work = replace(_workload(asked, phase), batch=1)
        steps = [predict(work.as_run(x.trace), x, chip, asked.timing) for x in alone]
        made = _tried(told, f"{phase} over {axis} on {chip.id}", swept.sweep, phase, axis, every,
                      steps)  # fmt: skip
        answers.sweeps.extend([made] if made is not None else [])
    best = next((f for f in every if f.execution == EFFICIENT), None)
    if phase == "decode" and best is not None:
        limits = _tried(told, f"limits of decode on {chip.id}", swept.decode_limits, best,
                        asked.timing)  # fmt: skip
        answers.limits.extend(limits or [])
        answers.far.extend(swept.context_limit(best))


def _answer(
    answers: _Answers, told: list[str], asked: Asked, phase: str, found: Mapping[str, Closed],
    chip: Chip,
) -> None:  # fmt: skip
    """Questions about one phase on one chip at the sizes of the report."""
    best = next(
        (f for f in _on(told, asked, phase, found, chip) if f.execution == EFFICIENT), None
    )  # fmt: skip
    if best is None:
        return
    mine = _tried(told, f"sensitivity of {phase} on {chip.id}", moved.elasticities, phase, best)
    if mine:
        answers.elasticities.extend(mine)
        grid = _tried(told, f"grid of {phase} on {chip.id}", moved.grid, phase, best, mine)
        answers.grids.extend([grid] if grid is not None else [])
    if phase == "decode" and asked.batch == 1 and best.closed.experts is not None:
        told.append("decode of one sequence: its experts are not spread over chips, a batch is")
        return
    envelope = _tried(told, f"experts of {phase} over chips like {chip.id}", spread.envelope,
                      phase, best, asked.timing)  # fmt: skip
    if envelope is not None:
        answers.plans.extend(envelope[0])
        answers.messages.extend(envelope[1])


def _tried(told: list[str], what: str, make: Callable[..., T], *args: Any) -> T | None:
    """A question that cannot be answered leaves a remark."""
    try:
        return make(*args)
    except UserError as error:
        told.append(f"{what}: {error}")
        return None


def _workload(asked: Asked, phase: str) -> Workload:
    from ..capture.workload import Workload

    optimizer = asked.optimizer if phase == "training" else "none"
    return Workload(phase, asked.batch, asked.seq, asked.context, optimizer)


def _closed(program: Program, ledger: Ledger, phase: str) -> Closed:
    return close(ledger, program.name, phase, SYMBOLS, program.longest)


def _ledger(
    program: Program, work: Workload, conventions: Conventions, execution: str
) -> Ledger:  # fmt: skip
    from ..capture.workload import record_symbolic

    attention = "naive" if execution == NAIVE else "fused"
    trace = record_symbolic(program, work, attention=attention)
    return price(trace, conventions, execution=execution)


def _many(
    program: Program, asked: Asked, phase: str, found: Mapping[str, Closed]
) -> dict[str, Closed]:
    """Formulas with the batch as a symbol: a report of one sequence has none and traces two."""
    work = replace(_workload(asked, phase), batch=2)
    return {
        execution: closed
        if "B" in closed.scope.symbols or asked.batch > 1
        else _closed(program, _ledger(program, work, asked.conventions, execution), phase)
        for execution, closed in found.items()
    }


def _alone(
    program: Program, asked: Asked, phase: str, found: Mapping[str, Closed]
) -> list[Ledger]:  # fmt: skip
    """One sequence takes other branches, so formulas start at two; it is traced for sweeps."""
    from ..capture.workload import record

    work = replace(_workload(asked, phase), batch=1)
    ledgers = []
    for execution, closed in found.items():
        if "B" in closed.scope.symbols:
            attention = "naive" if execution == NAIVE else "fused"
            trace = record(program, work, attention=attention)
            ledgers.append(price(trace, asked.conventions, execution=execution))
    return ledgers
