"""Routed experts as decode runs them: a fused router, and DeepEP's low-latency kernels around them.

Written out in plain ops, a router is a dozen small kernels, and rows are rounded, sorted and
gathered before they are sent and gathered and summed after they came. Servers have one kernel for
the router behind its product (SGLang's `moe_fused_gate`), and the low-latency kernels do the rest
(DeepEP V1, docs/legacy.md): `low_latency_dispatch` takes BF16 tokens and the choice of experts,
rounds to FP8 on the way and leaves rows packed by expert; `low_latency_combine` takes the products'
results as they lie and sums them with the router's weights. Published latencies of both, from which
`ExpertExchange` has its constants, hold all of it: kernels of their own would count it twice.

As `onepass`, a rewriting of the ledger that the caller asks for by name.
"""

from __future__ import annotations

from dataclasses import replace

from .dataflow import Dataflow
from .ledger import Kernel, Ledger, Part
from .onepass import without
from .work import COLLECTIVE, GEMM, GROUPED_GEMM, SORT, Cost

ROUTER = "router"


def low_latency(ledger: Ledger) -> Ledger:
    """`ledger` with a kernel named `ROUTER` a layer, and nothing around the experts' products.

    What lies between two products (the activation, its rounding) stays. A ledger without an
    exchange of rows comes back as it is.
    """
    experts = {
        part.module
        for k in ledger.kernels if k.kind == COLLECTIVE and k.name == "all_to_all_single"
        for part in k.parts
    }  # fmt: skip
    if not experts:
        return ledger
    ops = ledger.trace.ops
    module = {p.op: p.module for k in ledger.kernels for p in k.parts}
    products = {p.op for k in ledger.kernels if k.kind == GROUPED_GEMM for p in k.parts}
    kept = _between(products, module, Dataflow(ops))
    gates = {m for i, m in module.items() if ops[i].overload_packet == "aten.topk"}
    inside: set[int] = set()
    routers: dict[tuple[str, int], list[Part]] = {}
    for kernel in ledger.kernels:
        if kernel.kind in (COLLECTIVE, GROUPED_GEMM, GEMM):
            continue
        for part in kernel.parts:
            if part.module in gates:
                routers.setdefault((part.module, ops[part.op].call), []).append(part)
                inside.add(part.op)
            elif part.module in experts and part.op not in kept:
                inside.add(part.op)
    kernels = [k for k in (without(k, inside) for k in ledger.kernels) if k is not None]
    kernels += [_router(ledger, parts) for parts in routers.values()]
    kernels.sort(key=lambda k: k.parts[-1].op)
    return replace(ledger, kernels=tuple(kernels))


def _between(products: set[int], module: dict[int, str], flow: Dataflow) -> set[int]:
    """Ops of a module that a product of it feeds and that feed another product of it."""

    def beside(index: int) -> list[int]:
        return [p for p in flow.producers[index] if module.get(p) == module[index]]

    order = sorted(module)
    fed: set[int] = set()
    for index in order:
        if any(p in products or p in fed for p in beside(index)):
            fed.add(index)
    feeding: set[int] = set()
    for index in reversed(order):
        if index in products or index in feeding:
            feeding.update(beside(index))
    return fed & feeding


def _router(ledger: Ledger, parts: list[Part]) -> Kernel:
    """All of a router behind its product as one launch: its bytes, those in passing among them."""
    op = ledger.trace.ops[parts[-1].op]
    cost = Cost.sum(part.cost for part in parts)
    return Kernel(ROUTER, SORT, op.phase, op.times, tuple(parts), cost)
