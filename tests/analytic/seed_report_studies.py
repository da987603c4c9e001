"""The seed report's own studies, by its rules: the 432-point grid, the knob ranking, the batch that
makes decode compute-bound, what resides in memory, what is dispatched.

    python tests/analytic/seed_report_studies.py      # the grid's ends and the ranking

Plain functions without pytest, so that a script can print them beside a traced version.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from mla_formulas import Dims
from seed_report_rules import (
    ATTENTION,
    BANDWIDTH,
    BATCH,
    EFFICIENT,
    EXECUTIONS,
    KNEE,
    NETWORK,
    PEAK,
    V3,
    Execution,
    Step,
    attention_flops,
    attention_weights,
    decode,
    distinct_experts,
    parameter_count,
)

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)  # 6.6.4
SEQUENCES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 163840)  # 6.6.5

# -- section 7: decode at B = 8 over every combination ---------------------------------------------

KV_BYTES = (1, 2)
TOP_K = (2, 4, 8)
RANK_SCALES = (0.5, 1.0, 1.5)
HIDDEN_SCALES = (0.75, 1.0, 1.25)
CONTEXTS = (2048, 4096, 8192, 16384)


class GridPoint(NamedTuple):
    """One combination and its decode step."""

    execution: Execution
    kv_bytes: int
    top_k: int
    rank_scale: float
    hidden_scale: float
    context: int
    step: Step


def sensitivity_grid() -> list[GridPoint]:
    """All 2·2·3·3·3·4 = 432 points, in the order of the knobs."""
    knobs = (EXECUTIONS, KV_BYTES, TOP_K, RANK_SCALES, HIDDEN_SCALES, CONTEXTS)
    return [GridPoint(*point, grid_step(*point)) for point in itertools.product(*knobs)]


def grid_step(
    x: Execution, kv_bytes: int, top_k: int, rank: float, hidden: float, context: int
) -> Step:
    """Decode of 8 sequences with scaled sizes.

    `hidden` scales H and both FFN widths. `rank` scales all 576 cached elements, RoPE's included.
    Heads, compression ranks and vocabulary stay; instead attention's FLOPs *and* weights are
    multiplied by `hidden · max(hidden, rank)`, so a rank below `hidden` changes only the cache.
    """
    d = scaled(top_k, hidden)
    step = decode(BATCH, context, x, d)
    base = decode(BATCH, context, x, V3).lines[ATTENTION]
    factor = hidden * max(hidden, rank)
    attention = replace(
        step.lines[ATTENTION],
        flops=factor * base.flops,
        weights=factor * base.weights,
        kv=rank * kv_bytes * base.kv,
    )
    return replace(step, lines={**step.lines, ATTENTION: attention})


def scaled(top_k: int, hidden: float) -> Dims:
    """V3 with other widths."""
    return replace(
        V3,
        top_k=top_k,
        hidden=round(hidden * V3.hidden),
        dense_width=round(hidden * V3.dense_width),
        expert_width=round(hidden * V3.expert_width),
    )


def best_and_worst(
    points: Sequence[GridPoint], best: int = 3, worst: int = 2
) -> dict[str, list[GridPoint]]:
    """The fastest and slowest points of each execution, fastest first."""
    found = {}
    for x in EXECUTIONS:
        mine = sorted((p for p in points if p.execution == x), key=lambda p: p.step.seconds)
        found[x.name] = [*mine[:best], *mine[-worst:]]
    return found


class Knob(NamedTuple):
    """Median seconds by value, and the largest over the smallest of them less one."""

    name: str
    effect: float
    medians: dict[str, float]


KNOBS: dict[str, Callable[[GridPoint], float]] = {
    "top-k experts": lambda p: p.top_k,
    "hidden scale": lambda p: p.hidden_scale,
    "decode KV length (L)": lambda p: p.context,
    "KV rank scale": lambda p: p.rank_scale,
    "KV dtype bytes": lambda p: p.kv_bytes,
}


def knob_ranking(points: Sequence[GridPoint] | None = None) -> list[Knob]:
    """Section 7.1, strongest knob first: efficient points only; values in the order of strings."""
    points = sensitivity_grid() if points is None else points
    seconds = [(p, p.step.seconds) for p in points if p.execution == EFFICIENT]
    return rank(seconds, KNOBS)


def rank(
    seconds: Sequence[tuple[GridPoint, float]], knobs: dict[str, Callable[[GridPoint], float]]
) -> list[Knob]:
    """The ranking of any seconds, a traced grid's too."""
    found = []
    for name, value in knobs.items():
        groups: dict[str, list[float]] = {}
        for point, time in seconds:
            groups.setdefault(str(value(point)), []).append(time)
        medians = {key: statistics.median(groups[key]) for key in sorted(groups)}
        found.append(Knob(name, max(medians.values()) / min(medians.values()) - 1, medians))
    return sorted(found, key=lambda knob: -knob.effect)


# -- section 6.7: which batch a GPU makes decode compute-bound -------------------------------------

ALPHA = 0.9
LARGEST_BATCH = 16384
EXPERT_PARALLEL = (1, 2, 4, 8, 16, 32, 64)


class Crossing(NamedTuple):
    """A row of 6.7; `batch` is None where none was found."""

    ep: int
    context: int
    hbm_intensity: float
    network_intensity: float
    batch: int | None
    limiter: str


def flops_per_sequence(ep: int, context: int, d: Dims = V3) -> float:
    """FLOPs of one token, by 6.7's own count: no shared expert, FFN or head; routed ones over EP.

    Dividing by EP is a mistake: the experts of a GPU serve all EP·B tokens.
    """
    moe = d.layers - d.dense_layers
    routed = d.top_k * 6 * d.hidden * d.expert_width / ep
    attention = attention_flops(d, 1, context)
    return d.layers * attention + moe * (2 * d.hidden * d.experts + routed)


def weight_stream(ep: int, batch: int, d: Dims = V3) -> float:
    """Bytes of weights one GPU reads in a step: distinct experts of EP·B tokens, over EP."""
    moe, expert = d.layers - d.dense_layers, 3 * d.hidden * d.expert_width
    hit = distinct_experts(d, batch * ep) / ep
    return d.layers * attention_weights(d) + moe * (d.hidden * d.experts + expert * (1 + hit))


def crossing(ep: int, context: int, d: Dims = V3) -> Crossing:
    """The smallest power of two whose T_comp is 0.9 of the slower of HBM and network.

    T_comp has no efficiency here. The network carries one layer's dispatch and return (2·k·H).
    """
    flops = flops_per_sequence(ep, context, d)
    per_sequence = d.layers * d.latent * (context + 1)
    dispatch = d.top_k * 2 * d.hidden
    at_infinity, network = flops / per_sequence, flops / dispatch
    if at_infinity < ALPHA * KNEE:
        return Crossing(ep, context, at_infinity, network, None, "HBM (KV)")
    batch = 1
    while batch <= LARGEST_BATCH:
        t_hbm = (weight_stream(ep, batch, d) + batch * per_sequence) / BANDWIDTH
        t_net = batch * dispatch / NETWORK
        if batch * flops / PEAK >= ALPHA * max(t_hbm, t_net):
            limiter = "HBM" if t_hbm >= t_net else "NET"
            return Crossing(ep, context, at_infinity, network, batch, limiter)
        batch *= 2
    return Crossing(ep, context, at_infinity, network, None, "HBM/NET")


def crossings() -> list[Crossing]:
    """All 28 rows."""
    return [crossing(ep, context) for ep in EXPERT_PARALLEL for context in CONTEXTS]


def critical_batch(
    x: Execution, reaches: Callable[[Step], bool], context: int, largest: int = 1 << 20
) -> int:
    """The smallest decode batch for which `reaches` holds, by bisection: it must stay so.

    Raises:
        ValueError: not even the largest does.
    """
    if not reaches(decode(largest, context, x)):
        raise ValueError(f"no batch up to {largest:,} reaches it")
    low, high = 0, largest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(decode(middle, context, x)) else (middle, high)
    return high


# -- sections 6.8 and 6.9 --------------------------------------------------------------------------

BUDGET = 141 * 2**30  # the report's; the part has 141e9


def resident(batch: int, length: int, d: Dims = V3) -> dict[str, float]:
    """Bytes that 6.8 adds up: one byte a parameter and gradient, 12 for optimizer and master.

    Saved activations are ten [B·S, H] tensors a layer.
    """
    count = parameter_count(d)
    kv = batch * length * d.layers * d.latent
    saved = 10 * batch * length * d.hidden * d.layers
    return {
        "Parameters (assumed dtype)": count,
        f"KV Cache (B={batch}, L={length})": kv,
        "Training Gradients": count,
        "Training Optimizer+Master": 12 * count,
        "Training Saved Activations (coarse)": saved,
        "Inference Total Resident": count + kv,
        "Training Total Resident (coarse)": 14 * count + saved,
        "HBM Budget": BUDGET,
    }


def dispatched(tokens: int, d: Dims = V3) -> int:
    """Bytes sent to experts and back: k copies of a token each way in every MoE layer (6.9)."""
    return (d.layers - d.dense_layers) * 2 * tokens * d.top_k * d.hidden


def summary() -> Iterator[str]:
    """Lines with the ends of the grid (ms) and the ranking."""
    for name, points in best_and_worst(sensitivity_grid()).items():
        for p in points:
            yield f"{name:10}" + "".join(f"{v:>8}" for v in p[1:6]) + f"{1e3 * p.step.seconds:9.3f}"
    for knob in knob_ranking():
        medians = ", ".join(f"{k}: {1e3 * v:.2f}" for k, v in knob.medians.items())
        yield f"{knob.name:22}{knob.effect:8.1%}  {medians}"


if __name__ == "__main__":
    print("\n".join(summary()))
