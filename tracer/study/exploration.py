"""Can decode be compute-bound at all? Over the GPUs that share the experts, and the context.

Each GPU runs B sequences (DP = EP, TP = 1). Absorbed MLA reads the latents and computes on them;
routed rows a GPU do not fall with EP, only the experts that it reads; the exchanges go one way over
the link or the NIC; and a batch must fit into the memory beside the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra.expression import value_at
from ..machine.symbolic import StepModel
from .closed import EP, Closed
from .crossovers import FAR, first_crossing, network_seconds, never, sums
from .records import Cell, SweepTable

COLUMNS = (
    EP, "L", "flop_per_byte_limit", "flop_per_sent_byte_limit", "min_B", "limiter", "memory_bytes",
    "fits", "largest_B_that_fits",
)  # fmt: skip


def compute_bound_exploration(
    closed: Closed, model: StepModel, sizes: Sequence[int], contexts: Sequence[int],
    share: float = 0.9,
) -> SweepTable:  # fmt: skip
    """The smallest batch a GPU at which FLOPs take `share` of what bytes and exchanges take each.

    `flop_per_byte_limit` is what the intensity tends to as the batch grows: below the ridge, no
    batch will do.
    """
    rows: list[tuple[Cell, ...]] = []
    for size in sizes:
        for context in contexts:
            point = {EP: size, "L": context}
            closed.check(point)
            rows.append((size, context, *_row(closed, model, point, share)))
    chip = model.chip
    wires = f"{chip.link_domain} GPUs a scale-up domain at {_gb(chip.link_bandwidth)}, beyond at "
    notes = (
        f"compute-bound: FLOPs at the peak take {share:g} of what bytes and exchanges take",
        f"one way: {wires}{_gb(chip.nic_bandwidth)}; no exchange is merged or hidden",
    )
    return SweepTable(
        f"{closed.name}, experts over EP GPUs: where decode turns compute-bound", (EP, "L"),
        COLUMNS, tuple(rows), len(rows), "all", notes,
    )  # fmt: skip


def _row(closed: Closed, model: StepModel, point: dict[str, int], share: float) -> tuple[Cell, ...]:
    total = sums(closed, model, point)
    network = network_seconds(closed, model, point)
    far = {"B": 2**60}
    limit = float(value_at(total["flops"], far) / value_at(total["bytes"], far))
    sent = closed.network.moved if closed.network is not None else 0
    per_sent = None
    if point[EP] > 1:
        bytes_sent = value_at(sent, {**far, **point})
        per_sent = float(value_at(total["flops"], far) / bytes_sent)
    low = closed.scope.symbols["B"].low
    held, capacity = total["held"], model.defaults["capacity"]
    beyond = first_crossing(held, capacity + 1, "B", low, FAR)
    largest = None if beyond is None or beyond == low else beyond - 1
    needed = []
    for name, right in (("memory", total["memory"]), ("network", network)):
        scaled = share * right
        first = first_crossing(total["compute"], scaled, "B", low, FAR)
        if first is None:
            whole = never(total["compute"], scaled, "B", FAR, float("inf"))
            reason = f"{name}: no B" if whole else f"{name}: no B to {FAR:,}"
            return limit, per_sent, None, reason, None, None, largest
        needed.append((first, name))
    batch = max(first for first, _ in needed)
    at = {"B": batch}
    limiter = max((float(value_at(x, at)), name) for x, name in
                  ((total["memory"], "memory"), (network, "network")))[1]  # fmt: skip
    memory = float(value_at(held, at))
    return limit, per_sent, batch, limiter, memory, memory <= capacity, largest


def _gb(rate: float | None) -> str:
    return "nothing" if rate is None else f"{rate / 1e9:,.0f} GB/s"
