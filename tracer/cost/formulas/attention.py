"""Fused attention: scores and weighted values without a score matrix in memory.

A pair of one query and one key costs 2·D_qk + 2·D_v matrix FLOPs in the forward. The backward is
counted as twice that, as published figures do; the scores that flash kernels compute again are
`recompute`, real work that no published count includes. q, k, v and the output move once: a kernel
that keeps a tile of queries in registers reads keys again, mostly from L2.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import Env, cost
from ..work import ATTENTION, ESTIMATED, Work

Out = tuple[TensorRef, ...]

SOFTMAX_FLOPS = 5  # max, subtract, exponential, sum, divide: vector FLOPs a score
SOFTMAX_BACKWARD_FLOPS = 4  # exponential again, dP - sum(dP·P), times P


def causal_pairs(queries: int, keys: int) -> int:
    """Pairs under a top-left aligned causal mask, torch's: query i sees keys 0..i.

    S(S+1)/2 for a square; later queries of a tall one see every key.
    """
    square = min(queries, keys)
    return square * (square + 1) // 2 + (queries - square) * keys


def window_pairs(queries: int, keys: int, window: int) -> int:
    """Causal pairs in which a query sees its own key and at most `window` before it."""
    width = window + 1
    if width >= keys:
        return causal_pairs(queries, keys)
    # The first `width` queries see one key more each, the others `width`.
    ramp = min(queries, width)
    return ramp * (ramp + 1) // 2 + max(queries - width, 0) * width


def attention_pairs(
    query: TensorRef, key: TensorRef, is_causal: bool, env: Env, window: int | None = None
) -> int:
    """(query, key) pairs over batch and query heads; shapes [B, H, S, D]."""
    *batch, queries, _ = query.shape
    keys = key.shape[-2]
    if is_causal and env.conventions.causal == "pairs":
        pairs = causal_pairs(queries, keys)
        if window is not None and window >= 0:
            pairs = window_pairs(queries, keys, window)
    else:
        pairs = queries * keys
    for size in batch:
        pairs *= size
    return pairs


def forward_work(
    q: TensorRef, k: TensorRef, v: TensorRef, is_causal: bool, env: Env, window: int | None = None
) -> Work:
    """Work of a fused forward over q [B,H,S,D], k [B,Hk,L,D], v [B,Hk,L,Dv]."""
    pairs = attention_pairs(q, k, is_causal, env, window)
    return Work(
        2 * pairs * (q.shape[-1] + v.shape[-1]), vector=SOFTMAX_FLOPS * pairs, kind=ATTENTION
    )


def backward_work(
    q: TensorRef, k: TensorRef, v: TensorRef, is_causal: bool, env: Env, window: int | None = None
) -> Work:
    """Work of a fused backward: dQ, dK (D each), dP, dV (Dv each), and the scores again."""
    pairs = attention_pairs(q, k, is_causal, env, window)
    return Work(
        4 * pairs * (q.shape[-1] + v.shape[-1]),
        vector=(SOFTMAX_BACKWARD_FLOPS + 1) * pairs,
        recompute=2 * pairs * q.shape[-1],
        precision=q.dtype,
        kind=ATTENTION,
    )


@cost("aten::_scaled_dot_product_flash_attention")
def flash(
    query: TensorRef, key: TensorRef, value: TensorRef, dropout_p: float = 0.0,
    is_causal: bool = False, return_debug_mask: bool = False, *, scale: Any = None, out: Out,
    env: Env,
) -> Work:  # fmt: skip
    """FlashAttention forward."""
    return forward_work(query, key, value, is_causal, env)


@cost("aten::_scaled_dot_product_flash_attention_for_cpu")
def flash_cpu(
    query: TensorRef, key: TensorRef, value: TensorRef, dropout_p: float = 0.0,
    is_causal: bool = False, *, attn_mask: Any = None, scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """The CPU's flash forward."""
    return forward_work(query, key, value, is_causal, env)


@cost(
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
)
def biased(
    query: TensorRef, key: TensorRef, value: TensorRef, attn_bias: Any = None,
    compute_log_sumexp: Any = False, dropout_p: float = 0.0, is_causal: bool = False,
    return_debug_mask: bool = False, *, scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """Memory-efficient and cuDNN forward, which take a bias."""
    return forward_work(query, key, value, is_causal, env)


@cost("aten::_scaled_dot_product_flash_attention_backward")
def flash_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef,
    logsumexp: Any, cum_seq_q: Any, cum_seq_k: Any, max_q: Any, max_k: Any, dropout_p: float,
    is_causal: bool, philox_seed: Any = None, philox_offset: Any = None, *, scale: Any = None,
    out: Out, env: Env,
) -> Work:  # fmt: skip
    """FlashAttention backward."""
    return backward_work(query, key, value, is_causal, env)


@cost("aten::_scaled_dot_product_flash_attention_for_cpu_backward")
def flash_cpu_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef,
    logsumexp: Any, dropout_p: float, is_causal: bool, *, attn_mask: Any = None, scale: Any = None,
    out: Out, env: Env,
) -> Work:  # fmt: skip
    """The CPU's flash backward."""
    return backward_work(query, key, value, is_causal, env)


@cost("aten::_scaled_dot_product_efficient_attention_backward")
def efficient_backward(
    grad_out_: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, attn_bias: Any,
    output: TensorRef, logsumexp: Any, philox_seed: Any, philox_offset: Any, dropout_p: float,
    grad_input_mask: Any, is_causal: bool = False, *, scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """Memory-efficient backward."""
    return backward_work(query, key, value, is_causal, env)


@cost("aten::_scaled_dot_product_cudnn_attention_backward")
def cudnn_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef,
    logsumexp: Any, philox_seed: Any, philox_offset: Any, attn_bias: Any, cum_seq_q: Any,
    cum_seq_k: Any, max_q: Any, max_k: Any, dropout_p: float, is_causal: bool, *,
    scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """CuDNN backward."""
    return backward_work(query, key, value, is_causal, env)


def _heads_first(ref: TensorRef) -> TensorRef:
    """[B, S, H, D] seen as [B, H, S, D]."""
    b, s, h, d = ref.shape
    sb, ss, sh, sd = ref.stride
    return ref._replace(shape=(b, h, s, d), stride=(sb, sh, ss, sd))


@cost("aten::_flash_attention_forward")
def flash_forward(
    query: TensorRef, key: TensorRef, value: TensorRef, cum_seq_q: Any, cum_seq_k: Any, max_q: int,
    max_k: int, dropout_p: float, is_causal: bool, return_debug_mask: bool, *, scale: Any = None,
    window_size_left: int | None = None, window_size_right: int | None = None, out: Out, env: Env,
    **_: Any,
) -> Work:  # fmt: skip
    """The flash kernel itself, [B, S, H, D], with an optional window."""
    if cum_seq_q is not None:
        return _packed(query, value, max_k, is_causal, env)
    q, k, v = (_heads_first(ref) for ref in (query, key, value))
    return forward_work(q, k, v, is_causal, env, window_size_left)


@cost("aten::_flash_attention_backward")
def flash_kernel_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef,
    logsumexp: Any, cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int, dropout_p: float,
    is_causal: bool, rng_state: Any = None, unused: Any = None, *, scale: Any = None,
    window_size_left: int | None = None, window_size_right: int | None = None, out: Out, env: Env,
    **_: Any,
) -> Work:  # fmt: skip
    """Backward of the flash kernel."""
    if cum_seq_q is not None and len(query.shape) == 3:
        forward = _packed(query, value, max_k, is_causal, env)
        return forward._replace(
            flops=2 * forward.flops,
            recompute=forward.flops * query.shape[-1] // (query.shape[-1] + value.shape[-1]),
        )
    q, k, v = (_heads_first(ref) for ref in (query, key, value))
    return backward_work(q, k, v, is_causal, env, window_size_left)


def _packed(query: TensorRef, value: TensorRef, max_k: int, is_causal: bool, env: Env) -> Work:
    """Sequences packed to [T, H, D]: their lengths are data, the longest is taken for all."""
    tokens, heads, size = query.shape
    halved = is_causal and env.conventions.causal == "pairs"
    pairs = heads * tokens * (max_k + 1) // 2 if halved else heads * tokens * max_k
    return Work(
        2 * pairs * (size + value.shape[-1]),
        vector=SOFTMAX_FLOPS * pairs,
        kind=ATTENTION,
        confidence=ESTIMATED,
    )
