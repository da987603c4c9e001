"""The rows that every output shows: one result line, contributors, memory, coverage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from tracer.hardware import Chip

from ..capture.records import OPTIMIZER, Trace
from ..cost import EFFICIENT, NAIVE, Conventions, Kernel, Part
from ..machine import Timing
from ..machine.roofline import KernelTime
from ..predict import Inventory, Step
from .records import (
    ClosedForm,
    ClosedRange,
    ContextLimit,
    DecodeLimit,
    Message,
    PlanRow,
    Sensitivity,
    Side,
    Sublayer,
    Sweep,
    WeightRow,
)
from .text import pattern, plural, seconds, si, size


@dataclass(frozen=True)
class Study:
    """All that one command computed: what every output is made from."""

    name: str
    source: str
    dtype: str
    inventory: Inventory
    chips: tuple[Chip, ...]
    steps: tuple[Step, ...]
    conventions: Conventions
    timing: Timing
    versions: dict[str, str]
    command: str
    remarks: tuple[str, ...] = ()  # what the capture had to assume of this model
    config: Mapping[str, Any] | None = None  # of the architecture, as its file has it
    # What later stages add; a section without its data is left out.
    sweeps: tuple[Sweep, ...] | None = None
    sensitivity: Sensitivity | None = None
    decode_limits: tuple[DecodeLimit, ...] | None = None
    context_limits: tuple[ContextLimit, ...] | None = None
    plans: tuple[PlanRow, ...] | None = None
    messages: tuple[Message, ...] | None = None
    weights: tuple[WeightRow, ...] | None = None
    sublayers: tuple[Sublayer, ...] | None = None
    closed_forms: tuple[ClosedForm, ...] | None = None
    closed_ranges: tuple[ClosedRange, ...] | None = None
    compared: Side | None = None

    def notes(self, causal: bool = True, experts: bool = True) -> list[str]:
        """The conventions and assumptions in force; some bear on nothing without causal attention
        or experts.
        """
        of_chips = [note for step in self.steps for note in step.times.notes()]
        notes = self.conventions.notes(causal, experts)
        notes += dict.fromkeys([*self.timing.notes(), *of_chips])
        if any(step.ledger.execution == NAIVE for step in self.steps):
            pairs = ", attention as matmuls over all S^2 pairs" if causal else ""
            notes.append(
                f"naive: every op its own kernel{pairs}, so its FLOPs are those it runs and no MFU "
                "is given; efficient: fused attention, chains of elementwise ops fused by dataflow"
            )
        return notes


def plain_config(config: object) -> dict[str, Any] | None:
    """The plain values of an architecture's config, whatever class it has; None without one."""
    to_dict = getattr(config, "to_dict", None)
    if callable(to_dict):
        found = to_dict()
    elif is_dataclass(config) and not isinstance(config, type):
        found = asdict(config)
    else:
        return None
    return {k: v for k, v in found.items() if isinstance(v, str | int | float | bool)}


RESULT_HEADERS = (
    "phase", "exec", "B", "S / L", "FLOPs", "bytes", "FLOP/B", "compute", "memory", "step",
    "P10-P90", "ideal",
    "tokens/s", "MFU", "waits for", "fits",
)  # fmt: skip


def result_row(step: Step) -> tuple[str, ...]:
    """One line of the results table; tokens/s in brackets where the step does not fit."""
    work = step.workload
    rate = f"{step.tokens_per_s:,.0f}" if step.tokens_per_s >= 10 else f"{step.tokens_per_s:.2f}"
    shares = step.times.shares()
    return (
        work.phase,
        step.ledger.execution,
        f"{work.batch}",
        f"{work.context if work.phase == 'decode' else work.seq}",
        si(step.cost.total_flops),
        f"{si(step.cost.total_bytes)}B",
        f"{step.cost.intensity:,.1f}",
        seconds(step.times.compute),
        seconds(step.times.memory),
        seconds(step.times.step),
        _interval(step),
        seconds(step.times.bound),
        rate if step.feasible else f"({rate})",
        f"{step.mfu:.1%}" if step.ledger.execution == EFFICIENT else "-",
        f"{step.times.regime} {shares[step.times.regime]:.0%}",
        "yes" if step.feasible else f">={step.chips_at_least} chips",
    )


def _interval(step: Step) -> str:
    """How far the spread of the kernel constants moves the step, in % of it."""
    interval = step.times.interval()
    if interval is None or not step.times.step:
        return "-"
    low, high = (value / step.times.step - 1 for value in interval)
    return f"{low:+.0%}..{high:+.0%}"


def contributors(step: Step, key: str, top: int = 5) -> list[tuple[str, str, str, str, str]]:
    """Largest shares of a step's time by "module" (layers merged) or "op".

    Rows are name, share of time, time, FLOPs, bytes; the last row sums the rest.
    """
    name_of = _module_name if key == "module" else _op_name
    trace = step.trace
    costs = step.ledger.by(lambda kernel, part: name_of(trace, kernel, part))

    def of_time(k: KernelTime, number: int) -> str:
        return name_of(trace, k.kernel, k.kernel.parts[number])

    times = step.times.by(of_time)
    rows = [
        (
            name,
            f"{time / step.times.step:.1%}",
            seconds(time),
            si(costs[name].total_flops),
            f"{si(costs[name].total_bytes)}B",
        )
        for name, time in list(times.items())[:top]
    ]
    rest = list(times.items())[top:]
    if rest:
        time = sum(t for _, t in rest)
        rows.append(
            (
                f"{len(rest)} others",
                f"{time / step.times.step:.1%}",
                seconds(time),
                si(sum(costs[name].total_flops for name, _ in rest)),
                f"{si(sum(costs[name].total_bytes for name, _ in rest))}B",
            )
        )
    return rows


def _module_name(trace: Trace, kernel: Kernel, part: Part) -> str:
    return "optimizer step" if kernel.phase == OPTIMIZER else pattern(part.module)


def _op_name(trace: Trace, kernel: Kernel, part: Part) -> str:
    if kernel.phase == OPTIMIZER:
        return "optimizer step"
    return trace.ops[part.op].overload_packet.removeprefix("aten.")


def memory_line(step: Step) -> str:
    """What the step holds and whether one chip has it."""
    memory = step.memory
    items = (
        ("weights", memory.weights),
        ("kv", memory.kv),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("activations", memory.activations),
    )
    parts = " + ".join(f"{name} {size(held)}" for name, held in items if held)
    verdict = (
        f"fits in {size(step.chip.memory_capacity)}"
        if step.feasible
        else f"does not fit in {size(step.chip.memory_capacity)}: "
        f"at least {plural(step.chips_at_least, 'chip')}, so tokens/s of one is hypothetical"
    )
    return f"{parts} = {size(memory.total)}; {verdict}"


def coverage_line(steps: Sequence[Step]) -> str:
    """The share of time with exact, estimated and unmodelled counts, at worst, and the ops."""
    worst: dict[str, float] = {}
    for step in steps:
        for confidence, row in step.coverage().items():
            worst[confidence] = max(worst.get(confidence, 0.0), row["time"])
    missing: dict[str, int] = {}
    for step in steps:
        missing |= step.ledger.unmodelled()
    if not missing:
        text = "every op has a formula"
    else:
        text = f"without a formula, priced by their bytes: {', '.join(sorted(missing))}"
    share: Callable[[str], str] = lambda name: f"{worst.get(name, 0.0):.0%}"  # noqa: E731
    return (
        f"{text}; up to {share('estimated')} of a phase's time rests on estimates "
        f"(expected routing, sorts), {share('unmodelled')} on bytes alone"
    )
