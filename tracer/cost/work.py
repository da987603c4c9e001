"""What one op does, as its formula states it, and what any set of ops costs.

A *formula* looks at one op's arguments and returns `Work`. Pricing turns work and traffic into a
`Cost`, a small frozen value that adds and scales: a module, a layer, a phase, a plan is a sum, and
58 MoE layers are `58 * one`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

ROLES = ("weights", "activations", "kv", "temporary", "gradients", "optimizer")

# Kinds of kernels. They decide what may be fused and, later, which time model applies.
GEMM, GROUPED_GEMM, CONV, ATTENTION = "gemm", "grouped_gemm", "conv", "attention"
POINTWISE, ROW, REDUCTION = "pointwise", "row", "reduction"
COPY, GATHER, SORT, OPTIMIZER, COLLECTIVE = "copy", "gather", "sort", "optimizer", "collective"
FREE, UNKNOWN, OTHER = "free", "unknown", "other"

# How far a number is to be trusted.
EXACT, ESTIMATED, UNMODELLED = "exact", "estimated", "unmodelled"


class Work(NamedTuple):
    """One execution of one op.

    Attributes:
        flops: FLOPs of matrix products and convolutions as published figures count them; one
            fused multiply-add is 2.
        vector: elementwise, softmax, norm and reduction FLOPs.
        recompute: matrix FLOPs that the kernel repeats and published counts leave out (flash
            attention computes the scores again in its backward).
        precision: of the matrix FLOPs: "bf16", "fp8", ...; None takes the first operand's.
        kind: the class of kernel.
        read: bytes really read, by argument name, where they are not the whole tensor; the name
            "*" stands for all arguments.
        write: bytes really written, by output position or by the name of a mutated argument, where
            they are not the whole tensor.
        confidence: EXACT, or ESTIMATED where data decide (sorts, routing).
        message: bytes of a collective's message, as `formulas/collectives.py` defines them.
        group: the name of its process group.
    """

    flops: int = 0
    vector: int = 0
    recompute: int = 0
    precision: str | None = None
    kind: str = OTHER
    read: Mapping[str, int] | None = None
    write: Mapping[int | str, int] | None = None
    confidence: str = EXACT
    message: int = 0
    group: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs by precision, bytes by role and messages by group; adds and scales.

    `flops` and `recompute_flops` map a precision to matrix FLOPs, `read` and `write` map a role to
    bytes, `messages` a process group to bytes of collectives; `vector_flops` is a number.
    """

    flops: Mapping[str, int] = field(default_factory=dict)
    vector_flops: int = 0
    recompute_flops: Mapping[str, int] = field(default_factory=dict)
    read: Mapping[str, int] = field(default_factory=dict)
    write: Mapping[str, int] = field(default_factory=dict)
    messages: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            _merge(self.flops, other.flops),
            self.vector_flops + other.vector_flops,
            _merge(self.recompute_flops, other.recompute_flops),
            _merge(self.read, other.read),
            _merge(self.write, other.write),
            _merge(self.messages, other.messages),
        )

    def __mul__(self, n: int) -> Cost:
        if n == 1:
            return self
        return Cost(
            {key: n * value for key, value in self.flops.items()},
            n * self.vector_flops,
            {key: n * value for key, value in self.recompute_flops.items()},
            {key: n * value for key, value in self.read.items()},
            {key: n * value for key, value in self.write.items()},
            {key: n * value for key, value in self.messages.items()},
        )

    __rmul__ = __mul__

    @property
    def total_flops(self) -> int:
        """Matrix FLOPs of all precisions, as published figures count them."""
        return sum(self.flops.values())

    @property
    def bytes_by_role(self) -> dict[str, int]:
        """Bytes read plus written, for every role, in the order of `ROLES`."""
        return {role: self.read.get(role, 0) + self.write.get(role, 0) for role in ROLES}

    @property
    def total_bytes(self) -> int:
        """Bytes read plus bytes written."""
        return sum(self.read.values()) + sum(self.write.values())

    @property
    def message_bytes(self) -> int:
        """Bytes of the messages of all collectives."""
        return sum(self.messages.values())

    @property
    def intensity(self) -> float:
        """Matrix FLOPs a byte of memory traffic."""
        return self.total_flops / self.total_bytes if self.total_bytes else 0.0

    @staticmethod
    def sum(costs: Iterable[Cost]) -> Cost:
        """The sum of many, without building each partial one."""
        flops: dict[str, int] = {}
        recompute: dict[str, int] = {}
        read: dict[str, int] = {}
        write: dict[str, int] = {}
        messages: dict[str, int] = {}
        vector = 0
        for cost in costs:
            vector += cost.vector_flops
            for total, part in (
                (flops, cost.flops),
                (recompute, cost.recompute_flops),
                (read, cost.read),
                (write, cost.write),
                (messages, cost.messages),
            ):
                for key, value in part.items():
                    total[key] = total.get(key, 0) + value
        return Cost(flops, vector, recompute, read, write, messages)


def _merge(a: Mapping[str, int], b: Mapping[str, int]) -> Mapping[str, int]:
    if not a:
        return b
    if not b:
        return a
    return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}
