"""Routed experts as servers run them: a fused router, and what DeepEP's kernels do themselves.

Written out in plain ops, a router is a dozen small kernels; rows are gathered, sent, gathered by
expert, and on the way back gathered, sent, gathered and summed. Servers have one kernel for the
router behind its product (SGLang's `moe_fused_gate`), and DeepEP V1's do more than send
(docs/legacy.md):

* normal kernels take tokens, not rows: what is sent is not gathered first, and a token's results
  come back as one, the sum made on the way. Rows are still sorted by expert for the products;
* low-latency kernels also round to FP8 on the way out, leave rows packed by expert, and take the
  products' results as they lie.

Published rates and latencies of both, from which `ExpertExchange` has its constants, hold all of
that work: kernels of their own would count it twice. As `onepass`, a rewriting of the ledger that
the caller asks for by name; for a forward without a backward.
"""

from __future__ import annotations

from dataclasses import replace

from .dataflow import Dataflow
from .ledger import Kernel, Ledger, Part
from .onepass import without
from .work import COLLECTIVE, GATHER, GEMM, GROUPED_GEMM, SORT, Cost

ROUTER = "router"
EXCHANGE = "all_to_all_single"


def served(ledger: Ledger, exchange: str) -> Ledger:
    """`ledger` with a kernel named `ROUTER` a layer and without what the exchange does itself.

    `exchange`: "normal" or "low_latency" (DeepEP's), or "nccl": one all-to-all of all rows, beside
    which all other kernels stay.
    """
    ops = ledger.trace.ops
    module = {p.op: p.module for k in ledger.kernels for p in k.parts}
    gates = {m for i, m in module.items() if ops[i].overload_packet == "aten.topk"}
    inside: set[int] = set()
    if exchange != "nccl":
        inside = _inside(ledger, module, low_latency=exchange == "low_latency")
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


def _inside(ledger: Ledger, module: dict[int, str], *, low_latency: bool) -> set[int]:
    """Ops that the exchange's own kernels do."""
    kind = {p.op: k.kind for k in ledger.kernels for p in k.parts}
    sends = [p for k in ledger.kernels if k.name == EXCHANGE for p in k.parts]
    experts = {part.module for part in sends}
    flow = Dataflow(ledger.trace.ops)

    def beside(index: int) -> list[int]:
        return [p for p in flow.producers[index] if module.get(p) == module[index]]

    def fed(sources: set[int]) -> set[int]:
        """Ops of a module that one of `sources` in it feeds."""
        found: set[int] = set()
        for index in sorted(module):
            if any(p in sources or p in found for p in beside(index)):
                found.add(index)
        return found

    def feeding(targets: set[int]) -> set[int]:
        """Ops of a module that feed one of `targets` in it."""
        found: set[int] = set()
        for index in sorted(module, reverse=True):
            if index in targets or index in found:
                found.update(beside(index))
        return found

    products = {i for i, k in kind.items() if k == GROUPED_GEMM}
    if low_latency:
        kept = fed(products) & feeding(products)
    else:
        gathered = {i for part in sends for i in beside(part.op) if kind[i] == GATHER}
        kept = feeding(products | {part.op for part in sends}) - (gathered - fed(products))
    free = (COLLECTIVE, GROUPED_GEMM)
    return {
        i for i, m in module.items() if m in experts and kind[i] not in free and i not in kept
    }  # fmt: skip


def _router(ledger: Ledger, parts: list[Part]) -> Kernel:
    """All of a router behind its product as one launch: its bytes, those in passing among them."""
    op = ledger.trace.ops[parts[-1].op]
    cost = Cost.sum(part.cost for part in parts)
    return Kernel(ROUTER, SORT, op.phase, op.times, tuple(parts), cost)
