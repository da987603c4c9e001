"""The attention kernels behind SDPA, called directly by packed-sequence and paged code.

[B, S, H, D] here, or [T, H, D] with the sequences packed and their ends in `cum_seq`. The flash
kernels align a causal mask bottom-right: the last query sees every key.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import Env, cost
from ..work import ESTIMATED, EXACT, Work
from .attention import backward_from_pairs, forward_from_pairs
from .common import Out, product
from .pairs import CAUSAL, DENSE, Mask, count_pairs, in_force, packed_pairs, window_mask

_TOP_LEFT, _BOTTOM_RIGHT = 1, 2  # custom_mask_type of the memory-efficient kernel


def _kernel_pairs(
    query: TensorRef, key: TensorRef, ends: TensorRef | None, max_q: Any, max_k: Any, mask: Mask,
    env: Env, heads_first: bool = False,
) -> tuple[int, str]:  # fmt: skip
    """Pairs over heads and sequences, and whether lengths had to be assumed."""
    if ends is None:
        where = -2 if heads_first else -3
        batch = product(query.shape) // (query.shape[where] * query.shape[-1])
        return batch * count_pairs(query.shape[where], key.shape[where], in_force(mask, env)), EXACT
    heads = query.shape[-2]
    sequences = ends.shape[0] - 1
    tokens_q = product(query.shape[:-2])
    tokens_k = product(key.shape[:-2])
    full = tokens_q == sequences * max_q and tokens_k == sequences * max_k
    pairs = heads * packed_pairs(tokens_q, tokens_k, sequences, mask, env)
    return pairs, EXACT if full else ESTIMATED


def packed_forward(
    query: TensorRef, key: TensorRef, value: TensorRef, ends: Any, max_q: int, max_k: int,
    dropout_p: float, mask: Mask, env: Env, block_table: Any = None, seqused_k: Any = None,
) -> Work:  # fmt: skip
    """A forward of dense, packed or paged sequences."""
    size_qk, size_v = query.shape[-1], value.shape[-1]
    if block_table is not None:  # a paged cache: pages are [block, H, D], a row of ids a sequence
        sequences = block_table.shape[0]
        queries = max_q if ends is not None else query.shape[1]
        pairs = query.shape[-2] * sequences * count_pairs(queries, max_k, in_force(mask, env))
        tokens = sequences * max_k * key.shape[-2]
        pages = {
            "key": tokens * size_qk * key.itemsize,
            "value": tokens * size_v * value.itemsize,
        }
        work = forward_from_pairs(pairs, size_qk, size_v, dropout_p=dropout_p)
        return work._replace(read=pages, confidence=ESTIMATED)
    pairs, confidence = _kernel_pairs(query, key, ends, max_q, max_k, mask, env)
    if seqused_k is not None:
        confidence = ESTIMATED  # the keys in use are data: all of them are taken
    work = forward_from_pairs(pairs, size_qk, size_v, dropout_p=dropout_p)
    return work._replace(confidence=confidence)


def packed_backward(
    query: TensorRef, key: TensorRef, value: TensorRef, ends: Any, max_q: int, max_k: int,
    dropout_p: float, mask: Mask, env: Env,
) -> Work:  # fmt: skip
    """A backward of dense or packed sequences."""
    pairs, confidence = _kernel_pairs(query, key, ends, max_q, max_k, mask, env)
    work = backward_from_pairs(pairs, query, value.shape[-1], dropout_p=dropout_p)
    return work._replace(confidence=confidence)


@cost("aten::_flash_attention_forward")
def flash_forward(
    query: TensorRef, key: TensorRef, value: TensorRef, cum_seq_q: Any, cum_seq_k: Any, max_q: int,
    max_k: int, dropout_p: float, is_causal: bool, return_debug_mask: bool, *, scale: Any = None,
    window_size_left: int | None = None, window_size_right: int | None = None,
    seqused_k: Any = None, alibi_slopes: Any = None, block_table: Any = None,
    num_splits: int | None = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """2·(D + Dv) a pair inside of the bottom-right aligned causal mask and window.

    Bytes: of a paged cache, max_k keys and values a sequence.
    Estimated: packed sequences of unknown lengths are taken as equal, paged ones as max_k long.
    """
    mask = window_mask(is_causal, window_size_left, window_size_right)
    return packed_forward(
        query, key, value, cum_seq_q, max_q, max_k, dropout_p, mask, env, block_table, seqused_k
    )


@cost("aten::_flash_attention_forward.quantized")
def flash_forward_quantized(
    query: TensorRef, key: TensorRef, value: TensorRef, cum_seq_q: Any, cum_seq_k: Any, max_q: int,
    max_k: int, dropout_p: float, is_causal: bool, return_debug_mask: bool, q_descale: Any,
    k_descale: Any, v_descale: Any, *, scale: Any = None, window_size_left: int | None = None,
    window_size_right: int | None = None, seqused_k: Any = None, alibi_slopes: Any = None,
    out: Out, env: Env,
) -> Work:  # fmt: skip
    """As `_flash_attention_forward`, at the rate of the FP8 operands.

    Estimated: packed sequences of unknown lengths are taken as equal.
    """
    mask = window_mask(is_causal, window_size_left, window_size_right)
    return packed_forward(
        query, key, value, cum_seq_q, max_q, max_k, dropout_p, mask, env, None, seqused_k
    )


@cost("aten::_flash_attention_forward_no_dropout_inplace")
def flash_forward_inplace(
    output: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, cum_seq_q: Any,
    cum_seq_k: Any, max_q: int, max_k: int, dropout_p: float, is_causal: bool,
    return_debug_mask: bool, *, scale: Any = None, window_size_left: int | None = None,
    window_size_right: int | None = None, seqused_k: Any = None, alibi_slopes: Any = None,
    block_table: Any = None, num_splits: int | None = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """As `_flash_attention_forward`, into a given output.

    Bytes: the output is written, not read.
    Estimated: packed sequences of unknown lengths are taken as equal, paged ones as max_k long.
    """
    mask = window_mask(is_causal, window_size_left, window_size_right)
    work = packed_forward(
        query, key, value, cum_seq_q, max_q, max_k, 0.0, mask, env, block_table, seqused_k
    )
    return work._replace(read={**(work.read or {}), "output": 0}, precision=query.dtype)


@cost("aten::_flash_attention_backward")
def flash_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef,
    logsumexp: Any, cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int, dropout_p: float,
    is_causal: bool, rng_state: Any, unused: Any, *, scale: Any = None,
    window_size_left: int | None = None, window_size_right: int | None = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """4·(D + Dv) a pair, and 2·D of recompute.

    Estimated: packed sequences of unknown lengths are taken as equal.
    """
    mask = window_mask(is_causal, window_size_left, window_size_right)
    return packed_backward(query, key, value, cum_seq_q, max_q, max_k, dropout_p, mask, env)


def _efficient_mask(custom_mask_type: int, window_size: int | None) -> Mask:
    if custom_mask_type not in (_TOP_LEFT, _BOTTOM_RIGHT):
        return DENSE
    # Its window counts the query's own key, flash's counts the keys before it.
    left = window_size - 1 if window_size is not None and window_size > 0 else None
    return CAUSAL._replace(left=left, bottom_right=custom_mask_type == _BOTTOM_RIGHT)


@cost("aten::_efficient_attention_forward")
def efficient_forward(
    query: TensorRef, key: TensorRef, value: TensorRef, bias: Any, cu_seqlens_q: Any,
    cu_seqlens_k: Any, max_seqlen_q: int | None, max_seqlen_k: int | None, dropout_p: float,
    custom_mask_type: int, compute_log_sumexp: bool = False, *, scale: Any = None,
    seqlen_k: Any = None, window_size: int | None = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """2·(D + Dv) a pair; mask type 1 is causal top-left, 2 causal bottom-right.

    Estimated: packed sequences of unknown lengths are taken as equal.
    """
    mask = _efficient_mask(custom_mask_type, window_size)
    pairs, confidence = _kernel_pairs(
        query, key, cu_seqlens_q, max_seqlen_q, max_seqlen_k, mask, env
    )
    work = forward_from_pairs(
        pairs, query.shape[-1], value.shape[-1], bias=bias, dropout_p=dropout_p
    )
    return work._replace(confidence=confidence if seqlen_k is None else ESTIMATED)


@cost("aten::_efficient_attention_backward")
def efficient_backward(
    grad_out_: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, bias: Any,
    output: TensorRef, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    logsumexp: Any, dropout_p: float, philox_seed: Any, philox_offset: Any, custom_mask_type: int,
    bias_requires_grad: bool, *, scale: Any = None, num_splits_key: int | None = None,
    window_size: int | None = None, shared_storage_dqdkdv: bool = False, out: Out, env: Env,
) -> Work:  # fmt: skip
    """4·(D + Dv) a pair, and 2·D of recompute.

    Estimated: packed sequences of unknown lengths are taken as equal.
    """
    mask = _efficient_mask(custom_mask_type, window_size)
    pairs, confidence = _kernel_pairs(
        query, key, cu_seqlens_q, max_seqlen_q, max_seqlen_k, mask, env
    )
    work = backward_from_pairs(pairs, query, value.shape[-1], bias=bias, dropout_p=dropout_p)
    return work._replace(confidence=confidence)


@cost("aten::_cudnn_attention_forward")
def cudnn_forward(
    query: TensorRef, key: TensorRef, value: TensorRef, attn_bias: Any, cum_seq_q: Any,
    cum_seq_k: Any, max_q: int, max_k: int, compute_log_sumexp: bool, dropout_p: float = 0.0,
    is_causal: bool = False, return_debug_mask: bool = False, *, scale: Any = None, out: Out,
    env: Env,
) -> Work:  # fmt: skip
    """2·(D + Dv) a pair; [B, H, S, D], or packed [T, H, D].

    Estimated: packed sequences of unknown lengths are taken as equal.
    """
    mask = CAUSAL if is_causal else DENSE
    pairs, confidence = _kernel_pairs(query, key, cum_seq_q, max_q, max_k, mask, env, True)
    work = forward_from_pairs(
        pairs, query.shape[-1], value.shape[-1], bias=attn_bias, dropout_p=dropout_p
    )
    return work._replace(confidence=confidence)


@cost("aten::_cudnn_attention_backward")
def cudnn_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef,
    logsumexp: Any, philox_seed: Any, philox_offset: Any, attn_bias: Any, cum_seq_q: Any,
    cum_seq_k: Any, max_q: int, max_k: int, dropout_p: float, is_causal: bool, *,
    scale: Any = None, out: Out, env: Env,
) -> Work:  # fmt: skip
    """4·(D + Dv) a pair, and 2·D of recompute.

    Estimated: packed sequences of unknown lengths are taken as equal.
    """
    mask = CAUSAL if is_causal else DENSE
    pairs, confidence = _kernel_pairs(query, key, cum_seq_q, max_q, max_k, mask, env, True)
    work = backward_from_pairs(pairs, query, value.shape[-1], bias=attn_bias, dropout_p=dropout_p)
    return work._replace(confidence=confidence)
