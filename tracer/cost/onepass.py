"""FP8 casts as the kernels that FP8 training and serving run: one pass over what is rounded.

Written out in plain ops, a cast in tiles reads its source for the largest values and again to
divide, and what is rounded a second time (an activation that was kept in FP8, for the weight
gradient) passes through memory in FP32. Kernels made for it (Transformer Engine, DeepSeek's casts)
hold a tile of 128 x 128 in registers: they read the source once and write FP8 values and scales,
transposed or not. That is a statement about kernels, not about the program, so it is a rewriting of
the ledger that the caller asks for by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..capture.records import Op, TensorRef
from .dataflow import Dataflow
from .fusion import FUSIBLE
from .ledger import Kernel, Ledger, Part
from .roles import storage_roles
from .work import COPY, REDUCTION, Cost

CAST = "fp8_cast"
_LARGEST = ("aten.abs", "aten.amax")  # of a BF16 source, in BF16


def one_pass(ledger: Ledger) -> Ledger:
    """`ledger` with every cast to FP8 as one kernel named `CAST`.

    A cast is the op that rounds FP32 to FP8, all elementwise ops and reductions behind it up to a
    tensor in another precision, and transposing copies of its results if nobody else reads those.
    """
    ops = ledger.trace.ops
    rounding = [index for index, op in enumerate(ops) if _rounds(op)]
    if not rounding:
        return ledger
    flow = Dataflow(ops)
    kernel_of = {p.op: k for k in ledger.kernels for p in k.parts}
    readers: dict[int, list[int]] = {}
    for index in kernel_of:
        for producer in flow.producers[index]:
            readers.setdefault(producer, []).append(index)
    for index, op in enumerate(ops):  # collectives' waits and views keep a value alive too
        if index not in kernel_of and not _is_view(op):
            for producer in flow.producers[index]:
                readers.setdefault(producer, []).append(index)

    taken: set[int] = set()
    casts: list[set[int]] = []
    for index in rounding:
        if index in kernel_of:
            op = ops[index]
            members = _members(index, ops, flow, kernel_of) - taken
            for made in sorted(members):
                after = [i for i in readers.get(made, []) if i not in members]
                if after and all(_copies(ops[i]) and ops[i].phase == op.phase for i in after):
                    members |= set(after)
            taken |= members
            casts.append(members)

    roles = storage_roles(ledger.trace)
    parts = {p.op: p for p in ledger.parts()}
    kernels = [k for k in (without(k, taken) for k in ledger.kernels) if k is not None]
    kernels += [_cast(ledger, sorted(m), parts, readers, roles) for m in casts]
    kernels.sort(key=lambda k: k.parts[-1].op)
    return replace(ledger, kernels=tuple(kernels))


def _rounds(op: Op) -> bool:
    return (
        op.overload_packet == "aten._to_copy"
        and op.outputs[0].dtype.startswith("float8")
        and all(ref.dtype == "float32" for ref in op.inputs())
    )


def _copies(op: Op) -> bool:
    kind = op.outputs[0].dtype if op.outputs else ""
    return op.overload_packet == "aten.clone" and kind.startswith(("float8", "float32"))


def _is_view(op: Op) -> bool:
    inputs = {ref.storage for ref in op.inputs()}
    return not op.mutates and all(out.storage in inputs for out in op.outputs)


def _members(
    last: int, ops: list[Op], flow: Dataflow, kernel_of: dict[int, Kernel]
) -> set[int]:  # fmt: skip
    found, queue = {last}, [last]
    while queue:
        for producer in flow.producers[queue.pop()]:
            op = ops[producer]
            if producer in found or producer not in kernel_of or op.phase != ops[last].phase:
                continue
            kind = kernel_of[producer].kind
            inside = op.outputs and op.outputs[0].dtype == "float32"
            if kind in (*FUSIBLE, REDUCTION) and (inside or op.overload_packet in _LARGEST):
                found.add(producer)
                queue.append(producer)
    return found


def without(kernel: Kernel, taken: set[int]) -> Kernel | None:
    """What is left of a kernel without the ops `taken`; None if nothing is."""
    left = tuple(part for part in kernel.parts if part.op not in taken)
    if len(left) == len(kernel.parts):
        return kernel
    if not left:
        return None
    return kernel._replace(parts=left, cost=Cost.sum(part.cost for part in left))


def _cast(
    ledger: Ledger, members: list[int], parts: dict[int, Part], readers: dict[int, list[int]],
    roles: list[str],
) -> Kernel:  # fmt: skip
    ops = ledger.trace.ops
    inside = set(members)
    made = {out.storage for i in members for out in ops[i].outputs}
    sources = {
        ref.storage: ref
        for i in members for ref in ops[i].inputs()
        if ref.storage not in made and ref.storage in ledger.materialised
        and ref.nbytes == max(r.nbytes for r in ops[i].inputs() if r.storage == ref.storage)
    }  # fmt: skip
    results = [
        ops[i].outputs[0]
        for i in members
        if (ops[i].outputs and not set(readers.get(i, ())) <= inside) or not readers.get(i)
    ]
    times = ops[members[-1]].times
    vector = sum(parts[i].cost.vector_flops for i in members)
    cost = Cost(
        {}, vector, {}, _bytes(sources.values(), roles, times), _bytes(results, roles, times)
    )
    listed = tuple(parts[i]._replace(cost=Cost()) for i in members[:-1])
    return Kernel(
        CAST, COPY, ops[members[-1]].phase, times,
        (*listed, parts[members[-1]]._replace(cost=cost)), cost,
    )  # fmt: skip


def _bytes(refs: Iterable[TensorRef], roles: list[str], times: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for ref in refs:
        role = roles[ref.storage]
        found[role] = found.get(role, 0) + times * ref.nbytes
    return found
