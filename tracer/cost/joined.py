"""Products that read one tensor as one product, as serving engines load their weights.

Query and latent of MLA, gate and up of a feed-forward, of the shared and of the routed experts:
DeepGEMM's table for DeepSeek-V3's inference has 2,112 x 7,168 and 4,096 x 7,168 in it, SGLang calls
them `fused_qkv_a_proj_with_mqa` and `gate_up_proj`. One launch reads the activation once. A
rewriting of the ledger that the caller asks for by name, for a forward without a backward.
"""

from __future__ import annotations

from dataclasses import replace

from ..capture.records import FORWARD, Op, TensorRef
from .ledger import Kernel, Ledger
from .work import GEMM, GROUPED_GEMM, Cost


def joined(ledger: Ledger) -> Ledger:
    """`ledger` with all products of one activation with weights of one depth as one."""
    ops = list(ledger.trace.ops)
    weights = {p.storage for p in ledger.trace.parameters}
    groups: dict[tuple[TensorRef, str, int], list[Kernel]] = {}
    for kernel in ledger.kernels:
        if _with_weight(kernel, ops, weights):
            key = (next(ops[kernel.parts[0].op].inputs()), kernel.kind, kernel.launches)
            groups.setdefault(key, []).append(kernel)
    merged: dict[int, Kernel] = {}
    gone: set[int] = set()
    for (source, _, launches), group in groups.items():
        if len(group) == 1:
            continue
        first, numbers = group[0], [k.parts[0].op for k in group]
        outs = [ops[i].outputs[0] for i in numbers]
        wide = sum(out.shape[-1] for out in outs)
        out = outs[0]._replace(
            shape=(*outs[0].shape[:-1], wide), stride=(*outs[0].stride[:-2], wide, 1)
        )
        ops[numbers[0]] = ops[numbers[0]]._replace(outputs=(out,))
        cost = Cost.sum(k.cost for k in group)
        again = (len(group) - 1) * launches * source.nbytes
        role = max(first.cost.read, key=lambda r: (r != "weights", first.cost.read[r]))
        cost = replace(cost, read={**cost.read, role: max(cost.read[role] - again, 0)})
        part = first.parts[0]._replace(cost=cost)
        merged[numbers[0]] = first._replace(parts=(part,), cost=cost)
        gone.update(numbers[1:])
    kernels = [
        merged.get(k.parts[0].op, k)
        for k in ledger.kernels
        if k.parts[0].op not in gone or k.kind not in (GEMM, GROUPED_GEMM)
    ]
    return replace(ledger, trace=replace(ledger.trace, ops=ops), kernels=tuple(kernels))


def _with_weight(kernel: Kernel, ops: list[Op], weights: set[int]) -> bool:
    """A product alone in its kernel, of an activation with a weight behind it."""
    if kernel.kind not in (GEMM, GROUPED_GEMM) or kernel.phase != FORWARD or len(kernel.parts) > 1:
        return False
    op = ops[kernel.parts[0].op]
    first, *others = op.inputs()
    plain = len(op.outputs) == 1 and len(op.outputs[0].shape) == 2
    return plain and first.storage not in weights and any(r.storage in weights for r in others)
