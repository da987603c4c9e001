"""All legal plans of a model on so many GPUs, those that fit ranked, the others with a reason.

The search walks over how GPUs are split: tp, pp, ep, cp, dp and the schedules. Precision, ZeRO,
recomputation and sequences at once are the caller's. What a plan of other sizes would run for a
layer is traced once a structure (`predict.structure`), so that most plans cost a simulation only.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tracer.hardware import Cluster

from ..collector import without_collector
from ..errors import UserError
from ..parallel.plan import Plan
from ..parallel.ranks import sizes_of
from ..parallel.schedules import SCHEDULES
from ..predict.money import Money
from ..predict.mtp import trained_with
from ..predict.program import supported
from ..predict.serving import ServingStep
from ..predict.training import Assumptions, TrainingStep, predict_training, training_memory
from .sweeps import LOCAL, executor_for

if TYPE_CHECKING:
    from ..capture.program import Program


S = TypeVar("S", TrainingStep, ServingStep)

MANY = 200  # plans from which on a second process earns the seconds that it takes to start


@dataclass(frozen=True)
class Dropped:
    """A plan that is not ranked: `kind` groups reasons, `reason` says it in full.

    `nbytes`: of the fullest GPU, where that is what it fails by; at least so many, if `alone` was
    looked at, its weights and gradients.
    """

    plan: Plan
    kind: str
    reason: str
    nbytes: float | None = None
    alone: bool = False

    @property
    def why(self) -> str:
        """The reason without the plan and the kind that it may begin with."""
        return self.reason.removeprefix(f"plan {self.plan}: ").removeprefix(f"{self.kind}: ")


@dataclass(frozen=True)
class Found(Generic[S]):
    """The result of a search: `ranked` by tokens a second, best first."""

    ranked: tuple[S, ...]
    dropped: tuple[Dropped, ...]

    @property
    def reasons(self) -> dict[str, int]:
        """Dropped plans by kind of reason, most first."""
        return dict(Counter(item.kind for item in self.dropped).most_common())

    @property
    def first(self) -> dict[str, Dropped]:
        """Of every kind of reason the first plan."""
        return {item.kind: item for item in reversed(self.dropped)}

    @property
    def nearest(self) -> Dropped | None:
        """Of the plans that do not fit, the one that needs least; None if there is none.

        Those whose weights and gradients alone do not fit come last.
        """
        known = [item for item in self.dropped if item.nbytes is not None]
        return min(known, key=lambda item: (item.alone, item.nbytes), default=None)


def divisors(number: int) -> list[int]:
    """All of them, in order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def candidates(gpus: int, experts: int, like: Plan, schedules: tuple[str, ...],
               most: dict[str, int]) -> Iterator[Plan]:  # fmt: skip
    """Ways to split `gpus`; `most` bounds axes ("tp", "cp", "pp", "ep")."""
    for tp, cp in itertools.product((1, 2, 4, 8), (1, 2, 4, 8)):
        if tp > most["tp"] or cp > most["cp"] or gpus % (tp * cp):
            continue
        for pp in divisors(gpus // (tp * cp)):
            if pp > most["pp"]:
                continue
            dp = gpus // (tp * cp * pp)
            stage = tp * cp * dp
            spread = [e for e in divisors(experts) if stage % e == 0] if experts else [1]
            for ep in spread:
                if ep > most["ep"]:
                    continue
                for schedule in schedules if pp > 1 else ("1f1b",):
                    yield replace(
                        like,
                        tp=tp,
                        cp=cp,
                        pp=pp,
                        dp=dp,
                        ep=ep,
                        schedule=schedule,
                        chunks=1,
                        sequence_parallel=tp > 1,
                    )


def bounds_of(experts: int, most: dict[str, int] | None = None) -> dict[str, int]:
    """The largest of each axis that a search goes up to; `most` overrides them."""
    return {"tp": 8, "cp": 1, "pp": 64, "ep": max(experts, 1)} | (most or {})


def search(
    program: Program, gpus: int, cluster: Cluster | str, *, global_batch: int, seq: int = 4096,
    like: Plan | None = None, assume: Assumptions | None = None, money: Money | None = None,
    schedules: tuple[str, ...] = tuple(SCHEDULES), most: dict[str, int] | None = None,
    executor: str = "serial", tell: Callable[[int, int], None] | None = None,
) -> Found[TrainingStep]:  # fmt: skip
    """Price every legal training plan of `gpus` GPUs.

    Args:
        program: the model.
        gpus: all of them are used.
        cluster: where.
        global_batch: sequences of a step, the same for all plans.
        seq: tokens of a sequence.
        like: what the search does not vary (zero, recompute, moments, micro_batch).
        assume: what prices rest on.
        money: price and tokens of a run.
        schedules: names to try.
        most: largest "tp", "cp", "pp", "ep"; by default tp 8, cp 1, pp 64, ep all.
        executor: as of a sweep: "serial", or "local" for processes where plans are many.
        tell: is given plans done and plans in all, after those of a tensor and context cut.

    Raises:
        UserError: not one plan is legal; says why.
    """
    like = like or Plan()
    experts = sizes_of(program).experts
    bounds = bounds_of(experts, most)
    splits: dict[tuple[int, int], list[Plan]] = {}
    for split in candidates(gpus, experts, like, schedules, bounds):
        splits.setdefault((split.tp, split.cp), []).append(split)
    if not splits:
        raise UserError(f"{gpus} GPUs: no split within the bounds {bounds}")
    task = _Task(program, cluster, global_batch, seq, assume or Assumptions(), money)
    # Plans of one (tp, cp) have their structures and step sizes in common, others next to nothing.
    return priced(task, list(splits.values()), executor, tell)


class Task(Protocol[S]):
    """What prices the plans of a search: all that they have in common."""

    def price(self, splits: list[Plan]) -> list[S | Dropped]:
        """Each split priced, or why not."""


def priced(
    task: Task[S], splits: list[list[Plan]], executor: str,
    tell: Callable[[int, int], None] | None,
) -> Found[S]:  # fmt: skip
    """All plans of a search, those of one list by one worker; arguments as of `search`."""
    count = sum(map(len, splits))
    with executor_for(executor if count >= MANY else "serial", LOCAL) as pool:
        futures = [pool.submit(task.price, plans) if pool else None for plans in splits]
        done: list[S | Dropped] = []
        for plans, future in zip(splits, futures, strict=True):
            try:
                done += task.price(plans) if future is None else future.result()
            except BrokenExecutor:  # a worker died: what it had is priced here
                done += task.price(plans)
            if tell is not None:
                tell(len(done), count)
    ranked = [item for item in done if not isinstance(item, Dropped)]
    ranked.sort(key=lambda step: -step.tokens_per_s)
    return Found(tuple(ranked), tuple(item for item in done if isinstance(item, Dropped)))


@dataclass(frozen=True)
class _Task:
    """What all training plans of a search have in common, as a worker gets it."""

    program: Program
    cluster: Cluster | str
    global_batch: int
    seq: int
    assume: Assumptions
    money: Money | None

    def price(self, splits: list[Plan]) -> list[TrainingStep | Dropped]:
        """Each split priced, or why not."""
        found = []
        for split in splits:
            with without_collector():
                found.append(self._one(split))
        return found

    def _one(self, split: Plan) -> TrainingStep | Dropped:
        split = supported(self.program, split)
        each = split.data_ranks * split.micro_batch
        if self.global_batch % each:
            why = f"{self.global_batch} sequences do not divide by {each}"
            return Dropped(split, "batch does not divide", why)
        chunks = 2 if split.schedule in ("interleaved_1f1b", "zbv", "dualpipev") else 1
        plan = replace(split, micro_batches=self.global_batch // each, chunks=chunks)
        if reasons := plan.illegal(sizes_of(self.program), training=True, seq=self.seq):
            return Dropped(plan, "cannot cut the model", "; ".join(reasons))
        if (found := _too_big(self.program, plan, self.cluster, self.assume)) is not None:
            return Dropped(plan, "does not fit", *found, alone=True)
        try:
            memory = training_memory(
                self.program, plan, self.cluster, seq=self.seq, assume=self.assume
            )
            if not memory.fits:
                return Dropped(plan, "does not fit", memory.shortage, memory.total)
            return predict_training(
                self.program, plan, self.cluster, seq=self.seq, assume=self.assume,
                money=self.money, detail=False,
            )  # fmt: skip
        except UserError as error:
            kind = "micro-batches" if "micro-batch" in str(error) else "cannot run"
            return Dropped(plan, kind, str(error))


def _too_big(
    program: Program, plan: Plan, cluster: Cluster | str, assume: Assumptions
) -> tuple[str, float] | None:
    """Weights and gradients alone beyond the GPU, and how many: no need to trace anything."""
    from tracer.hardware import load_cluster

    found = load_cluster(cluster) if isinstance(cluster, str) else cluster
    capacity = assume.capacity_of(found.chip)
    copies = 2 if plan.schedule == "dualpipe" and plan.pp > 1 else 1
    item = assume.gradient_bytes
    held = copies * (2.0 + (item if plan.zero < 2 else 0.0)) * least_elements(program, plan)
    if plan.zero == 3:
        held = 0.0
    if held > capacity:
        return (
            f"does not fit: weights and gradients alone are over {held / 1e9:,.0f} GB of "
            f"{capacity / 1e9:.4g} GB"
        ), held
    return None


def least_elements(program: Any, plan: Plan) -> float:
    """Parameters of a GPU at least: the mean over stages, TP as if it cut everything, less than the
    fullest rank really holds.
    """
    experts, others = parameters_of(program, plan)
    return (experts / (plan.ep if plan.ep > 1 else plan.tp) + others / plan.tp) / plan.pp


def parameters_of(program: Any, plan: Plan) -> tuple[int, int]:
    """Parameters that `plan` trains, of routed experts and all others."""
    return _parameters(trained_with(program) if plan.mtp else program)


@functools.lru_cache(maxsize=16)
def _parameters(program: Any) -> tuple[int, int]:
    """From a model's modules on the meta device."""
    experts = others = 0
    for name, parameter in program.module("training", "meta").named_parameters():
        if ".experts." in name:
            experts += parameter.numel()
        else:
            others += parameter.numel()
    return experts, others
