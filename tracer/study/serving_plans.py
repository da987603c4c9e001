"""All legal plans of a server on so many GPUs, those that fit ranked, the others with a reason.

All of them hold the same sequences in flight, so that tokens a second compare; how these are split
over data ranks and stages is the plan's. Exchange, micro-batches and precision are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tracer.hardware import Cluster

from ..collector import without_collector
from ..errors import UserError
from ..parallel.network import network_of
from ..parallel.plan import Plan
from ..parallel.ranks import sizes_of
from ..predict.program import supported
from ..predict.serving import Serving, ServingStep, predict_serving
from .plans import Dropped, Found, divisors, least_elements, priced

if TYPE_CHECKING:
    from ..capture.program import Program

_TP = (1, 2, 4, 8, 16)


def serving_bounds(experts: int, most: dict[str, int] | None = None) -> dict[str, int]:
    """The largest of each axis that a search goes up to; `most` overrides them."""
    return {"tp": 8, "pp": 8, "ep": max(experts, 1)} | (most or {})


def serving_splits(
    gpus: int, experts: int, like: Plan, most: dict[str, int]
) -> Iterator[list[Plan]]:  # fmt: skip
    """Ways to split `gpus`, those of one tensor cut together; experts on one rank or over all those
    of a stage, copies included, as servers have them.
    """
    for tp in (tp for tp in _TP if tp <= most["tp"] and gpus % tp == 0):
        found = []
        for pp in (pp for pp in divisors(gpus // tp) if pp <= most["pp"]):
            dp = gpus // (tp * pp)
            spread = [e for e in divisors(tp * dp) if 1 < e <= most["ep"]] if experts else []
            found += [
                replace(like, tp=tp, pp=pp, dp=dp, ep=ep,
                        redundant_experts=like.redundant_experts if ep > 1 else 0,
                        sequence_parallel=tp > 1 and not like.attention_dp)
                for ep in (1, *spread)
            ]  # fmt: skip
        if found:
            yield found


def search_serving(
    program: Program, gpus: int, cluster: Cluster | str, phase: str, *, sequences: int,
    seq: int = 4096, context: int = 4096, like: Plan | None = None, assume: Serving | None = None,
    most: dict[str, int] | None = None, executor: str = "serial",
    tell: Callable[[int, int], None] | None = None,
) -> Found[ServingStep]:  # fmt: skip
    """Price every legal plan of a server on `gpus` GPUs.

    Args:
        program: the model.
        gpus: all of them are used, by one instance.
        cluster: where.
        phase: "prefill" or "decode".
        sequences: in flight on all GPUs, the same for all plans; a pipeline has a batch a stage.
        seq: tokens of a prompt.
        context: keys that a decoded token sees.
        like: what the search does not vary (redundant_experts, attention_dp).
        assume: what prices rest on.
        most: largest "tp", "pp", "ep"; by default tp 8, pp 8, ep all.
        executor: as of a sweep: "serial", or "local" for processes where plans are many.
        tell: is given plans done and plans in all, after those of a tensor cut.

    Raises:
        UserError: not one split within the bounds.
    """
    experts = sizes_of(program).experts
    bounds = serving_bounds(experts, most)
    splits = list(serving_splits(gpus, experts, like or Plan(), bounds))
    if not splits:
        raise UserError(f"{gpus} GPUs: no split within the bounds {bounds}")
    task = _Task(program, cluster, phase, sequences, seq, context, assume or Serving())
    return priced(task, splits, executor, tell)


@dataclass(frozen=True)
class _Task:
    """What all plans of a search have in common, as a worker gets it."""

    program: Program
    cluster: Cluster | str
    phase: str
    sequences: int
    seq: int
    context: int
    assume: Serving

    def price(self, splits: list[Plan]) -> list[ServingStep | Dropped]:
        """Each split priced, or why not."""
        found = []
        for split in splits:
            with without_collector():
                found.append(self._one(supported(self.program, split)))
        return found

    def _one(self, plan: Plan) -> ServingStep | Dropped:
        count = plan.data_ranks * plan.pp
        batch = self.sequences // count
        if self.sequences % count:
            why = f"{self.sequences} sequences do not divide by {count}"
            return Dropped(plan, "batch does not divide", why)
        if batch % self.assume.micro_batches:
            why = f"a batch of {batch} is not two micro-batches (--overlap)"
            return Dropped(plan, "batch does not divide", why)
        if (alone := self._weights(plan)) is not None:
            return alone
        try:
            step = predict_serving(
                self.program, plan, self.cluster, self.phase, batch=batch, seq=self.seq,
                context=self.context, assume=self.assume,
            )  # fmt: skip
        except UserError as error:
            return Dropped(plan, "cannot run", str(error))
        if not step.feasible:
            return Dropped(step.plan, "does not fit", step.reason, step.memory.total)
        return step

    def _weights(self, plan: Plan) -> Dropped | None:
        """A plan whose weights alone are beyond a GPU: no need to trace anything."""
        capacity = float(network_of(self.cluster).cluster.chip.memory_given)
        each = 1.0 if "fp8" in (self.program.dtype, self.assume.weights) else 2.0
        held = each * least_elements(self.program, plan)
        if held <= capacity:
            return None
        why = (
            f"does not fit: weights alone are over {held / 1e9:,.0f} GB of {capacity / 1e9:.4g} GB"
        )
        return Dropped(plan, "does not fit", why, held, alone=True)
