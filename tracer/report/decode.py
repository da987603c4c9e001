"""How far batching takes decode, from one traced step.

A decode step of B sequences runs B f FLOPs and moves W + B a bytes: f and a are those of one
sequence (its cache and activations), W are the weights, all experts of them once B is large. So the
intensity tends to f / a, and reaches the ridge at B = ridge W / (f - ridge a), if ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..cost.conventions import distinct_experts
from ..cost.dataflow import Dataflow
from ..cost.work import GATHER, GROUPED_GEMM
from ..predict import Step
from .facts import mixed_ridge


@dataclass(frozen=True)
class Batching:
    """FLOPs `f` and bytes `a` of a sequence, bytes of all weights, and what follows.

    `ridge` is that of the step's mix of precisions; `cache` is bytes that a sequence holds.
    """

    flops: float
    moved: float
    weights: float
    ridge: float
    cache: float
    held_weights: float

    @property
    def limit(self) -> float:
        """FLOP/B as the batch grows without end."""
        return self.flops / self.moved if self.moved else float("inf")

    @property
    def crossing(self) -> float | None:
        """Sequences at which the sums reach the ridge; None: no batch does."""
        gain = self.flops - self.ridge * self.moved
        return self.ridge * self.weights / gain if gain > 0 else None


def batching(step: Step) -> Batching:
    """What the traced decode step says of larger batches at its context."""
    batch = step.workload.batch
    trace = step.trace
    flow: Dataflow | None = None
    weights = rows = 0.0
    for kernel in step.ledger.kernels:
        for part in kernel.parts:
            read = float(part.cost.bytes_by_role["weights"])
            if read and kernel.kind == GROUPED_GEMM:
                flow = flow or Dataflow(trace.ops)
                stack = next((r for r in trace.ops[part.op].inputs() if len(r.shape) == 3), None)
                top_k = flow.top_k(part.op)
                if stack is not None and top_k:
                    law, experts = step.ledger.conventions.routing, stack.shape[0]
                    read *= experts / distinct_experts(law, experts, top_k, batch)
            if kernel.kind == GATHER:  # rows of a table, a few for each sequence
                rows += read
            else:
                weights += read
    return Batching(
        step.cost.total_flops / batch,
        (step.cost.total_bytes - step.cost.bytes_by_role["weights"] + rows) / batch,
        weights,
        mixed_ridge(step),
        step.memory.kv / batch,
        step.memory.weights,
    )
