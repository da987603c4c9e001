"""Bytes that one GPU of a plan holds, from the trace of its own program; and what fits.

Weights, caches and activations are storages of the trace. Gradients and optimizer state follow from
the parameters that the rank owns, because a folded trace and a step that ends do not show them all
at once: a gradient an element of whatever ZeRO leaves whole, an FP32 master copy (unless the
parameter is FP32) and two moments an element that the rank owns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..capture.records import OPTIMIZER, Parameter, Trace
from ..cost import EFFICIENT, Ledger, price
from ..cost.roles import made_of_weights
from ..cost.timeline import timeline
from ..errors import UserError
from .plan import Plan
from .ranks import stage_traces

if TYPE_CHECKING:
    from ..capture.reference import ReferenceProgram
    from ..capture.workload import Workload

_MOMENT_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, slots=True)
class Headroom:
    """What of a GPU's memory is not for the model.

    Attributes:
        reserve: share that communication's buffers, the allocator's fragments, the CUDA context and
            graphs take; 0.1 is what vLLM leaves by default (`gpu_memory_utilization` 0.9). A
            context with torch's kernels alone has 1.3 GB (Hugging Face, "Model training anatomy"),
            1.6 % of an 80 GB GPU.
    """

    reserve: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.reserve < 1:
            raise UserError(f"reserve={self.reserve}: give a share of the memory in [0, 1)")


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one GPU at the worst moment of a step.

    Attributes:
        weights: parameters and buffers that it keeps; with ZeRO 3 its slices.
        gradients: those it keeps between micro-batches.
        optimizer: master weights and moments that it owns.
        activations: what the forward keeps for the backward, of all micro-batches in flight.
        working: the most that is needed beside these: results in passing, gathered layers, and in
            the optimizer's step its temporaries, as far as they outgrow the activations.
        kv: caches.
        reserve: bytes that are not for the model, as given.
        capacity: bytes of the GPU.
        shared: of the activations, what all micro-batches have in common: weights in FP8.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    kv: int
    reserve: int
    capacity: int
    shared: int = 0

    @property
    def total(self) -> int:
        """All of it but the reserve."""
        return (
            self.weights + self.gradients + self.optimizer + self.activations + self.working
            + self.kv
        )  # fmt: skip

    @property
    def fits(self) -> bool:
        """Whether it leaves the reserve free."""
        return self.total + self.reserve <= self.capacity


def rank_memory(
    ledger: Ledger, plan: Plan, capacity: float, *, in_flight: int = 1,
    headroom: Headroom | None = None, gradients: str = "parameter",
) -> RankMemory:  # fmt: skip
    """The memory of the rank whose program `ledger` prices.

    Args:
        ledger: of a rank's trace in one stage.
        plan: the plan it was traced for.
        capacity: bytes of the GPU.
        in_flight: micro-batches whose activations the schedule keeps at once in this stage.
        headroom: what is not for the model.
        gradients: "parameter" keeps them in their parameter's type, "fp32" in FP32.
    """
    if gradients not in ("parameter", "fp32"):
        raise UserError(f"gradients={gradients!r}: choose parameter or fp32")
    headroom = headroom or Headroom()
    trace, moving = ledger.trace, moving_of(ledger)
    grads = state = 0
    if trace.header.get("phase") == "training":
        kept, owned = _trained(trace, plan)
        grads = sum(p.numel * 4 if gradients == "fp32" else p.nbytes for p in kept)
        moments = 2 * _MOMENT_BYTES[plan.moments]
        state = sum(p.numel * (moments + (0 if p.dtype == "float32" else 4)) for p in owned)
    held = in_flight * moving.saved + moving.shared
    return RankMemory(
        weights=moving.weights, gradients=grads, optimizer=state, activations=held,
        working=max(moving.working, moving.update - held, 0), kv=moving.kv,
        reserve=round(headroom.reserve * capacity), capacity=int(capacity), shared=moving.shared,
    )  # fmt: skip


class Moving(NamedTuple):
    """Bytes of a rank's program with one micro-batch in flight.

    Attributes:
        weights, kv: that it keeps, and its caches.
        saved: for the backward, of this micro-batch alone; `shared`, the same for all of them.
        working: the most in passing beside these, while the micro-batch runs.
        update: the most in passing in the optimizer's step, when no activations are left.
    """

    weights: int
    kv: int
    saved: int
    shared: int
    working: int
    update: int


def moving_of(ledger: Ledger) -> Moving:
    """What the program that `ledger` prices holds, and what comes and goes."""
    trace = ledger.trace
    weights = sum(s.nbytes for s in trace.storages if s.role == "weights" and s.born < 0)
    live = timeline(trace, ledger.materialised).by_role
    moving = [a + t for a, t in zip(live["activations"], live["temporary"], strict=True)]
    saved = shared = 0
    if trace.header.get("phase") == "training":
        turn = _first(trace, "backward", "recompute")
        saved, shared = moving[turn], _from_weights(ledger, turn)
    end = _first(trace, OPTIMIZER)
    return Moving(
        weights, max(live["kv"], default=0), saved - shared, shared,
        max(moving[: end + 1]) - saved, max(moving[end:], default=0),
    )  # fmt: skip


def _from_weights(ledger: Ledger, turn: int) -> int:
    """Bytes alive at op `turn` that were made of weights alone, the same in every micro-batch."""
    trace, total = ledger.trace, 0
    made = made_of_weights(trace, turn)
    for storage in (trace.storages[s] for s in made & ledger.materialised):
        if storage.died is None or storage.died > turn:
            total += storage.nbytes
    return total


def _first(trace: Trace, *phases: str) -> int:
    """The place of the first op of a phase; behind the last op where there is none."""
    places = (i for i, op in enumerate(trace.ops) if op.phase in phases)
    return next(places, len(trace.ops))


def _trained(trace: Trace, plan: Plan) -> tuple[list[Parameter], list[Parameter]]:
    """The parameters whose gradients a rank keeps, and those (or slices) that it updates."""
    trained = [p for p in trace.parameters if p.trainable and not p.buffer]
    slices = [p for p in trained if p.name.rpartition(".")[2].startswith("shard_")]
    whole = [p for p in trained if p not in slices]
    cut = {p.storage for p in slices}
    owned = slices + [p for p in whole if p.storage not in cut]
    return (whole if plan.zero <= 1 else owned), owned


# -- what fits -------------------------------------------------------------------------------------


def plan_memory(
    program: ReferenceProgram, workload: Workload, plan: Plan, capacity: float, *,
    in_flight: Callable[[int], int] | None = None, headroom: Headroom | None = None,
    gradients: str = "parameter",
) -> RankMemory:  # fmt: skip
    """The memory of the fullest GPU of a plan.

    `in_flight` says how many micro-batches a stage holds at once; by default those of 1F1B, as many
    as there are stages from here to the last, and no more than the step has.
    """

    def one_f_one_b(stage: int) -> int:
        return min(plan.stages - stage, plan.micro_batches)

    count = in_flight or one_f_one_b
    found = []
    for trace, stages in stage_traces(program, workload, plan):
        ledger = _priced(trace)
        found += [
            rank_memory(
                ledger, plan, capacity, in_flight=count(stage), headroom=headroom,
                gradients=gradients,
            )
            for stage in stages
        ]  # fmt: skip
    if plan.chunks > 1:
        # A rank holds the stages r, r + PP, ...: their sums, one of them at work.
        found = [_together(found[rank :: plan.pp]) for rank in range(plan.pp)]
    return max(found, key=lambda memory: memory.total)


def _priced(trace: Trace) -> Ledger:
    return price(trace, execution=EFFICIENT)


def _together(parts: Sequence[RankMemory]) -> RankMemory:
    def add(a: RankMemory, b: RankMemory) -> RankMemory:
        return replace(
            a, shared=a.shared + b.shared,
            weights=a.weights + b.weights, gradients=a.gradients + b.gradients,
            optimizer=a.optimizer + b.optimizer, activations=a.activations + b.activations,
            working=max(a.working, b.working), kv=a.kv + b.kv,
        )  # fmt: skip

    return functools.reduce(add, parts)


class Filled(Protocol):
    """What a GPU holds, in bytes, and whether that fits."""

    @property
    def total(self) -> float: ...
    @property
    def reserve(self) -> float: ...
    @property
    def capacity(self) -> float: ...
    @property
    def fits(self) -> bool: ...


def largest(fits: Callable[[int], Filled], *, most: int = 1 << 24) -> int:
    """The largest number at which memory fits, 0 if not even 1 does.

    Memory is taken as growing with the number, and as nearly linear: two points give a line, the
    line a guess, and bisection what the guess leaves open. A handful of traces, however large the
    answer.

    Args:
        fits: the memory at a number.
        most: no answer is above it.
    """
    first = fits(1)
    if not first.fits:
        return 0
    low, high, low_memory = 1, most + 1, first
    slope, width = 0.0, most
    while high - low > 1:
        room = first.capacity - first.reserve - low_memory.total
        guess = low + int(room // slope) if slope > 0 else 2 * low
        if high <= most and 2 * (high - low) > width:
            guess = (low + high) // 2  # the line did not even halve what is open
        width = high - low
        guess = min(max(guess, low + 1), high - 1)
        memory = fits(guess)
        slope = max((memory.total - low_memory.total) // (guess - low), 0)
        if memory.fits:
            low, low_memory = guess, memory
        else:
            high = guess
    return low
