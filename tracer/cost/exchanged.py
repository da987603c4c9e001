"""Tokens, not rows, around an exchange of experts: what DeepEP's normal kernels do themselves.

A program of plain ops has a row for each of a token's k experts. Rows are gathered, sent, and
gathered by expert; their results are gathered by rank, sent, gathered by token and summed; a
backward does the same with gradients. DeepEP's normal kernels take [tokens, hidden] with the k
experts of each, send a token once to a rank, and bring it back as one: `combine` is "addition
without weights" (deep_ep/buffer.py; arXiv 2412.19437, 3.2.2: "accumulation" in the kernel). The
backward of `dispatch` is a `combine`, and the other way round, and what is dispatched may be FP8
with its scales, gradients too (docs/legacy.md, "Example use in model training"). Published rates of
both, from which `ExpertExchange` has its constants, hold that work: kernels of their own would
count it twice. So these go:

* in front of a dispatch, gathers of rows and what makes rows of tokens: a gradient times its k
  weights. What rounds rows to FP8 rounds tokens;
* behind a combine, gathers of rows, products with the k weights and their sum. Weights travel with
  tokens (`topk_weights`) and are multiplied in where the experts are, in a kernel that is there
  anyway: Megatron-Core's `weighted_swiglu`, whose backward also makes their gradient
  (fusions/fused_bias_swiglu.py).

These stay, for they are kernels there too (Megatron-Core's `_DeepepManager` in
moe/token_dispatcher.py permutes and unpermutes, SGLang has `ep_scatter` and `ep_gather`): the
layout (`get_dispatch_layout`, maps of rows), rows sorted by expert in front of the products, and
sorted back behind them. Of a token that two experts of one rank chose, those kernels read one row,
or write one; here it is two.

As `onepass`, a rewriting of the ledger that the caller asks for by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from .dataflow import Dataflow
from .ledger import Kernel, Ledger
from .onepass import without
from .work import COLLECTIVE, GATHER, GEMM, GROUPED_GEMM, Cost

EXCHANGE = "all_to_all_single"
_PRODUCTS = (GEMM, GROUPED_GEMM)
Edges = Mapping[int, list[int]]
Take = Callable[[int], bool]


def in_tokens(ledger: Ledger) -> Ledger:
    """`ledger` without what the exchange's kernels do, in the forward and in the backward."""
    gone, once = _of_the_exchange(ledger)
    if not gone:
        return ledger
    kernels = (without(_once(k, once), gone) for k in ledger.kernels)
    return replace(ledger, kernels=tuple(k for k in kernels if k is not None))


def _of_the_exchange(ledger: Ledger) -> tuple[set[int], dict[int, int]]:
    """Ops that the exchange does, and ops left to do once a token, with its number of rows."""
    ops = ledger.trace.ops
    kind = {p.op: k.kind for k in ledger.kernels for p in k.parts}
    module = {p.op: p.module for k in ledger.kernels for p in k.parts}
    # Elements of rows that are sent; integers are counts of rows, which are of the layout.
    sent = {
        p.op: ref.numel
        for k in ledger.kernels if k.name == EXCHANGE
        for p in k.parts if not (ref := next(ops[p.op].inputs())).dtype.startswith("int")
    }  # fmt: skip
    before, after = within(ledger, module, {module[i] for i in sent})

    def passes(index: int) -> bool:
        return kind[index] not in (*_PRODUCTS, COLLECTIVE)

    def making(size: int) -> Take:
        return lambda i: passes(i) and any(ref.numel == size for ref in ops[i].outputs)

    def touching(size: int) -> Take:
        made = making(size)
        return lambda i: made(i) or (passes(i) and any(r.numel == size for r in ops[i].inputs()))

    gone: set[int] = set()
    gathers: set[int] = set()
    feeding: set[int] = set()  # a dispatch
    for send, size in sent.items():
        behind = reach([send], before, passes)
        if any(kind[p] in _PRODUCTS for i in (send, *behind) for p in before[i]):  # a combine
            gone |= reach([send], after, touching(size))
        else:
            feeding |= behind
            gathers |= {i for i in behind if kind[i] == GATHER and making(size)(i)}
    each: dict[str, int] = {}  # rows a token, by module: a gather of the forward reads tokens
    for index in gathers:
        number = ops[index].outputs[0].numel // next(ops[index].inputs()).numel
        each[module[index]] = max(number, each.get(module[index], 1))
    for index in gathers:
        if each[module[index]] > 1:  # else rows are tokens
            gone |= reach([index], before, making(ops[index].outputs[0].numel))
    gone |= gathers
    rounding = (reach(gathers, after, passes) & feeding) - gone
    return gone, {i: each[module[i]] for i in rounding}


def within(
    ledger: Ledger, module: Mapping[int, str], modules: set[str]
) -> tuple[Edges, Edges]:  # fmt: skip
    """Who feeds an op of `modules` in its own module, and whom it feeds; `module` by op."""
    flow = Dataflow(ledger.trace.ops)
    before = {
        i: [p for p in flow.producers[i] if module.get(p) == m]
        for i, m in module.items() if m in modules
    }  # fmt: skip
    after: dict[int, list[int]] = {i: [] for i in before}
    for index, producers in before.items():
        for producer in producers:
            after[producer].append(index)
    return before, after


def reach(start: Iterable[int], edges: Edges, take: Take | None = None) -> set[int]:
    """Ops along `edges` from `start`, all or as far as there are some to `take`."""
    found: set[int] = set()
    queue = list(start)
    while queue:
        new = {i for i in edges[queue.pop()] if i not in found and (take is None or take(i))}
        found |= new
        queue += new
    return found


def _once(kernel: Kernel, once: Mapping[int, int]) -> Kernel:
    """A kernel in which ops of rows run on tokens: `once` has the rows of one."""
    if not any(p.op in once for p in kernel.parts):
        return kernel
    parts = tuple(
        p._replace(cost=_share(p.cost, once[p.op])) if p.op in once else p for p in kernel.parts
    )
    return kernel._replace(parts=parts, cost=Cost.sum(p.cost for p in parts))


def _share(cost: Cost, number: int) -> Cost:
    """One of `number` equal parts."""

    def part(table: Mapping[str, int]) -> dict[str, int]:
        return {key: value // number for key, value in table.items()}

    return replace(
        cost, vector_flops=cost.vector_flops // number, read=part(cost.read), write=part(cost.write)
    )
