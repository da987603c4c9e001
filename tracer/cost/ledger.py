"""Trace -> Ledger: what every op costs, grouped into the kernels that would run.

Pricing is a replay over records. The same trace is priced under any convention and either
execution, and a trace read from a file is priced without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from ..algebra import sample
from ..capture.records import Op, Trace
from ..errors import UserError
from . import formulas
from .caches import fp8_caches
from .conventions import FP8, Conventions
from .dataflow import Dataflow
from .formulas.pointwise import lookup
from .fusion import FUSIBLE, Node, fuse
from .registry import Env, Formula, Registry, registry
from .roles import storage_roles
from .traffic import Traffic, is_view, traffic
from .work import COLLECTIVE, FREE, REDUCTION, UNKNOWN, UNMODELLED, Cost, Work

assert formulas  # imported for its registrations

NAIVE, EFFICIENT = "naive", "efficient"
EXECUTIONS = (NAIVE, EFFICIENT)

PRECISIONS = {
    "float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16",
    "float8_e4m3fn": "fp8", "float8_e5m2": "fp8", "float8_e4m3fnuz": "fp8",
    "float8_e5m2fnuz": "fp8", "float4_e2m1fn_x2": "fp4", "int8": "int8", "uint8": "int8",
    "complex32": "fp16", "complex64": "fp32", "complex128": "fp64",
}  # fmt: skip


class Part(NamedTuple):
    """One op's share of a kernel: `cost` includes the layers that the op stands for."""

    op: int  # index into `Trace.ops`
    module: str
    confidence: str
    cost: Cost


class Kernel(NamedTuple):
    """Ops that run as one launch, `launches` times in the whole model."""

    name: str
    kind: str
    phase: str
    launches: int
    parts: tuple[Part, ...]
    cost: Cost

    @property
    def module(self) -> str:
        """The module that pays most bytes and FLOPs of this kernel."""
        return max(
            self.parts, key=lambda p: (sample(p.cost.total_flops), sample(p.cost.total_bytes))
        ).module


@dataclass(frozen=True)
class Ledger:
    """The kernels of a trace with their costs, under named conventions."""

    trace: Trace
    conventions: Conventions
    execution: str
    kernels: tuple[Kernel, ...]
    materialised: frozenset[int] = frozenset()  # storages that some kernel reads or writes

    def total(self, phase: str | None = None) -> Cost:
        """The whole cost, or that of one phase."""
        return Cost.sum(k.cost for k in self.kernels if phase is None or k.phase == phase)

    def by(self, key: Callable[[Kernel, Part], str]) -> dict[str, Cost]:
        """Cost summed by whatever `key` says of a part, largest bytes first."""
        groups: dict[str, list[Cost]] = {}
        for kernel in self.kernels:
            for part in kernel.parts:
                groups.setdefault(key(kernel, part), []).append(part.cost)
        summed = {name: Cost.sum(costs) for name, costs in groups.items()}
        return dict(sorted(summed.items(), key=lambda item: -sample(item[1].total_bytes)))

    def unmodelled(self) -> dict[str, int]:
        """Names of ops without a formula, and how many of each the model runs."""
        counts: dict[str, int] = {}
        for part in self.parts():
            if part.confidence == UNMODELLED:
                op = self.trace.ops[part.op]
                counts[op.name] = counts.get(op.name, 0) + op.times
        return counts

    def parts(self) -> Iterable[Part]:
        """Every op that runs in a kernel."""
        for kernel in self.kernels:
            yield from kernel.parts

    def coverage(self) -> dict[str, dict[str, float]]:
        """Share of ops, FLOPs and bytes that is exact, estimated or unmodelled."""
        table: dict[str, dict[str, float]] = {}
        for part in self.parts():
            row = table.setdefault(part.confidence, {"ops": 0, "flops": 0, "bytes": 0})
            row["ops"] += self.trace.ops[part.op].times
            row["flops"] += part.cost.total_flops
            row["bytes"] += part.cost.total_bytes
        for what in ("ops", "flops", "bytes"):
            whole = sum(row[what] for row in table.values())
            for row in table.values():
                row[what] = row[what] / whole if whole else 0.0
        return table


def price(
    trace: Trace,
    conventions: Conventions | None = None,
    *,
    execution: str = EFFICIENT,
    strict: bool = False,
    formulas: Registry = registry,
) -> Ledger:
    """The ledger of `trace`.

    Args:
        trace: what a capture recorded.
        conventions: the counting choices; the defaults if None.
        execution: "naive" runs every op as its own kernel, to memory and back; "efficient" fuses
            chains of elementwise ops by dataflow.
        strict: refuse ops without a formula instead of pricing them by their bytes.
        formulas: the registry to look ops up in.

    Raises:
        UserError: unknown `execution`, a formula that cannot read its op, or, if `strict`, an op
            without a formula; the message names the op.
    """
    if execution not in EXECUTIONS:
        raise UserError(f"execution={execution!r}: choose one of {list(EXECUTIONS)}")
    conventions = conventions or Conventions()
    flow = Dataflow(trace.ops)
    works: list[Work] = []
    nodes: list[Node | None] = []
    for index, op in enumerate(trace.ops):
        formula = formulas.find(op)
        work = _work(op, index, formula, conventions, flow, trace)
        if strict and work.confidence == UNMODELLED:
            name = op.overload_packet.replace(".", "::")
            raise UserError(
                f"no formula for {op.name} in module {trace.module_of(op) or '(top)'!r} "
                f"(--strict): register one with @tracer.cost({name!r})"
            )
        works.append(work)
        nodes.append(_node(op, work, formula))

    roles = storage_roles(trace)
    if execution == EFFICIENT:
        groups, moved = fuse(nodes, trace.storages, roles)
    else:
        groups = [[index] for index, node in enumerate(nodes) if node is not None]
        moved = [node.traffic if node is not None else Traffic((), ()) for node in nodes]
    shares: Mapping[int, Fraction] = {}
    if conventions.kv == FP8:
        trace, shares = fp8_caches(trace, moved, execution == EFFICIENT)
    kernels = tuple(
        _kernel(trace, members, works, moved, roles, conventions, shares) for members in groups
    )
    materialised = frozenset(m.storage for op in moved for m in (*op.writes, *op.reads))
    return Ledger(trace, conventions, execution, kernels, materialised)


def _work(
    op: Op, index: int, formula: Formula | None, conventions: Conventions, flow: Dataflow,
    trace: Trace,
) -> Work:  # fmt: skip
    if formula is not None:
        top_k = flow.top_k(index) if "grouped" in op.name else None
        name = formula.function.__name__
        try:
            work = formula(op, Env(conventions, top_k))
        except Exception as error:  # whatever a person's formula raises
            raise UserError(
                f"the formula {name!r} cannot read {op.name}: {type(error).__name__}: {error}"
            ) from error
        _check(work, name, op, formula)
        return work
    if is_view(op):
        return Work(kind=FREE)
    found = lookup(op, op.name in trace.pointwise)
    return found if found is not None else Work(kind=UNKNOWN, confidence=UNMODELLED)


def _check(work: Work, name: str, op: Op, formula: Formula) -> None:
    """What a formula returns must be `Work` about arguments that the op has."""
    if not isinstance(work, Work):
        raise UserError(f"the formula {name!r} of {op.name} returns {work!r}: return tracer.Work")
    known = {"*", *formula.parameters, *op.kwargs}
    for argument in (*(work.read or ()), *(k for k in work.write or () if isinstance(k, str))):
        if argument not in known:
            raise UserError(
                f"the formula {name!r} states bytes of {argument!r}, "
                f"which {op.name} does not have: {', '.join(sorted(known))}"
            )


def _node(op: Op, work: Work, formula: Formula | None) -> Node | None:
    # In-place collectives of c10d return what they were given, which is no view.
    if work.kind == FREE or (work.kind != COLLECTIVE and is_view(op)):
        return None
    loop: tuple[int, ...] = ()
    if work.kind in FUSIBLE or work.kind == REDUCTION:
        loop = max((ref.shape for ref in (*op.outputs, *op.inputs())), key=math.prod, default=())
    return Node(work.kind, op.phase, loop, traffic(op, work, formula))


def _kernel(
    trace: Trace,
    members: list[int],
    works: list[Work],
    moved: list[Traffic],
    roles: list[str],
    conventions: Conventions,
    shares: Mapping[int, Fraction],
) -> Kernel:
    parts = []
    for index in members:
        op = trace.ops[index]
        cost = _cost(op, works[index], moved[index], roles, conventions, shares) * op.times
        parts.append(Part(index, trace.module_of(op), works[index].confidence, cost))
    first = trace.ops[members[0]]
    packets = list(dict.fromkeys(trace.ops[i].overload_packet.split(".", 1)[-1] for i in members))
    name = packets[0] if len(packets) == 1 else f"fused({'+'.join(packets)})"
    return Kernel(
        name,
        works[members[0]].kind,
        first.phase,
        first.times,  # each launch starts with its first op, also where a fold's edge crosses it
        tuple(parts),
        parts[0].cost if len(parts) == 1 else Cost.sum(part.cost for part in parts),
    )


def _cost(
    op: Op, work: Work, moved: Traffic, roles: list[str], conventions: Conventions,
    shares: Mapping[int, Fraction],
) -> Cost:  # fmt: skip
    if work.kind == COLLECTIVE:
        return Cost(messages={work.group: work.message})
    precision = work.precision
    if work.flops or work.recompute:
        if precision is None:
            precision = next(op.inputs()).dtype
        precision = PRECISIONS.get(precision, precision)
        flops = {precision: work.flops} if work.flops else {}
        recompute = {precision: work.recompute} if work.recompute else {}
    else:
        flops, recompute = {}, {}
    read: dict[str, int] = {}
    write: dict[str, int] = {}
    for side, items in ((read, moved.reads), (write, moved.writes)):
        for storage, nbytes, _ in items:
            role = roles[storage]
            counted = round(nbytes * shares[storage]) if storage in shares else nbytes
            side[role] = side.get(role, 0) + _assumed(counted, role, conventions)
    return Cost(flops, work.vector, recompute, read, write)


def _assumed(nbytes: int, role: str, conventions: Conventions) -> int:
    if role == "weights" and conventions.weight_residency != 1:
        return round(nbytes / conventions.weight_residency)
    if role in ("activations", "temporary") and conventions.activation_fusion != 1:
        return round(nbytes * conventions.activation_fusion)
    return nbytes
