"""Dense products in FP8 where a model was traced in BF16: what serving engines do to its linears.

Linears that read one tensor (query, key and value; gate and up) are one product, as vLLM and
TensorRT-LLM load them. Weights are a byte an element, the activation is rounded once in a kernel of
its own, results stay as they were.
"""

from __future__ import annotations

from dataclasses import replace

from ..capture.records import Op, TensorRef
from .ledger import Kernel, Ledger
from .onepass import CAST
from .work import COPY, GEMM, Cost

HEAD = ("lm_head",)


def in_fp8(ledger: Ledger, keep: tuple[str, ...] = HEAD) -> Ledger:
    """`ledger` with every product of an activation and a weight in FP8.

    Modules whose path ends in one of `keep` stay in BF16, as engines leave the output head.
    """
    ops = list(ledger.trace.ops)
    together: dict[TensorRef, list[Kernel]] = {}
    for kernel in ledger.kernels:
        if _linear(kernel, keep):
            together.setdefault(_activation(ops[kernel.parts[0].op], ledger), []).append(kernel)
    kernels: list[Kernel] = []
    for kernel in ledger.kernels:
        if not _linear(kernel, keep):
            kernels.append(kernel)
            continue
        source = _activation(ops[kernel.parts[0].op], ledger)
        group = together.pop(source, None)
        if group is None:  # part of one that is there already
            continue
        index = group[0].parts[0].op
        out = ops[index].outputs[0]
        wide = sum(ops[k.parts[0].op].outputs[0].shape[-1] for k in group)
        merged = out._replace(shape=(*out.shape[:-1], wide), stride=(*out.stride[:-2], wide, 1))
        times, part = group[0].launches, group[0].parts[0]
        nbytes = source.nbytes * times
        cast = Cost({}, 0, {}, {"activations": nbytes}, {"temporary": nbytes // 2})
        kernels.append(Kernel(
            CAST, COPY, kernel.phase, times,
            (part._replace(cost=Cost()), part._replace(cost=cast)), cast,
        ))  # fmt: skip
        read = {
            "activations": nbytes // 2,
            "weights": sum(k.cost.read.get("weights", 0) for k in group) // 2,
        }
        cost = replace(
            Cost.sum(k.cost for k in group), read=read,
            flops={"fp8": sum(k.cost.total_flops for k in group)},
        )  # fmt: skip
        ops[index] = ops[index]._replace(outputs=(merged,))
        kernels.append(group[0]._replace(parts=(part._replace(cost=cost),), cost=cost))
    return replace(ledger, trace=replace(ledger.trace, ops=ops), kernels=tuple(kernels))


def saved_weights(ledger: Ledger, keep: tuple[str, ...] = HEAD) -> int:
    """Bytes of weights that `in_fp8` saves."""
    return sum(k.cost.read["weights"] // 2 for k in ledger.kernels if _linear(k, keep))


def _linear(kernel: Kernel, keep: tuple[str, ...]) -> bool:
    """A product with a weight, not in `keep`."""
    name = kernel.module.rpartition(".")[2]
    return kernel.kind == GEMM and kernel.cost.read.get("weights", 0) > 0 and name not in keep


def _activation(op: Op, ledger: Ledger) -> TensorRef:
    """The operand that is no weight; views of one tensor are one operand."""
    weights = {p.storage for p in ledger.trace.parameters}
    ref = max((r for r in op.inputs() if r.storage not in weights), key=lambda r: r.numel)
    return ref._replace(shape=(ref.numel,), stride=(1,))
