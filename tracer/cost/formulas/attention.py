"""Fused attention: scores and weighted values without a score matrix in memory.

A pair of one query and one key costs 2·D_qk + 2·D_v matrix FLOPs in the forward. The backward is
counted as twice that, as published figures do; the scores that flash kernels compute again are
`recompute`, real work that no published count includes. Pairs count query heads: fewer key heads
(GQA) save bytes, not FLOPs. q, k, v and the output move once: a kernel that keeps a tile of queries
in registers reads keys again, mostly from L2.

Here are the ops that `scaled_dot_product_attention` picks from; the kernels behind them, with their
own layouts, are in `attention_kernels`.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import Env, cost
from ..work import ATTENTION, Work
from .common import Out, given
from .pairs import attention_pairs, causal_mask

SOFTMAX_FLOPS = 5  # max, subtract, exponential, sum, divide: vector FLOPs a score
SOFTMAX_BACKWARD_FLOPS = 5  # exponential again, dP - sum(dP·P), times P
DROPOUT_FLOPS = 2  # compare, scale


def forward_from_pairs(
    pairs: int, size_qk: int, size_v: int, *, bias: Any = None, dropout_p: float = 0.0
) -> Work:
    """A fused forward over so many pairs; a bias adds once to each score."""
    steps = SOFTMAX_FLOPS + given(bias) + DROPOUT_FLOPS * bool(dropout_p)
    return Work(2 * pairs * (size_qk + size_v), vector=steps * pairs, kind=ATTENTION)


def backward_from_pairs(
    pairs: int, q: TensorRef, size_v: int, *, bias: Any = None, dropout_p: float = 0.0
) -> Work:
    """A fused backward: dQ, dK (D each), dP, dV (Dv each), and the scores again."""
    steps = SOFTMAX_BACKWARD_FLOPS + given(bias) + DROPOUT_FLOPS * bool(dropout_p)
    size_qk = q.shape[-1]
    return Work(
        4 * pairs * (size_qk + size_v),
        vector=steps * pairs,
        recompute=2 * pairs * size_qk,
        precision=q.dtype,
        kind=ATTENTION,
    )


def _forward(
    q: TensorRef, k: TensorRef, v: TensorRef, is_causal: bool, env: Env, bias: Any, dropout_p: float
) -> Work:
    pairs = attention_pairs(q, k, causal_mask(is_causal), env)
    return forward_from_pairs(pairs, q.shape[-1], v.shape[-1], bias=bias, dropout_p=dropout_p)


def _backward(
    q: TensorRef, k: TensorRef, v: TensorRef, is_causal: bool, env: Env, bias: Any, dropout_p: float
) -> Work:
    pairs = attention_pairs(q, k, causal_mask(is_causal), env)
    return backward_from_pairs(pairs, q, v.shape[-1], bias=bias, dropout_p=dropout_p)


@cost("aten::_scaled_dot_product_flash_attention")
def flash(
    query: TensorRef, key: TensorRef, value: TensorRef, dropout_p: float = 0.0,
    is_causal: bool = False, return_debug_mask: bool = False, *, scale: Any = None, out: Out,
    env: Env,
) -> Work:  # fmt: skip
    """2·(D + Dv) a pair and query head; causal: S(S+1)/2 pairs."""
    return _forward(query, key, value, is_causal, env, None, dropout_p)


@cost("aten::_scaled_dot_product_flash_attention.quantized")
def flash_quantized(
    query: TensorRef, key: TensorRef, value: TensorRef, q_descale: Any, k_descale: Any,
    v_descale: Any, dropout_p: float = 0.0, is_causal: bool = False,
    return_debug_mask: bool = False, *, scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """2·(D + Dv) a pair at the rate of the FP8 operands."""
    return _forward(query, key, value, is_causal, env, None, dropout_p)


@cost("aten::_scaled_dot_product_flash_attention_for_cpu")
def flash_cpu(
    query: TensorRef, key: TensorRef, value: TensorRef, dropout_p: float = 0.0,
    is_causal: bool = False, *, attn_mask: Any = None, scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """2·(D + Dv) a pair; a mask adds once a score."""
    return _forward(query, key, value, is_causal, env, attn_mask, dropout_p)


@cost("aten::_scaled_dot_product_efficient_attention",
      "aten::_scaled_dot_product_cudnn_attention")  # fmt: skip
def efficient(
    query: TensorRef, key: TensorRef, value: TensorRef, attn_bias: Any,
    compute_log_sumexp: bool, dropout_p: float = 0.0, is_causal: bool = False,
    *return_debug_mask: bool, scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """2·(D + Dv) a pair; a bias adds once a score.

    Bytes: a bias that broadcasts over batch or heads is read once.
    """
    return _forward(query, key, value, is_causal, env, attn_bias, dropout_p)


@cost("aten::_scaled_dot_product_fused_attention_overrideable")
def overrideable(
    query: TensorRef, key: TensorRef, value: TensorRef, attn_bias: Any = None,
    dropout_p: float = 0.0, is_causal: bool = False, return_debug_mask: bool = False, *,
    scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """2·(D + Dv) a pair; a bias adds once a score."""
    return _forward(query, key, value, is_causal, env, attn_bias, dropout_p)


@cost("aten::_scaled_dot_product_attention_math_for_mps")
def math_for_mps(
    query: TensorRef, key: TensorRef, value: TensorRef, attn_mask: Any = None,
    dropout_p: float = 0.0, is_causal: bool = False, dropout_mask: Any = None, *,
    scale: Any = None, enable_gqa: bool = False, out: Out, env: Env,
) -> Work:  # fmt: skip
    """2·(D + Dv) for every pair: the math path masks, it does not skip."""
    return _forward(query, key, value, False, env, attn_mask, dropout_p)


@cost("aten::_scaled_dot_product_flash_attention_backward")
def flash_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef,
    logsumexp: Any, cum_seq_q: Any, cum_seq_k: Any, max_q: Any, max_k: Any, dropout_p: float,
    is_causal: bool, philox_seed: Any, philox_offset: Any, *, scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """4·(D + Dv) a pair, and 2·D of recompute."""
    return _backward(query, key, value, is_causal, env, None, dropout_p)


@cost("aten::_scaled_dot_product_flash_attention_for_cpu_backward")
def flash_cpu_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef,
    logsumexp: Any, dropout_p: float, is_causal: bool, *, attn_mask: Any = None, scale: Any = None,
    out: Out, env: Env,
) -> Work:  # fmt: skip
    """4·(D + Dv) a pair, and 2·D of recompute."""
    return _backward(query, key, value, is_causal, env, attn_mask, dropout_p)


@cost("aten::_scaled_dot_product_efficient_attention_backward")
def efficient_backward(
    grad_out_: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, attn_bias: Any,
    output: TensorRef, logsumexp: Any, philox_seed: Any, philox_offset: Any, dropout_p: float,
    grad_input_mask: Any, is_causal: bool = False, *, scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """4·(D + Dv) a pair, and 2·D of recompute."""
    return _backward(query, key, value, is_causal, env, attn_bias, dropout_p)


@cost("aten::_scaled_dot_product_cudnn_attention_backward")
def cudnn_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef,
    logsumexp: Any, philox_seed: Any, philox_offset: Any, attn_bias: Any, cum_seq_q: Any,
    cum_seq_k: Any, max_q: Any, max_k: Any, dropout_p: float, is_causal: bool, *,
    scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """4·(D + Dv) a pair, and 2·D of recompute."""
    return _backward(query, key, value, is_causal, env, attn_bias, dropout_p)


@cost("aten::_scaled_dot_product_fused_attention_overrideable_backward")
def overrideable_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, attn_bias: Any,
    grad_input_mask: Any, output: TensorRef, logsumexp: Any, cum_seq_q: Any, cum_seq_k: Any,
    max_q: Any, max_k: Any, dropout_p: float, is_causal: bool, philox_seed: Any,
    philox_offset: Any, *, scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """4·(D + Dv) a pair, and 2·D of recompute."""
    return _backward(query, key, value, is_causal, env, attn_bias, dropout_p)
