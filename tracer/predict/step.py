"""One workload on one chip: everything that a result line says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracer.hardware import Chip

from ..capture.records import Trace
from ..cost import Ledger
from ..cost.work import Cost
from ..machine import Times, Timing, time_ledger
from .memory import Memory, memory

if TYPE_CHECKING:  # a loaded trace is priced without torch
    from ..capture.workload import Workload


@dataclass(frozen=True)
class Step:
    """The prediction for `workload` on `chip` under one execution."""

    workload: Workload
    ledger: Ledger
    times: Times
    cost: Cost
    memory: Memory

    @property
    def chip(self) -> Chip:
        """The chip priced."""
        return self.times.chip

    @property
    def trace(self) -> Trace:
        """The trace priced."""
        return self.ledger.trace

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of this step on this chip, fit or not; see `feasible`."""
        return self.workload.tokens / self.times.step if self.times.step else 0.0

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: published FLOPs over time and the peak of their precision."""
        flops = self.cost.flops
        if not flops or not self.times.step:
            return 0.0
        main = max(flops, key=lambda precision: flops[precision])
        peak = self.chip.peak.get(main) or self.chip.vector.get(main)
        return self.cost.total_flops / (self.times.step * peak) if peak else 0.0

    @property
    def feasible(self) -> bool:
        """Whether the step fits into the memory of one chip."""
        return self.memory.total <= float(self.chip.memory_capacity)

    @property
    def chips_at_least(self) -> int:
        """Chips whose memory together holds the step, if it divided perfectly."""
        return math.ceil(self.memory.total / float(self.chip.memory_capacity))

    def as_dict(self) -> dict[str, Any]:
        """The result as the JSON document has it: FLOPs, bytes, seconds."""
        work = self.workload
        return {
            "phase": work.phase,
            "exec": self.ledger.execution,
            "chip": self.chip.id,
            "batch": work.batch,
            "seq": work.seq,
            "context": work.context,
            "tokens": work.tokens,
            "flops": self.cost.total_flops,
            "flops_by_precision": dict(self.cost.flops),
            "recompute_flops": sum(self.cost.recompute_flops.values()),
            "vector_flops": self.cost.vector_flops,
            "bytes": {**self.cost.bytes_by_role, "total": self.cost.total_bytes},
            "arithmetic_intensity": self.cost.intensity,
            "t_compute": self.times.compute,
            "t_hbm": self.times.memory,
            "t_network": self.times.network,
            "t_step": self.times.step,
            "t_step_p10_p90": self.times.interval(),
            "t_bound": self.times.bound,
            "tokens_per_s": self.tokens_per_s,
            "mfu": self.mfu,
            "regime": self.times.regime,
            "regime_shares": self.times.shares(),
            "why": self.times.why(),
            "kernel_launches": self.times.launches,
            "memory": {
                "weights": self.memory.weights,
                "kv": self.memory.kv,
                "gradients": self.memory.gradients,
                "optimizer": self.memory.optimizer,
                "activations": self.memory.activations,
                "total": self.memory.total,
                "capacity": self.chip.memory_capacity,
            },
            "feasible": self.feasible,
            "chips_at_least": self.chips_at_least,
            "coverage": self.coverage(),
        }

    def coverage(self) -> dict[str, dict[str, float]]:
        """The ledger's coverage with the share of time beside ops, FLOPs and bytes."""
        table = self.ledger.coverage()
        seconds = self.times.by(lambda k, number: k.kernel.parts[number].confidence)
        for confidence, row in table.items():
            row["time"] = seconds.get(confidence, 0.0) / self.times.step if self.times.step else 0.0
        return table


def predict(workload: Workload, ledger: Ledger, chip: Chip, timing: Timing | None = None) -> Step:
    """Price a recorded workload on `chip`.

    Raises:
        UserError: a matmul in a precision that the chip has no rate for.
    """
    times = time_ledger(ledger, chip, timing)
    return Step(workload, ledger, times, ledger.total(), memory(ledger))
