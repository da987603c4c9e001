"""Arithmetic that puts the seed report's rules right, one mistake at a time.

Hand formulas again, nothing traced. Each function changes one rule and leaves the others, so that
what the one does can be told.
"""

from __future__ import annotations

from dataclasses import replace

import seed_report_rules as rules
import seed_report_studies as studies
from mla_formulas import (
    absorbed_core_flops,
    attention_matrices,
    causal_pairs,
    decode_flops,
    ffn_matrices,
    forward_flops,
    reexpanded_core_flops,
)
from seed_report_rules import ATTENTION, BANDWIDTH, BATCH, EXPERTS, PEAK, V3

NVLINK, INFINIBAND = 450e9, 50e9  # bytes/s one way: half of 900 GB/s; 400 Gb/s
MOE = V3.layers - V3.dense_layers
DISPATCH = 2 * MOE * V3.top_k * V3.hidden  # bytes a token sends and gets back, all layers
# arXiv 2412.19437, section 1: 180K H800 hours a trillion tokens.
PUBLISHED_TRAINING = 1e12 / (180e3 * 3600)  # tokens/s a GPU: 1,543


def head_space_pair() -> int:
    """FLOPs of one cached token in one layer, as the report counts them: 641 a head."""
    return rules.attention_flops(V3, 0, 1)


def latent_pair() -> int:
    """The same absorbed, softmax included as the report includes it."""
    return absorbed_core_flops(V3, 1, 1) - absorbed_core_flops(V3, 1, 0) + V3.heads


def expansion() -> float:
    """kv_b_proj over a cached token, in units of the core that follows it."""
    both = reexpanded_core_flops(V3, 1, 1) + V3.heads
    return both / head_space_pair() - 1


def token_flops(context: int) -> int:
    """Everything that one decoded token costs, absorbed."""
    return sum(decode_flops(V3, 1, context).values())


def cache_bytes(context: int) -> int:
    """The cache of one sequence, one byte an element."""
    return V3.layers * V3.latent * context


def whole_weight_stream(ep: int, batch: int) -> float:
    """6.7's weight bytes with what it leaves out: dense layers and the head."""
    dense = V3.dense_layers * sum(k * n for k, n in ffn_matrices(V3, V3.dense_width).values())
    return studies.weight_stream(ep, batch) + dense + V3.hidden * V3.vocab


def sufficient_batch(ep: int, context: int) -> int:
    """The power of two with which compute is 0.9 of HBM time, everything counted."""
    batch = 1
    while batch * token_flops(context) / PEAK < studies.ALPHA * (
        (whole_weight_stream(ep, batch) + batch * cache_bytes(context + 1)) / BANDWIDTH
    ):
        batch *= 2
    return batch


def without_causality(seq: int) -> float:
    """FLOPs of the report's prefill over those of a causal one."""
    step = rules.prefill(BATCH, seq)
    return step.sum("flops") / (step.sum("flops") - _acausal(seq))


def causal_seconds(seq: int) -> float:
    """T_est of efficient prefill with causal pairs."""
    step = rules.prefill(BATCH, seq)
    line = step.lines[ATTENTION]
    causal = replace(line, flops=line.flops - _acausal(seq))
    return replace(step, lines={**step.lines, ATTENTION: causal}).seconds


def _acausal(seq: int) -> int:
    pairs = BATCH * (seq**2 - causal_pairs(seq))
    return V3.layers * V3.heads * pairs * (2 * V3.qk + 2 * V3.v + 1)


def experts_kept_apart(batch: int) -> float:
    """T_comp of the experts with each product at its own M."""
    expert = 3 * 2 * V3.hidden * V3.expert_width * MOE * batch
    routed = batch * V3.top_k / rules.distinct_experts(V3, batch)
    parts = (
        (V3.top_k * expert, routed),
        (V3.shared * expert, batch),
        (2 * V3.hidden * V3.experts * MOE * batch, batch),
    )
    share = rules.TENSOR_SHARE[EXPERTS]
    return sum(
        rules.Line(flops, 0, 0, rows=rows, tensor_share=share).compute_seconds
        for flops, rows in parts
    )


def attention_operands() -> int:
    """Elements that MLA's products take and give for one token: projections, then q, k, v and o."""
    projections = sum(k + n for k, n in attention_matrices(V3).values())
    return projections + V3.heads * (2 * V3.qk + 2 * V3.v)


def ceiling(line: str) -> float:
    """MFU of a line that has rows enough: set by its share of scalar work alone."""
    share = rules.TENSOR_SHARE[line]
    return 1 / (share + (1 - share) / rules.SCALAR)


def rank_effect_without_coupling() -> float:
    """7.1's effect of the rank where it scales only the cache."""
    seconds = []
    for point in studies.sensitivity_grid():
        if point.execution == rules.EFFICIENT:
            plain = studies.grid_step(*point[:3], 0.0, *point[4:6]).lines[ATTENTION]
            own = point.step.lines[ATTENTION]
            attention = replace(own, flops=plain.flops, weights=plain.weights)
            step = replace(point.step, lines={**point.step.lines, ATTENTION: attention})
            seconds.append((point, step.seconds))
    return next(k.effect for k in studies.rank(seconds, studies.KNOBS) if k.name == "KV rank scale")


def network_bound_up_to(ep: int, batch: int) -> int:
    """The longest of the grid's contexts at which InfiniBand is the slowest of the three."""
    longest = 0
    for context in studies.CONTEXTS:
        t_comp = batch * token_flops(context) / PEAK
        t_hbm = (whole_weight_stream(ep, batch) + batch * cache_bytes(context + 1)) / BANDWIDTH
        if batch * DISPATCH / INFINIBAND > max(t_comp, t_hbm):
            longest = context
    return longest


def published_mfu() -> float:
    """The published training rate over the FP8 peak, causal FLOPs at S = 4096."""
    flops = 3 * sum(forward_flops(V3, 1, 4096).values()) / 4096
    return PUBLISHED_TRAINING * flops / PEAK
