"""The reference model's own ops, `deepseek::*`: block-scaled FP8 products per expert."""

from __future__ import annotations

from ...capture.records import TensorRef
from ..registry import Env, cost
from ..work import GROUPED_GEMM, Work
from .common import Out
from .grouped import expert_product, experts_read, grouped_product

_TILE = 128  # a scale serves so many elements of K: one vector multiply-add a tile and output


@cost("deepseek::grouped_mm")
def half_precision(x: TensorRef, w: TensorRef, offs: TensorRef, *, out: Out, env: Env) -> Work:
    """`_grouped_mm` for FP16 and FP32.

    Bytes: of the weights, the distinct experts hit.
    Estimated: routing decides which experts are read.
    """
    return grouped_product(x, w, out[0], env, "x", "w")


@cost("deepseek::grouped_mm_fp8_block")
def fp8_block(
    x_fp8: TensorRef, x_scale: TensorRef, w_fp8: TensorRef, w_scale: TensorRef, offs: TensorRef,
    *, out: Out, env: Env,
) -> Work:  # fmt: skip
    """Rows [R, K] times their expert of [E, N, K]; a vector multiply-add a block of 128 of K.

    Bytes: of the weights and their scales, the distinct experts hit.
    Estimated: routing decides which experts are read.
    """
    rows, k = x_fp8.shape
    work = expert_product(x_fp8, out[0], w_fp8, env, "w_fp8")
    hit = experts_read(rows, w_fp8, env)
    read = {**(work.read or {}), "w_scale": round(hit * (w_scale.nbytes // w_fp8.shape[0]))}
    return work._replace(read=read, vector=2 * out[0].numel * -(-k // _TILE))


@cost("deepseek::grouped_wgrad_fp8_block")
def fp8_wgrad(
    dy_fp8: TensorRef, dy_scale: TensorRef, x_fp8: TensorRef, x_scale: TensorRef, offs: TensorRef,
    *, out: Out,
) -> Work:  # fmt: skip
    """[N, R] times [R, K], each row for one expert; a vector multiply-add a block of 128 rows.

    Bytes: every expert's gradient is written.
    """
    n, rows = dy_fp8.shape
    k = x_fp8.shape[0]
    return Work(2 * rows * n * k, vector=2 * n * k * -(-rows // _TILE), kind=GROUPED_GEMM)
