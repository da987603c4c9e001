"""Dense products in FP8 where a model was traced in BF16: what serving engines do to its linears."""

from __future__ import annotations

from dataclasses import replace

from .ledger import Kernel, Ledger
from .onepass import CAST
from .work import COPY, GEMM, Cost


def in_fp8(ledger: Ledger, keep: tuple[str, ...] = ("lm_head",)) -> Ledger:
    """`ledger` with every product of an activation and a weight in FP8.

    Weights are stored in a byte an element, the activation is rounded in a kernel of its own, the
    result stays as it was. Modules whose path ends in one of `keep` stay in BF16, as engines leave
    the output head.
    """
    kernels: list[Kernel] = []
    for kernel in ledger.kernels:
        weights = kernel.cost.read.get("weights", 0)
        if kernel.kind != GEMM or not weights or kernel.module.rpartition(".")[2] in keep:
            kernels.append(kernel)
            continue
        operand = sum(n for role, n in kernel.cost.read.items() if role != "weights")
        part = max(kernel.parts, key=lambda p: p.cost.total_flops)
        cast = Cost({}, 0, {}, {"activations": operand}, {"temporary": operand // 2})
        kernels.append(Kernel(
            CAST, COPY, kernel.phase, kernel.launches,
            (part._replace(cost=Cost()), part._replace(cost=cast)), cast,
        ))  # fmt: skip
        read = {role: n // 2 for role, n in kernel.cost.read.items()}
        flops = {"fp8": kernel.cost.total_flops}
        cost = replace(kernel.cost, flops=flops, read=read)
        kernels.append(kernel._replace(parts=(part._replace(cost=cost),), cost=cost))
    return replace(ledger, kernels=tuple(kernels))


def saved_weights(ledger: Ledger, keep: tuple[str, ...] = ("lm_head",)) -> int:
    """Bytes of weights that `in_fp8` saves."""
    return sum(
        kernel.cost.read.get("weights", 0) // 2
        for kernel in ledger.kernels
        if kernel.kind == GEMM and kernel.module.rpartition(".")[2] not in keep
    )
