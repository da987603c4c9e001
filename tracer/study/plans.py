"""All legal plans of a model on so many GPUs, those that fit ranked, the others with a reason.

The search walks over how GPUs are split: tp, pp, ep, cp, dp and the schedules. Precision, ZeRO,
recomputation and sequences at once are the caller's. What a plan of other sizes would run for a
layer is traced once a structure (`predict.structure`), so that most plans cost a simulation only.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tracer.hardware import Cluster

from ..errors import UserError
from ..parallel.plan import Plan
from ..parallel.ranks import sizes_of
from ..parallel.schedules import SCHEDULES
from ..predict.money import Money
from ..predict.training import Assumptions, TrainingStep, predict_training

if TYPE_CHECKING:
    from ..capture.program import Program


@dataclass(frozen=True)
class Dropped:
    """A plan that is not ranked: `kind` groups reasons, `reason` says it in full."""

    plan: Plan
    kind: str
    reason: str


@dataclass(frozen=True)
class Found:
    """The result of a search: `ranked` by tokens a second, best first."""

    ranked: tuple[TrainingStep, ...]
    dropped: tuple[Dropped, ...]

    @property
    def reasons(self) -> dict[str, int]:
        """Dropped plans by kind of reason, most first."""
        return dict(Counter(item.kind for item in self.dropped).most_common())


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


def search(
    program: Program, gpus: int, cluster: Cluster | str, *, global_batch: int, seq: int = 4096,
    like: Plan | None = None, assume: Assumptions | None = None, money: Money | None = None,
    schedules: tuple[str, ...] = tuple(SCHEDULES), most: dict[str, int] | None = None,
) -> Found:  # fmt: skip
    """Price every legal plan of `gpus` GPUs.

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

    Raises:
        UserError: not one plan is legal; says why.
    """
    assume, like = assume or Assumptions(), like or Plan()
    bounds = {"tp": 8, "cp": 1, "pp": 64, "ep": 1 << 20} | (most or {})
    sizes = sizes_of(program)  # type: ignore[arg-type]
    ranked: list[TrainingStep] = []
    dropped: list[Dropped] = []
    for split in candidates(gpus, sizes.experts, like, schedules, bounds):
        each = split.data_ranks * split.micro_batch
        if global_batch % each:
            why = f"{global_batch} sequences do not divide by {each}"
            dropped.append(Dropped(split, "batch does not divide", why))
            continue
        chunks = 2 if split.schedule in ("interleaved_1f1b", "zbv", "dualpipev") else 1
        plan = replace(split, micro_batches=global_batch // each, chunks=chunks)
        reasons = plan.illegal(sizes, training=True, seq=seq)
        if reasons:
            dropped.append(Dropped(plan, "cannot cut the model", "; ".join(reasons)))
            continue
        if (reason := _too_big(program, plan, cluster, seq, assume)) is not None:
            dropped.append(Dropped(plan, "does not fit", reason))
            continue
        try:
            step = predict_training(
                program, plan, cluster, seq=seq, assume=assume, money=money, detail=False
            )
        except UserError as error:
            kind = "micro-batches" if "micro-batch" in str(error) else "cannot run"
            dropped.append(Dropped(plan, kind, str(error)))
            continue
        if not step.feasible:
            dropped.append(Dropped(step.plan, "does not fit", step.reason))
            continue
        ranked.append(step)
    if not ranked and not dropped:
        raise UserError(f"{gpus} GPUs: no split within the bounds {bounds}")
    ranked.sort(key=lambda step: step.seconds)
    return Found(tuple(ranked), tuple(dropped))


def _too_big(
    program: Program, plan: Plan, cluster: Cluster | str, seq: int, assume: Assumptions
) -> str | None:
    """Weights, gradients and optimizer alone beyond the GPU: no need to trace anything."""
    from tracer.hardware import load_cluster

    found = load_cluster(cluster) if isinstance(cluster, str) else cluster
    capacity = assume.capacity or float(found.chip.memory_capacity)
    model: Any = program
    experts, others = parameters_of(model)
    copies = 2 if plan.schedule == "dualpipe" and plan.pp > 1 else 1
    item = 4.0 if assume.gradients == "fp32" else 2.0
    # The mean over stages, TP as if it cut everything: less than the fullest rank really holds.
    cut = experts / (plan.ep if plan.ep > 1 else plan.tp) + others / plan.tp
    held = copies * (2.0 + (item if plan.zero < 2 else 0.0)) * cut / plan.pp
    if plan.zero == 3:
        held = 0.0
    if held > capacity:
        return (
            f"does not fit: weights and gradients alone are over {held / 1e9:,.0f} GB of "
            f"{capacity / 1e9:g} GB"
        )
    return None


@functools.lru_cache(maxsize=16)
def parameters_of(program: Any) -> tuple[int, int]:
    """Parameters of routed experts and all others, from a model's modules on the meta device."""
    experts = others = 0
    for name, parameter in program.module("training", "meta").named_parameters():
        if ".experts." in name:
            experts += parameter.numel()
        else:
            others += parameter.numel()
    return experts, others
