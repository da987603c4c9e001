"""Routed experts as servers run them: a fused router, and what DeepEP's kernels do themselves.

Written out in plain ops, a router is a dozen small kernels; rows are gathered, sent, gathered by
expert, and on the way back gathered, sent, gathered and summed. Servers have one kernel for the
router behind its product (SGLang's `moe_fused_gate`), and DeepEP V1's low-latency kernels do more
than send (docs/legacy.md): they round to FP8 on the way out, leave rows packed by expert, and take
the products' results as they lie. What its normal kernels do is in `exchanged`.

Published rates and latencies, from which `ExpertExchange` has its constants, hold all of that work:
kernels of their own would count it twice. As `onepass`, a rewriting of the ledger that the caller
asks for by name; for a forward without a backward.
"""

from __future__ import annotations

from dataclasses import replace

from .exchanged import EXCHANGE, in_tokens, reach, within
from .ledger import Kernel, Ledger, Part
from .onepass import without
from .work import COLLECTIVE, GEMM, GROUPED_GEMM, SORT, Cost

ROUTER = "router"


def served(ledger: Ledger, exchange: str) -> Ledger:
    """`ledger` with a kernel named `ROUTER` a layer and without what the exchange does itself.

    `exchange`: "normal" or "low_latency" (DeepEP's), or "nccl": one all-to-all of all rows, beside
    which all other kernels stay.
    """
    ops = ledger.trace.ops
    module = {p.op: p.module for k in ledger.kernels for p in k.parts}
    gates = {m for i, m in module.items() if ops[i].overload_packet == "aten.topk"}
    if exchange == "normal":
        ledger = in_tokens(ledger)
    inside = _inside(ledger, module) if exchange == "low_latency" else set()
    routers: dict[tuple[str, int], list[Part]] = {}
    for kernel in ledger.kernels:
        if kernel.kind not in (COLLECTIVE, GROUPED_GEMM, GEMM):
            for part in kernel.parts:
                if part.module in gates:
                    routers.setdefault((part.module, ops[part.op].times), []).append(part)
    gone = inside | {part.op for parts in routers.values() for part in parts}
    kernels = [k for k in (without(k, gone) for k in ledger.kernels) if k is not None]
    kernels += [_router(ledger, parts) for parts in routers.values()]
    kernels.sort(key=lambda k: k.parts[-1].op)
    return replace(ledger, kernels=tuple(kernels))


def _inside(ledger: Ledger, module: dict[int, str]) -> set[int]:
    """Ops that the low-latency kernels do: all but the products and what is between them."""
    kind = {p.op: k.kind for k in ledger.kernels for p in k.parts}
    experts = {p.module for k in ledger.kernels if k.name == EXCHANGE for p in k.parts}
    before, after = within(ledger, module, experts)
    products = [i for i in before if kind[i] == GROUPED_GEMM]
    kept = reach(products, after) & reach(products, before)
    return {i for i in before if kind[i] not in (COLLECTIVE, GROUPED_GEMM) and i not in kept}


def _router(ledger: Ledger, parts: list[Part]) -> Kernel:
    """All of a router behind its product as one launch: its bytes, those in passing among them."""
    op = ledger.trace.ops[parts[-1].op]
    cost = Cost.sum(part.cost for part in parts)
    return Kernel(ROUTER, SORT, op.phase, op.times, tuple(parts), cost)
