"""Grouped matmuls: many experts in one kernel, reading only the experts that got tokens.

Four layouts, told apart by ranks. Which experts were hit is data: the number of distinct ones
follows the routing convention, with the top-k that the dataflow shows.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..conventions import distinct_experts
from ..registry import Env, cost
from ..work import ESTIMATED, GROUPED_GEMM, Work
from .common import Out, given, multiply_add
from .scaled import packed, scale_steps


@cost("aten::_grouped_mm")
def grouped_mm(
    self: TensorRef, mat2: TensorRef, offs: TensorRef | None = None, bias: TensorRef | None = None,
    out_dtype: Any = None, *, out: Out, env: Env,
) -> Work:  # fmt: skip
    """2 FLOPs for every row and every weight of its expert.

    Rows [R, K] @ experts [E, K, N], experts [E, M, K] @ columns [K, R], a batch [E, M, K] @
    [E, K, N], or weight gradients [M, R] @ [R, N] -> [E, M, N], every row once.

    Bytes: of the weights, the distinct experts hit: E(1-(1-k/E)^T) under uniform routing.
    Estimated: routing decides which experts are read.
    """
    work = grouped_product(self, mat2, out[0], env, "self", "mat2")
    return work._replace(vector=given(bias) * out[0].numel)


@cost("tracer::grouped_mm_head")
def grouped_mm_head(
    x: TensorRef, w: TensorRef, offs: TensorRef, rows: int, *, out: Out, env: Env
) -> Work:  # fmt: skip
    """`_grouped_mm` of the first `rows` of R rows: offsets end there, and the kernel stops.

    The others went to experts of other ranks, which hold as many: E·R/rows in all.

    Bytes: the rows in front, and of the weights the distinct experts hit by R/k tokens.
    Estimated: routing decides how many rows come and which experts are read.
    """
    every, k = x.shape
    held = w.shape[0]
    top_k = env.top_k or 1
    share = rows / every if every else 1.0
    experts = round(held / share) if rows else held
    hit = distinct_experts(env.conventions.routing, experts, top_k, every // top_k) * share
    read = {"x": rows * k * x.itemsize, "w": round(min(hit, held) * (w.nbytes // held))}
    columns = out[0].shape[1]
    write: dict[str | int, int] = {0: rows * columns * out[0].itemsize}
    return Work(
        multiply_add(x) * rows * columns * k, kind=GROUPED_GEMM, read=read, write=write,
        confidence=ESTIMATED,
    )  # fmt: skip


@cost("aten::_scaled_grouped_mm")
def scaled_grouped_mm(
    self: TensorRef, mat2: TensorRef, scale_a: TensorRef, scale_b: TensorRef,
    offs: TensorRef | None = None, bias: TensorRef | None = None,
    scale_result: TensorRef | None = None, out_dtype: Any = None, use_fast_accum: bool = False,
    *, out: Out, env: Env,
) -> Work:  # fmt: skip
    """`_grouped_mm` of scaled operands, with the scales' vector work of `_scaled_mm`.

    Bytes: of the weights, the distinct experts hit.
    Estimated: routing decides which experts are read.
    """
    return _scaled(self, mat2, scale_a, bias, out[0], env)


@cost("aten::_scaled_grouped_mm_v2")
def scaled_grouped_mm_v2(
    self: TensorRef, mat2: TensorRef, scale_a: Any, recipe_a: Any, swizzle_a: Any, scale_b: Any,
    recipe_b: Any, swizzle_b: Any, offs: TensorRef | None = None, bias: TensorRef | None = None,
    out_dtype: Any = None, contraction_dim: Any = (), use_fast_accum: bool = False,
    *, out: Out, env: Env,
) -> Work:  # fmt: skip
    """`_grouped_mm` of scaled operands, with the scales' vector work of `_scaled_mm`.

    Bytes: of the weights, the distinct experts hit.
    Estimated: routing decides which experts are read.
    """
    return _scaled(self, mat2, scale_a[0], bias, out[0], env)


def _scaled(
    self: TensorRef, mat2: TensorRef, scale: TensorRef, bias: Any, y: TensorRef, env: Env
) -> Work:
    work = grouped_product(self, mat2, y, env, "self", "mat2")
    rows = self.numel // self.shape[-1] if self.shape[-1] else 0
    steps = scale_steps(scale, rows) + given(bias)
    return work._replace(flops=work.flops * packed(self), vector=steps * y.numel)


def grouped_product(
    a: TensorRef, b: TensorRef, y: TensorRef, env: Env, name_a: str, name_b: str
) -> Work:
    """The four layouts of a @ b = y; `name_a` and `name_b` are the arguments that hold them."""
    ranks = (len(a.shape), len(b.shape))
    if ranks == (2, 3):
        return expert_product(a, y, b, env, name_b)
    mac = multiply_add(a)
    if ranks == (3, 2):  # the mirror image: every column of b belongs to one expert of a
        _, m, k = a.shape
        columns = b.shape[1]
        read = {name_a: round(experts_read(columns, a, env) * (a.nbytes // a.shape[0]))}
        return Work(mac * m * k * columns, kind=GROUPED_GEMM, read=read, confidence=ESTIMATED)
    if ranks == (3, 3):
        return Work(mac * y.numel * a.shape[-1], kind=GROUPED_GEMM)
    return Work(mac * a.shape[0] * a.shape[1] * b.shape[1], kind=GROUPED_GEMM)


def expert_product(x: TensorRef, y: TensorRef, experts: TensorRef, env: Env, name: str) -> Work:
    """X [R, K] to y [R, N]: 2·R·K·N FLOPs, and the weights of the experts that are hit.

    `experts` is the stack [E, ..., ...] and `name` the argument that holds it.
    """
    hit = experts_read(x.shape[0], experts, env)
    return Work(
        multiply_add(x) * y.numel * x.shape[1],
        kind=GROUPED_GEMM,
        read={name: round(hit * (experts.nbytes // experts.shape[0]))},
        confidence=ESTIMATED,
    )


def experts_read(rows: int, experts: TensorRef, env: Env) -> float:
    """Distinct experts among `rows` (token, expert) pairs, T·k of them."""
    count = experts.shape[0]
    # Without a top-k in the dataflow each row is taken as a token that chose one expert.
    top_k = min(env.top_k or 1, count)
    return distinct_experts(env.conventions.routing, count, top_k, rows // top_k)
