"""The rules of the seed report: how the analytic report that this project began with counts a step.

A second route, and no part of the tracer: nothing of it is imported. The report (a "Model Report"
of DeepSeek-V3 on an H200, dated 2026-02-18) prints tables and says in its section 5 where they come
from; these few rules give every one of its cells. They are restated as they are, mistakes included
(`test_seed_critique.py` has those); `scripts/compare_seed.py` sets them beside the trace.

A step is five lines: attention, embedding, experts, ffn and the head, each with FLOPs and four
kinds of bytes. Norms, RoPE, residuals, the SwiGLU product, permutation and quantisation have none.

    B  sequences    S  tokens of a prompt    L  cached tokens    T  tokens of the step

B, S and L may be integers, floats or sympy symbols; FLOPs and bytes come out in kind. Seconds need
numbers. Bytes are bytes, FLOPs FLOPs, seconds seconds; one byte an element throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from mla_formulas import Dims, attention_matrices, linear_flops

Number = Any  # int, float or a sympy expression

# Section 4.1. The gate's bias is not counted (4.3).
V3 = Dims(
    hidden=7168, heads=128, q_rank=1536, kv_rank=512, nope=128, rope=64, v=128, dense_width=18432,
    expert_width=2048, experts=256, top_k=8, shared=1, gate_bias=False, vocab=129280, layers=61,
    dense_layers=3,
)  # fmt: skip

# Section 6.2: FLOP/s, HBM bytes/s and network bytes/s of `H200_SXM_FP8`.
PEAK, BANDWIDTH, NETWORK = 1979e12, 4800e9, 900e9
KNEE = PEAK / BANDWIDTH  # FLOP a byte, 412.29

BATCH, LENGTH = 8, 255  # the anchor: B, and S = L

ATTENTION, EMBEDDING, EXPERTS, FFN, HEAD = "attention", "embedding", "experts", "ffn", "lm_head"
LINES = (ATTENTION, EMBEDDING, EXPERTS, FFN, HEAD)
TRAINING, PREFILL, DECODE = "training", "prefill", "decode"

SATURATION = 64  # rows of M at which a matrix unit is full (5.5)
SCALAR = 0.35  # share of the FP8 peak that "scalar" work gets
# Share of a line's FLOPs that runs on the matrix units. Attention's softmax is 1/641 of its core.
TENSOR_SHARE = {ATTENTION: 0.95, EMBEDDING: 0.70, EXPERTS: 0.98, FFN: 0.98, HEAD: 0.98}

TRAINING_FLOPS, TRAINING_BYTES = 3, 2  # times prefill (5.4, footnote)


@dataclass(frozen=True)
class Execution:
    """Section 5.3: what "naive" and "efficient" do to bytes.

    `attention`, `dense` and `moe` are residency factors that divide weight bytes (the embedding and
    the head are dense, router and shared expert are moe); `fusion` multiplies activation bytes;
    `elementwise` the score temporaries, of which flash keeps one a row and head.
    """

    name: str
    attention: float
    dense: float
    moe: float
    fusion: float
    elementwise: float
    flash: bool

    def residency(self, line: str) -> float:
        """What the weight bytes of `line` are divided by."""
        return {ATTENTION: self.attention, EXPERTS: self.moe}.get(line, self.dense)


NAIVE = Execution("naive", 1, 1, 1, 1, 1, flash=False)
EFFICIENT = Execution("efficient", 4, 4, 2, 0.5, 0.7, flash=True)
# Every touched weight once and fused activations: what `EFFICIENT` would be without residency.
FUSED = replace(EFFICIENT, name="fused", attention=1, dense=1, moe=1)
EXECUTIONS = (NAIVE, EFFICIENT)


@dataclass(frozen=True)
class Line:
    """One line of a step, all its layers together.

    Attributes:
        flops: F_theory.
        weights: bytes, residency applied.
        activations: bytes, fusion applied.
        kv: bytes of the cache, read and written.
        temporary: bytes of scores.
        rows: M, the rows of its matrix products.
        tensor_share: see `TENSOR_SHARE`.
    """

    flops: Number
    weights: Number
    activations: Number
    kv: Number = 0
    temporary: Number = 0
    rows: Number = 1
    tensor_share: float = 1.0

    @property
    def bytes_hbm(self) -> Number:
        """All four kinds."""
        return self.weights + self.activations + self.kv + self.temporary

    @property
    def realizable(self) -> float:
        """F_realizable: FLOPs at the peak that would take as long (5.5)."""
        eta = min(1.0, self.rows / SATURATION)
        return self.flops * (self.tensor_share / eta + (1 - self.tensor_share) / SCALAR)

    @property
    def compute_seconds(self) -> float:
        """T_comp."""
        return self.realizable / PEAK

    @property
    def memory_seconds(self) -> float:
        """T_hbm."""
        return self.bytes_hbm / BANDWIDTH

    def scaled(self, flops: float, nbytes: float) -> Line:
        """FLOPs and bytes multiplied: how training is made of prefill."""
        return replace(
            self, flops=flops * self.flops, weights=nbytes * self.weights, kv=nbytes * self.kv,
            activations=nbytes * self.activations, temporary=nbytes * self.temporary,
        )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Five lines and what the report makes of their sums."""

    lines: dict[str, Line]
    tokens: Number

    def sum(self, what: str) -> Number:
        """`what` ("flops", "weights", "bytes_hbm", "realizable", ...) over the lines."""
        return sum(getattr(line, what) for line in self.lines.values())

    @property
    def intensity(self) -> Number:
        """AI_hbm, FLOPs a byte."""
        return self.sum("flops") / self.sum("bytes_hbm")

    @property
    def compute_seconds(self) -> float:
        """T_comp, of the sum."""
        return self.sum("realizable") / PEAK

    @property
    def memory_seconds(self) -> float:
        """T_hbm, of the sum."""
        return self.sum("bytes_hbm") / BANDWIDTH

    @property
    def seconds(self) -> float:
        """T_est: the larger of the two sums. One chip has no network."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def seconds_line_by_line(self) -> float:
        """Sum over lines of the larger of the two, as when one line runs after the other."""
        return sum(max(x.compute_seconds, x.memory_seconds) for x in self.lines.values())

    @property
    def achieved(self) -> float:
        """TF_est in FLOP/s."""
        return self.sum("flops") / self.seconds

    @property
    def mfu(self) -> float:
        """MFU_est."""
        return self.achieved / PEAK

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def regime(self) -> str:
        """The larger of the two times; compute on ties."""
        return "compute-bound" if self.compute_seconds >= self.memory_seconds else "hbm-bound"


# -- one line at a time ----------------------------------------------------------------------------


def attention_weights(d: Dims) -> int:
    """Elements of one layer: five matrices and the norms of the two compressed streams."""
    matrices = sum(k * n for k, n in attention_matrices(d).values())
    return matrices + (d.q_rank or 0) + d.kv_rank


def attention_flops(d: Dims, tokens: Number, pairs: Number) -> Number:
    """One layer: five projections of the new tokens, and the core over `pairs`.

    K and V are in head space in both phases (never absorbed); softmax is one FLOP a score:
    2·192 + 2·128 + 1 = 641 FLOPs a pair and head.
    """
    projections = sum(linear_flops(tokens, size) for size in attention_matrices(d).values())
    return projections + d.heads * pairs * (2 * d.qk + 2 * d.v + 1)


def distinct_experts(d: Dims, tokens: Number) -> Number:
    """Poisson: each expert is missed with exp(-T k/E). 7.88 at one token, where top-8 is 8."""
    return d.experts * (1 - _exp(-tokens * d.top_k / d.experts))


def expert_rows(d: Dims, tokens: Number) -> int:
    """M of the experts' line: the mean of a routed expert's rows and the shared one's, by FLOPs."""
    routed = max(1.0, tokens * d.top_k / distinct_experts(d, tokens))
    return round((d.top_k * routed + d.shared * tokens) / (d.top_k + d.shared))


def _attention(
    d: Dims, x: Execution, tokens: Number, pairs: Number, kv_tokens: Number, operands: int
) -> Line:
    """`operands` tensors of [T, H] move; `kv_tokens` latents are read or written."""
    scores = tokens * d.heads * x.elementwise if x.flash else 2 * d.heads * pairs
    return Line(
        flops=d.layers * attention_flops(d, tokens, pairs),
        weights=d.layers * attention_weights(d) / x.attention,
        activations=d.layers * operands * tokens * d.hidden * x.fusion,
        kv=d.layers * d.latent * kv_tokens,
        temporary=d.layers * scores,
        rows=tokens,
        tensor_share=TENSOR_SHARE[ATTENTION],
    )


def _embedding(d: Dims, x: Execution, tokens: Number) -> Line:
    """The whole table, every step, and T·H FLOPs for a gather."""
    moved = tokens * d.hidden
    weights = d.vocab * d.hidden / x.dense
    tensor = TENSOR_SHARE[EMBEDDING]
    return Line(moved, weights, moved * x.fusion, rows=tokens, tensor_share=tensor)


def _experts(d: Dims, x: Execution, tokens: Number) -> Line:
    """Router, routed and shared experts of all MoE layers."""
    moe, chosen = d.layers - d.dense_layers, d.top_k + d.shared
    expert = 3 * d.hidden * d.expert_width
    router = d.hidden * d.experts
    passing = d.hidden + d.experts + chosen * 3 * (d.hidden + d.expert_width)
    return Line(
        flops=moe * 2 * tokens * (router + chosen * expert),
        weights=moe * (router + expert * (distinct_experts(d, tokens) + d.shared)) / x.moe,
        activations=moe * tokens * passing * x.fusion,
        rows=tokens if _symbolic(tokens) else expert_rows(d, tokens),
        tensor_share=TENSOR_SHARE[EXPERTS],
    )


def _ffn(d: Dims, x: Execution, tokens: Number) -> Line:
    """The dense layers."""
    n, weights = d.dense_layers, 3 * d.hidden * d.dense_width
    passing = 3 * tokens * (d.hidden + d.dense_width) * x.fusion
    return Line(
        n * 2 * tokens * weights, n * weights / x.dense, n * passing,
        rows=tokens, tensor_share=TENSOR_SHARE[FFN],
    )  # fmt: skip


def _head(d: Dims, x: Execution, tokens: Number) -> Line:
    """Logits of every token, in prefill too. The report's category is "other"."""
    weights = d.hidden * d.vocab
    passing = tokens * (d.hidden + d.vocab) * x.fusion
    return Line(
        2 * tokens * weights, weights / x.dense, passing,
        rows=tokens, tensor_share=TENSOR_SHARE[HEAD],
    )  # fmt: skip


# -- a step ----------------------------------------------------------------------------------------


def prefill(batch: Number, seq: Number, x: Execution = EFFICIENT, d: Dims = V3) -> Step:
    """All S² pairs, and the cache only written."""
    tokens = batch * seq
    attention = _attention(d, x, tokens, batch * seq**2, tokens, operands=5)
    return _step(d, x, tokens, attention)


def decode(batch: Number, context: Number, x: Execution = EFFICIENT, d: Dims = V3) -> Step:
    """One token a sequence: L latents read and one written; 641 FLOPs a pair and head."""
    pairs = batch * context
    attention = _attention(d, x, batch, pairs, pairs + batch, operands=7)
    return _step(d, x, batch, attention)


def training(batch: Number, seq: Number, x: Execution = EFFICIENT, d: Dims = V3) -> Step:
    """Three times prefill's FLOPs and twice its bytes, those of the cache included."""
    step = prefill(batch, seq, x, d)
    lines = {k: v.scaled(TRAINING_FLOPS, TRAINING_BYTES) for k, v in step.lines.items()}
    return Step(lines, step.tokens)


PHASES = {TRAINING: training, PREFILL: prefill, DECODE: decode}


def _step(d: Dims, x: Execution, tokens: Number, attention: Line) -> Step:
    lines = {
        ATTENTION: attention,
        EMBEDDING: _embedding(d, x, tokens),
        EXPERTS: _experts(d, x, tokens),
        FFN: _ffn(d, x, tokens),
        HEAD: _head(d, x, tokens),
    }
    return Step(lines, tokens)


def parameters(d: Dims = V3) -> dict[str, tuple[int, int]]:
    """(instances, elements of one) of every parameter, by the report's module patterns (4.4)."""
    moe = d.layers - d.dense_layers
    expert, dense = d.hidden * d.expert_width, d.hidden * d.dense_width
    projections = attention_matrices(d).values()
    attention = ("q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "out_proj")
    found = {"token_embeddings": (1, d.vocab * d.hidden), "lm_head": (1, d.hidden * d.vocab)}
    for name, (k, n) in zip(attention, projections, strict=True):
        found[f"blocks.*.attn.{name}"] = (d.layers, k * n)
    for name in ("gate_proj", "up_proj", "down_proj"):
        found[f"blocks.*.ffn.experts.*.{name}"] = (moe * d.experts, expert)
        found[f"blocks.*.ffn.shared_experts.*.{name}"] = (moe * d.shared, expert)
        found[f"blocks.*.ffn.{name}"] = (d.dense_layers, dense)
    found["blocks.*.ffn.router"] = (moe, d.hidden * d.experts)
    found["blocks.*.attn_norm"] = found["blocks.*.ffn_norm"] = (d.layers, d.hidden)
    found["blocks.*.attn.q_a_norm"] = (d.layers, d.q_rank or 0)
    found["blocks.*.attn.kv_a_norm"] = (d.layers, d.kv_rank)
    found["norm"] = (1, d.hidden)
    return found


def parameter_count(d: Dims = V3) -> int:
    """All of them: 671,026,404,352."""
    return sum(instances * each for instances, each in parameters(d).values())


def _symbolic(value: Number) -> bool:
    return not isinstance(value, (int, float))


def _exp(x: Number) -> Number:
    if _symbolic(x):
        import sympy

        return sympy.exp(x)
    return math.exp(x)
