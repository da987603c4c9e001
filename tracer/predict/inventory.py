"""What a model is made of, read from a trace: parameters, the active ones, KV bytes a token."""

from __future__ import annotations

from dataclasses import dataclass

from ..capture.records import FORWARD, Op, Parameter, TensorRef, Trace
from ..cost import NAIVE, Conventions, price
from ..cost.dataflow import Dataflow


@dataclass(frozen=True, slots=True)
class Inventory:
    """Counts of one model.

    Attributes:
        parameters: elements of all parameters, a shared one once; buffers are not parameters.
        active_parameters: those that one token meets: all that the forward touches, of routed
            experts k in E. The embedding counts whole, as published figures have it.
        weight_bytes: parameters and buffers as stored.
        kv_bytes_per_token: written to the cache for one token, over all layers.
    """

    parameters: int
    active_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int


def take_inventory(
    trace: Trace,
    tokens: int,
    longer: tuple[Trace, int] | None = None,
    conventions: Conventions | None = None,
) -> Inventory:
    """The inventory of the model behind a prefill trace of `tokens` tokens.

    `longer` is a second trace with more tokens. What both write alike (the state of a recurrence)
    does not grow with a token and is no part of `kv_bytes_per_token`, which `conventions` may hold
    in another type.
    """
    parameters = [p for p in trace.parameters if not p.buffer]

    def written(trace: Trace) -> int:
        return price(trace, conventions, execution=NAIVE).total().write.get("kv", 0)

    return Inventory(
        sum(p.numel for p in parameters),
        _active(trace),
        sum(p.nbytes for p in trace.parameters),
        written(trace) // tokens
        if longer is None
        else (written(longer[0]) - written(trace)) // (longer[1] - tokens),
    )


def _active(trace: Trace) -> int:
    """Σ over touched parameters of numel × share, the share being k/E under a grouped matmul."""
    by_storage: dict[int, list[Parameter]] = {}
    for item in trace.parameters:
        if not item.buffer:
            by_storage.setdefault(item.storage, []).append(item)
    flow = Dataflow(trace.ops)
    met: dict[str, int] = {}  # name -> elements that a token meets, over all layers it stands for
    for index, op in enumerate(trace.ops):
        if op.phase != FORWARD:
            continue
        for ref in op.inputs():
            owners = by_storage.get(ref.storage)
            parameter = _owner(owners, ref) if owners else None
            if parameter is None or not _computes(op, ref):
                continue
            elements = parameter.numel
            if "grouped" in op.name and len(ref.shape) == 3:
                top_k = flow.top_k(index) or ref.shape[0]
                elements = elements * top_k // ref.shape[0]
            met[parameter.name] = max(met.get(parameter.name, 0), elements * op.times)
    return sum(met.values())


def _owner(owners: list[Parameter], ref: TensorRef) -> Parameter | None:
    """Which of the parameters in one storage (a flat buffer may hold many) `ref` lies in."""
    if len(owners) == 1:
        return owners[0]
    return next((p for p in owners if p.offset <= ref.offset < p.offset + p.numel), None)


def _computes(op: Op, ref: TensorRef) -> bool:
    """A view of a parameter is no use of it; an op with a result of its own is."""
    return all(out.storage != ref.storage for out in op.outputs)
