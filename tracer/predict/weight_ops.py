"""Ops of a backward that make gradients of weights and nothing else: a pipeline may delay them."""

from __future__ import annotations

from ..capture.records import BACKWARD
from ..cost import Ledger
from ..cost.dataflow import Dataflow
from ..cost.fusion import FUSIBLE
from ..cost.work import COLLECTIVE, REDUCTION


def weight_gradients(ledger: Ledger) -> set[int]:
    """Ops of the backward that serve gradients of weights alone: the products that write them, or
    terms of them (of a weight that is used twice), and whatever only these read (operands turned
    round and rounded again).
    """
    trace = ledger.trace
    priced = {p.op: k for k in ledger.kernels for p in k.parts}
    flow = Dataflow(trace.ops)
    gradients = {s for s, record in enumerate(trace.storages) if record.role == "gradients"}
    found, written = set[int](), set[int]()
    readers: dict[int, list[int]] = {}
    for index, op in enumerate(trace.ops):
        for producer in flow.producers[index]:
            if index in priced or op.name.startswith("_c10d"):
                readers.setdefault(producer, []).append(index)
    for index in range(len(trace.ops) - 1, -1, -1):
        op = trace.ops[index]
        kernel = priced.get(index)
        if kernel is None or op.phase != BACKWARD or kernel.kind == COLLECTIVE:
            continue
        after = [i for i in readers.get(index, ()) if trace.ops[i].phase == BACKWARD]
        served = bool(after) and all(i in found for i in after)
        term = served and all(i in written and priced[i].kind in FUSIBLE for i in after)
        if {out.storage for out in op.outputs} | set(op.mutates) <= gradients:
            written.add(index)
            found.add(index)
        elif term or (served and kernel.kind in (*FUSIBLE, REDUCTION)):
            found.add(index)
    return found
