"""Grouped matmuls: many experts in one kernel, reading only the experts that got tokens."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..conventions import distinct_experts
from ..registry import Env, cost
from ..work import ESTIMATED, GROUPED_GEMM, Work

Out = tuple[TensorRef, ...]


@cost("aten::_grouped_mm", "aten::_scaled_grouped_mm", "aten::_scaled_grouped_mm_v2")
def grouped_mm(self: TensorRef, mat2: TensorRef, *_: Any, out: Out, env: Env, **__: Any) -> Work:
    """Rows of `self` [R, K] times the expert they belong to, `mat2` [E, K, N].

    The other layouts: [E, M, K] @ [E, K, N] is a batched product, [K, R] @ [R, N] with offsets over
    R (a weight gradient) yields [E, K, N] and does 2·R·K·N, every row once.
    """
    rows_by_experts = len(self.shape) == 2 and len(mat2.shape) == 3
    if len(self.shape) == 3 and len(mat2.shape) == 3:
        return Work(2 * out[0].numel * self.shape[-1], kind=GROUPED_GEMM)
    if len(self.shape) == 2 and len(mat2.shape) == 2:
        return Work(2 * self.shape[0] * self.shape[1] * mat2.shape[1], kind=GROUPED_GEMM)
    if not rows_by_experts:  # [E, M, K] @ [K, R]: every column belongs to one expert
        return Work(2 * self.shape[1] * self.shape[2] * mat2.shape[1], kind=GROUPED_GEMM)
    return expert_product(self, out[0], mat2, env, "mat2")


def expert_product(x: TensorRef, y: TensorRef, experts: TensorRef, env: Env, name: str) -> Work:
    """X [R, K] to y [R, N]: 2·R·K·N FLOPs, and the weights of the experts that are hit.

    `experts` is the stack [E, ..., ...] and `name` the argument that holds it.
    """
    share = experts_read(x.shape[0], experts, env) / experts.shape[0]
    return Work(
        2 * y.numel * x.shape[1],
        kind=GROUPED_GEMM,
        read={name: round(share * experts.nbytes)},
        confidence=ESTIMATED,
    )


def experts_read(rows: int, experts: TensorRef, env: Env) -> float:
    """Distinct experts among `rows` (token, expert) pairs, T·k of them."""
    count = experts.shape[0]
    # Without a top-k in the dataflow each row is taken as a token that chose one expert.
    top_k = min(env.top_k or 1, count)
    return distinct_experts(env.conventions.routing, count, top_k, rows // top_k)
