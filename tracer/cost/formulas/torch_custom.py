"""Custom ops that torch itself ships outside of aten: packed attention, a chunked output head.

They reach the recorder whole, as anybody's custom op does.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import Env, cost
from ..work import ESTIMATED, GEMM, Work
from .attention_kernels import packed_backward, packed_forward
from .common import Out, given
from .pairs import Mask, window_mask

_NO_WINDOW = (-1, -1)
_LOGIT_FLOPS = 4  # max, subtract, exponential, add


def _mask(is_causal: bool, window_size: Any) -> Mask:
    left, right = window_size or _NO_WINDOW
    return window_mask(is_causal, left, right)


@cost("torch_attn::_varlen_attn")
def varlen_attn(
    query: TensorRef, key: TensorRef, value: TensorRef, cu_seq_q: TensorRef,
    cu_seq_k: TensorRef | None, max_q: int, max_k: int, is_causal: bool = False, scale: Any = None,
    window_size: Any = None, enable_gqa: bool = False, seqused_k: Any = None,
    block_table: Any = None, num_splits: int | None = None, *, out: Out, env: Env,
) -> Work:  # fmt: skip
    """As `_flash_attention_forward`.

    Bytes: of a paged cache, max_k keys and values a sequence.
    Estimated: packed sequences of unknown lengths are taken as equal, paged ones as max_k long.
    """
    mask = _mask(is_causal, window_size)
    return packed_forward(
        query, key, value, cu_seq_q, max_q, max_k, 0.0, mask, env, block_table, seqused_k
    )


@cost("torch_attn::_varlen_attn_out")
def varlen_attn_out(
    output: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, cu_seq_q: TensorRef,
    cu_seq_k: TensorRef | None, max_q: int, max_k: int, is_causal: bool = False, scale: Any = None,
    window_size: Any = None, enable_gqa: bool = False, seqused_k: Any = None,
    block_table: Any = None, num_splits: int | None = None, *, out: Out, env: Env,
) -> Work:  # fmt: skip
    """As `_flash_attention_forward`, into a given output.

    Bytes: the output is written, not read.
    Estimated: packed sequences of unknown lengths are taken as equal, paged ones as max_k long.
    """
    mask = _mask(is_causal, window_size)
    work = packed_forward(
        query, key, value, cu_seq_q, max_q, max_k, 0.0, mask, env, block_table, seqused_k
    )
    return work._replace(read={**(work.read or {}), "output": 0}, precision=query.dtype)


@cost("torch_attn::_varlen_attn_backward")
def varlen_attn_backward(
    grad_out: TensorRef, query: TensorRef, key: TensorRef, value: TensorRef, output: TensorRef,
    lse: TensorRef, cu_seq_q: TensorRef, cu_seq_k: TensorRef, max_q: int, max_k: int,
    is_causal: bool, rng_state: TensorRef, scale: Any = None, window_size: Any = None, *, out: Out,
    env: Env,
) -> Work:  # fmt: skip
    """4·(D + Dv) a pair, and 2·D of recompute.

    Estimated: packed sequences of unknown lengths are taken as equal.
    """
    mask = _mask(is_causal, window_size)
    return packed_backward(query, key, value, cu_seq_q, max_q, max_k, 0.0, mask, env)


def _chunked_head(
    input: TensorRef, weight: TensorRef, bias: Any, chunk: int, dx: bool, dw: bool, db: bool
) -> Work:
    rows, classes = input.shape[0], weight.shape[0]
    chunks = -(-rows // chunk) if chunk else 1
    logits = rows * classes
    steps = _LOGIT_FLOPS + given(bias) + (dx or dw or db) + db
    return Work(
        2 * logits * input.shape[1] * (1 + dx + dw),
        vector=steps * logits,
        kind=GEMM,
        read={"linear_weight": chunks * (1 + dx) * weight.nbytes},
        confidence=ESTIMATED,
    )


@cost("torch_nn::_linear_cross_entropy_batch_chunked")
def linear_cross_entropy(
    input: TensorRef, linear_weight: TensorRef, target: TensorRef, linear_bias: TensorRef | None,
    weight: TensorRef | None, reduction: str, ignore_index: int, label_smoothing: float,
    batch_chunk_size: int, acc_policy: str, acc_dtype: Any, allow_retain_graph: bool,
    compute_input_grad: bool, compute_linear_weight_grad: bool, compute_linear_bias_grad: bool, *,
    out: Out,
) -> Work:  # fmt: skip
    """2·N·C·F for the logits, and as much for each gradient: they are computed in the forward.

    Bytes: the weight is read by every chunk of rows, twice with an input gradient.
    Estimated: the logits of a chunk go through memory between kernels that are not seen.
    """
    return _chunked_head(
        input, linear_weight, linear_bias, batch_chunk_size, compute_input_grad,
        compute_linear_weight_grad, compute_linear_bias_grad,
    )  # fmt: skip


@cost("torch_nn::_linear_cross_entropy_batch_chunked_no_reduction")
def linear_cross_entropy_no_reduction(
    input: TensorRef, linear_weight: TensorRef, target: TensorRef, linear_bias: TensorRef | None,
    weight: TensorRef | None, ignore_index: int, batch_chunk_size: int, acc_policy: str,
    acc_dtype: Any, *, out: Out,
) -> Work:  # fmt: skip
    """2·N·C·F for the logits; the backward runs ordinary ops.

    Bytes: the weight is read by every chunk of rows.
    Estimated: the logits of a chunk go through memory between kernels that are not seen.
    """
    return _chunked_head(
        input, linear_weight, linear_bias, batch_chunk_size, False, False, False
    )  # fmt: skip
