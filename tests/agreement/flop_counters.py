"""Run a program once under both counters and compare.

torch's `FlopCounterMode` does not halve causal attention and counts the scores that a fused
backward computes again, so our side is priced with `causal="full"` and `recompute_flops` is added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tracer.capture import Capture
from tracer.cost import Conventions, Ledger, price

FULL = Conventions(causal="full")


class Counts(NamedTuple):
    """FLOPs by either counter, and our ledger."""

    ours: int
    theirs: int
    ledger: Ledger

    def by_op(self) -> dict[str, int]:
        """Our matrix FLOPs by op, recomputation included, without ops that have none."""
        ops = self.ledger.trace.ops
        costs = self.ledger.by(lambda kernel, part: ops[part.op].overload_packet)
        sums = {
            name: cost.total_flops + sum(cost.recompute_flops.values())
            for name, cost in costs.items()
        }
        return {name: flops for name, flops in sums.items() if flops}


def count(
    run: Callable[[], Any], model: nn.Module | None = None, *, attention: str = "fused"
) -> Counts:
    """`run()` under both counters at once, so that both see the same ops."""
    with (
        Capture(model, attention=attention) as capture,
        FlopCounterMode(display=False) as torch_counter,
    ):
        run()
    return compare(price(capture.trace, FULL), torch_counter)


def compare(ledger: Ledger, torch_counter: FlopCounterMode) -> Counts:
    """The totals of a trace and of the torch counter that saw the same run."""
    total = ledger.total()
    ours = total.total_flops + sum(total.recompute_flops.values())
    return Counts(ours, torch_counter.get_total_flops(), ledger)


def step(model: nn.Module, *inputs: Any) -> Callable[[], Any]:
    """Forward and backward."""
    return lambda: model(*inputs).float().sum().backward()
