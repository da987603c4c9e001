"""Which kernels of a rank's program work on rows that a router sent there."""

from __future__ import annotations

from ..capture.records import OPTIMIZER
from ..cost import Kernel, Ledger
from ..cost.roles import made_of_weights
from ..cost.work import ATTENTION, COLLECTIVE, GEMM, GROUPED_GEMM


def routed_kernels(ledger: Ledger) -> list[Kernel]:
    """Products of experts, and what runs beside them between dispatch and combine.

    Between the first and the last exchange of a module of experts, in each phase, everything of
    that module works on rows that arrived, but what looks at weights alone (casts to FP8). With no
    exchange (all ranks see all tokens) that range is empty, and products are all that is known.
    """
    kernels, made = ledger.kernels, made_of_weights(ledger.trace)
    between: dict[tuple[str, str], list[int]] = {}
    for number, kernel in enumerate(kernels):
        if (
            kernel.kind == COLLECTIVE
            and "ep" in kernel.cost.messages
            and not _counts(ledger, kernel)
        ):
            between.setdefault(_room(kernel), []).append(number)
    return [
        kernel for number, kernel in enumerate(kernels)
        if kernel.kind == GROUPED_GEMM or (
            kernel.phase != OPTIMIZER and kernel.kind not in (COLLECTIVE, GEMM, ATTENTION)
            and not _of_weights(ledger, kernel, made)
            and (ends := between.get(_room(kernel))) and ends[0] < number < ends[-1]
        )
    ]  # fmt: skip


def _of_weights(ledger: Ledger, kernel: Kernel, made: set[int]) -> bool:
    """Whether a kernel looks at weights alone, or at what is `made` of them."""
    storages = ledger.trace.storages
    inputs = {ref.storage for part in kernel.parts for ref in ledger.trace.ops[part.op].inputs()}
    return bool(inputs) and all(s in made or storages[s].role == "weights" for s in inputs)


def _room(kernel: Kernel) -> tuple[str, str]:
    """The module and the phase of a kernel."""
    return kernel.parts[0].module, kernel.phase


def _counts(ledger: Ledger, kernel: Kernel) -> bool:
    """Whether a message says how many rows come, and brings none."""
    return next(ledger.trace.ops[kernel.parts[0].op].inputs()).dtype.startswith("int")
