"""Whole attention layers behind one op: the inference fast path of torch's own Transformer."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import ATTENTION, ESTIMATED, POINTWISE, Work
from .attention import SOFTMAX_FLOPS
from .common import Out, product

_LAYER_NORM_FLOPS = 8
_GELU_FLOPS, _RELU_FLOPS = 8, 1


def _projections(query: TensorRef, key: TensorRef, value: TensorRef, embed_dim: int) -> int:
    """QKV for every token of its own input, and the output projection of the queries."""
    rows = sum(product(t.shape[:-1]) for t in (query, key, value)) + product(query.shape[:-1])
    return 2 * rows * embed_dim * embed_dim


def _scores(query: TensorRef, key: TensorRef, embed_dim: int, num_head: int) -> tuple[int, int]:
    """Matrix and vector FLOPs of the scores and weighted values: all pairs, masks do not skip."""
    batch, queries, _ = query.shape
    pairs = batch * queries * key.shape[1]
    return 4 * pairs * embed_dim, SOFTMAX_FLOPS * num_head * pairs


@cost("aten::_native_multi_head_attention", "aten::_triton_multi_head_attention")
def native_multi_head_attention(
    query: TensorRef, key: TensorRef, value: TensorRef, embed_dim: int, num_head: int,
    qkv_weight: TensorRef, qkv_bias: TensorRef, proj_weight: TensorRef, proj_bias: TensorRef,
    mask: Any = None, *rest: Any, out: Out,
) -> Work:  # fmt: skip
    """Projections 2·E² a token each (q, k, v, output) and 4·E a pair.

    Estimated: FLOPs are exact, the traffic between the kernels inside of the op is not seen.
    """
    matrix, vector = _scores(query, key, embed_dim, num_head)
    flops = matrix + _projections(query, key, value, embed_dim)
    bias = 4 * product(query.shape)
    return Work(flops, vector=vector + bias, kind=ATTENTION, confidence=ESTIMATED)


@cost("aten::_transformer_encoder_layer_fwd")
def transformer_encoder_layer(
    src: TensorRef, embed_dim: int, num_heads: int, qkv_weight: TensorRef, qkv_bias: TensorRef,
    proj_weight: TensorRef, proj_bias: TensorRef, use_gelu: bool, norm_first: bool, eps: float,
    norm_weight_1: TensorRef, norm_bias_1: TensorRef, norm_weight_2: TensorRef,
    norm_bias_2: TensorRef, ffn_weight_1: TensorRef, ffn_bias_1: TensorRef,
    ffn_weight_2: TensorRef, ffn_bias_2: TensorRef, mask: Any = None,
    mask_type: int | None = None, *, out: Out,
) -> Work:  # fmt: skip
    """Attention (8·E² a token, 4·E a pair), the FFN's two products, two norms and residuals.

    Estimated: FLOPs are exact, the traffic between the kernels inside of the op is not seen.
    """
    tokens = product(src.shape[:-1])
    inner = ffn_weight_1.shape[0]
    matrix, vector = _scores(src, src, embed_dim, num_heads)
    matrix += _projections(src, src, src, embed_dim)
    matrix += 2 * tokens * (ffn_weight_1.numel + ffn_weight_2.numel)
    norms_and_adds = 2 * (_LAYER_NORM_FLOPS + 1) + 4 + 1  # residuals; biases of qkv, proj, ffn
    activation = (_GELU_FLOPS if use_gelu else _RELU_FLOPS) + 1
    vector += tokens * (norms_and_adds * embed_dim + activation * inner)
    return Work(matrix, vector=vector, kind=ATTENTION, confidence=ESTIMATED)


@cost("aten::_triton_scaled_dot_attention")
def triton_attention(
    q: TensorRef, k: TensorRef, v: TensorRef, dropout_p: float = 0.0, *, out: Out
) -> Work:
    """2·(D + Dv) a pair."""
    pairs = product(q.shape[:-1]) * k.shape[-2]
    return Work(
        2 * pairs * (q.shape[-1] + v.shape[-1]), vector=SOFTMAX_FLOPS * pairs, kind=ATTENTION
    )


@cost("aten::_transform_bias_rescale_qkv")
def transform_bias_rescale_qkv(
    qkv: TensorRef, qkv_bias: TensorRef, num_heads: int, *, out: Out
) -> Work:
    """A bias add an element, and a scale for each of q."""
    return Work(vector=qkv.numel + qkv.numel // 3, kind=POINTWISE)
