"""What the rules of `findings` look at: a plain record of one study on its first chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..capture.records import FORWARD, Trace
from ..cost import EFFICIENT, NAIVE
from ..cost.dataflow import Dataflow
from ..cost.work import ATTENTION, CONV, GROUPED_GEMM
from ..predict import Step
from .categories import EMBEDDING, EXPERTS, ORDER, Categories
from .records import RIDGE
from .summary import Study
from .text import listed

MEMORY_KINDS = ("weights", "kv", "gradients", "optimizer", "activations")


@dataclass(frozen=True)
class Naive:
    """The same phase with every op its own kernel."""

    step: float
    bytes: float


@dataclass(frozen=True)
class PhaseFacts:
    """One phase on one chip, in the execution that the report details.

    `shares` is of the step's time by what it waits for, `bytes` by role, `categories` seconds by
    category, `held` bytes by what they are for; `ridge` is that of the step's mix of precisions,
    which `mix` names, and `precision` is that of most work. `crossing` is the value of `axis` (its
    batch or length) at which the sums reach the ridge, None if none does; `searched` is how far
    that was looked for, None where it is proven for all sizes, 0 where nobody looked.
    """

    phase: str
    batch: int
    length: int
    tokens: int
    step: float
    bound: float
    spread: tuple[float, float] | None
    shares: Mapping[str, float]
    flops: float
    intensity: float
    ridge: float
    precision: str
    mix: str
    bytes: Mapping[str, float]
    categories: Mapping[str, float]
    held: Mapping[str, float]
    chips: int
    launches: int
    mfu: float
    compute: float  # s of the products at the datasheet's peak
    # A smaller precision, its rate over this one's, and this one's part of the products' seconds.
    faster: tuple[str, float, float] | None = None
    products: float = 0.0  # s of kernels with products that wait for compute
    naive: Naive | None = None
    crossing: float | None = None
    searched: int | None = 0
    axis: str = "batch"
    crossing_note: str = ""  # what bears on the crossing, such as the memory that it would take

    @property
    def regime(self) -> str:
        """What the largest share of the time waits for."""
        return max(self.shares, key=lambda name: self.shares[name])

    @property
    def fits(self) -> bool:
        """In the memory of one chip."""
        return self.chips <= 1

    @property
    def moved(self) -> float:
        """All bytes."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Facts:
    """One model on one chip.

    `experts` and `top_k` are 0 for a dense model; `expert_parameters` is the share of parameters in
    the experts' part. `chip_memory` is bytes, `estimated` the largest share of a phase's time that
    rests on estimates, `unmodelled` on bytes alone.
    """

    model: str
    chip: str
    chip_memory: float
    dtype: str
    parameters: int
    active: int
    kv_bytes: int
    phases: tuple[PhaseFacts, ...]
    experts: int = 0
    top_k: int = 0
    expert_parameters: float = 0.0
    estimated: float = 0.0
    unmodelled: float = 0.0
    calibrated: bool = True
    eager: bool = False  # the host launches every kernel on its own
    item: str = "token"  # what a step counts
    tables: float = 0.0  # share of the parameters in tables that are looked up and nothing else

    def phase(self, name: str) -> PhaseFacts | None:
        """The phase of that name, if it was asked for."""
        return next((p for p in self.phases if p.phase == name), None)


def detailed(study: Study) -> str:
    """The execution that the report goes into: efficient where there is one."""
    shown = {step.ledger.execution for step in study.steps}
    return EFFICIENT if EFFICIENT in shown else NAIVE


def steps_of(study: Study, execution: str | None = None, chip: int = 0) -> list[Step]:
    """The steps on one chip, of one execution or of both, in the order in which they ran."""
    return [
        step
        for step in study.steps
        if step.chip is study.chips[chip] and execution in (None, step.ledger.execution)
    ]


def rates(step: Step) -> dict[str, float]:
    """FLOP/s by precision: matrix units, and vector units for what the step runs on them."""
    chip = step.chip
    own = {p: chip.vector[p] for p in step.cost.flops if p not in chip.peak and p in chip.vector}
    return {**own, **chip.peak}


def main_precision(step: Step) -> str:
    """That of most matrix FLOPs, as far as the chip has a rate for it."""
    known = {p: f for p, f in step.cost.flops.items() if p in rates(step)}
    usual = "bf16" if "bf16" in step.chip.peak else next(iter(step.chip.peak))
    return max(known, key=lambda name: known[name], default=usual)


def mixed_ridge(step: Step) -> float:
    """FLOP/B at which the FLOPs, each at the peak of its precision, take as long as the bytes."""
    seconds = sum(_at_peak(step).values())
    if not seconds:
        return float(rates(step)[main_precision(step)] / step.chip.memory_bandwidth)
    return float(step.cost.total_flops / seconds / step.chip.memory_bandwidth)


def mix_of(step: Step) -> str:
    """Precisions of at least 1 % of the matrix FLOPs, most first: "fp8 and bf16"."""
    whole = step.cost.total_flops
    ordered = sorted(step.cost.flops.items(), key=lambda item: -item[1])
    names = [name for name, flops in ordered if flops >= 0.01 * whole > 0]
    return listed(names or [main_precision(step)])


def masks(study: Study) -> bool:
    """Whether attention is causal in some step: fused, it then runs fewer pairs than naive."""
    fused = [step for step in study.steps if step.ledger.execution == EFFICIENT]
    if fused and not any(attends(step) for step in fused):
        return False  # a state in place of a cache
    flops: dict[str, set[float]] = {}
    for step in study.steps:
        if step.workload.phase in ("prefill", "decode"):
            return True
        flops.setdefault(step.workload.phase, set()).add(step.cost.total_flops)
    return any(len(found) > 1 for found in flops.values())


def item_of(study: Study) -> str:
    """What a step counts: tokens of sequences, or samples where an input has no length."""
    works = [step.workload for step in study.steps]
    plain = all(work.phase != "decode" and work.seq == 1 for work in works)
    return "sample" if plain else "token"


def routing(study: Study) -> tuple[int, int]:
    """(experts, chosen by a token), from the shapes of grouped products; (0, 0) without."""
    for step in study.steps:
        flow: Dataflow | None = None
        for kernel in step.ledger.kernels:
            if kernel.kind != GROUPED_GEMM:
                continue
            for part in kernel.parts:
                stacks = [r for r in step.trace.ops[part.op].inputs() if len(r.shape) == 3]
                flow = flow or Dataflow(step.trace.ops)
                if stacks:
                    return stacks[0].shape[0], flow.top_k(part.op) or 0
    return 0, 0


def attends(step: Step) -> bool:
    """Whether some kernel is a fused attention."""
    return any(kernel.kind == ATTENTION for kernel in step.ledger.kernels)


def parameters_by_category(study: Study) -> dict[str, int]:
    """Elements of parameters by what their module is for."""
    trace = study.steps[0].trace
    known = Categories(trace)
    standing = {member: fold.module for fold in trace.folds for member in fold.members}
    found: dict[str, int] = {}
    for parameter in trace.parameters:
        if parameter.buffer:
            continue
        owner = parameter.name.rpartition(".")[0]
        for member, layer in standing.items():
            if owner == member or owner.startswith(f"{member}."):
                owner = layer + owner[len(member) :]
                break
        name = known.of(owner)
        found[name] = found.get(name, 0) + parameter.numel
    return {name: found[name] for name in ORDER if name in found}


def gather(study: Study) -> Facts:
    """The facts of `study`."""
    experts, top_k = routing(study)
    by_category = parameters_by_category(study)
    total = sum(by_category.values())
    phases = tuple(_phase(study, step) for step in steps_of(study, detailed(study)))
    worst = {"estimated": 0.0, "unmodelled": 0.0}
    for step in steps_of(study, detailed(study)):
        for confidence, row in step.coverage().items():
            if confidence in worst:
                worst[confidence] = max(worst[confidence], row["time"])
    calibration = study.steps[0].times.calibration if study.steps else None
    chip = study.chips[0]
    return Facts(
        study.name, chip.name, float(chip.memory_capacity), study.dtype,
        study.inventory.parameters, study.inventory.active_parameters,
        study.inventory.kv_bytes_per_token, phases, experts, top_k,
        by_category.get(EXPERTS, 0) / total if total else 0.0,
        worst["estimated"], worst["unmodelled"],
        calibration is None or calibration.status() != "uncalibrated", study.timing.host > 0,
        item_of(study), _looked_up(study, by_category) / total if total else 0.0,
    )  # fmt: skip


def _looked_up(study: Study, by_category: Mapping[str, int]) -> int:
    """Parameters in tables, unless one is also multiplied with, as by a tied head."""
    return 0 if tied(study.steps[0].trace) else by_category.get(EMBEDDING, 0)


def tied(trace: Trace) -> bool | None:
    """Whether a table that rows are looked up in is also multiplied with; None without a table."""
    tables: set[int] = set()
    multiplied: set[int] = set()
    for op in trace.ops:
        if op.phase != FORWARD:
            continue
        refs = list(op.inputs())
        if op.overload_packet in ("aten.embedding", "aten._embedding_bag") and refs:
            tables.add(refs[0].storage)
        elif op.overload_packet in ("aten.mm", "aten.addmm", "aten.bmm"):
            multiplied |= {ref.storage for ref in refs}
    return bool(tables & multiplied) if tables else None


def _phase(study: Study, step: Step) -> PhaseFacts:
    work, times = step.workload, step.times
    other = [
        s for s in steps_of(study, NAIVE)
        if s.workload.phase == work.phase and step.ledger.execution == EFFICIENT
    ]  # fmt: skip
    precision = main_precision(step)
    crossing, searched, axis, note = _crossing(study, work.phase, step)
    return PhaseFacts(
        work.phase, work.batch, work.context if work.phase == "decode" else work.seq, work.tokens,
        times.step, times.bound, times.interval(), times.shares(), step.cost.total_flops,
        step.cost.intensity, mixed_ridge(step), precision, mix_of(step), step.cost.bytes_by_role,
        times.by(Categories(step.trace).key_of_time),
        {kind: getattr(step.memory, kind) for kind in MEMORY_KINDS},
        step.chips_at_least, times.launches, step.mfu, sum(_at_peak(step).values()),
        _faster(step, precision), _products(step),
        Naive(other[0].times.step, other[0].cost.total_bytes) if other else None,
        crossing, searched, axis, note,
    )  # fmt: skip


def _at_peak(step: Step) -> dict[str, float]:
    """Seconds of the products of each precision at the datasheet's rate."""
    known = rates(step)
    return {p: flops / known[p] for p, flops in step.cost.flops.items() if p in known}


def _products(step: Step, kind: str = "") -> float:
    """Seconds that kernels with products (of one kind, or all) wait for compute; copies and chains
    may wait for it too, where instructions bound them.
    """
    return sum(
        k.total - k.launch for k in step.times.kernels
        if k.works == "compute" and k.kernel.cost.total_flops and kind in ("", k.kernel.kind)
    )  # fmt: skip


def _faster(step: Step, precision: str) -> tuple[str, float, float] | None:
    """The next smaller precision that the chip has units for; TF32 is a switch, no other format."""
    known = rates(step)
    smaller = {"fp64": "fp32", "fp32": "tf32" if "tf32" in known else "bf16", "tf32": "bf16",
               "bf16": "fp8", "fp16": "fp8", "fp8": "fp4"}  # fmt: skip
    found = smaller.get(precision, "")
    if found not in known or precision not in known or known[found] <= known[precision]:
        return None
    seconds = _at_peak(step)
    part = seconds.get(precision, 0.0) / (sum(seconds.values()) or 1.0)
    if found in ("fp8", "fp4"):  # formats that convolutions have no kernels for
        part *= 1 - _products(step, CONV) / (_products(step) or 1.0)
    return found, float(known[found] / known[precision]), part


def _crossing(study: Study, phase: str, step: Step) -> tuple[float | None, int | None, str, str]:
    for sweep in study.sweeps or ():
        if sweep.phase == phase and sweep.chip == step.chip.id:
            for crossing in sweep.crossings:
                if (crossing.execution, crossing.what) == (step.ledger.execution, RIDGE):
                    axis = "batch" if sweep.axis == "batch" else "length"
                    return crossing.value, crossing.searched_to, axis, crossing.note
    return None, 0, "batch", ""
