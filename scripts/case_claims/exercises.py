"""The six exercises: what they ask, and an answer worked out by the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tracer.models import fp8

from . import exercises_attention as one
from . import exercises_cluster as cluster
from . import exercises_experts as two
from . import exercises_precision as three
from .case import Case
from .efficiency import mfu
from .lessons import decode_seconds, projections
from .specification import cost


class Exercise(NamedTuple):
    """What is asked, in short, and what works the answer out."""

    asks: str
    answer: Callable[[Case], str]


def mla(case: Case) -> str:
    """From traced prefill and decode of the model and of standard attention with its heads."""
    (fixed, slope), (plain_fixed, plain_slope) = case.attention(), case.attention(standard=True)
    ours, plain = projections(case) / 1e6, projections(case, standard=True) / 1e6
    seconds = [1e6 * decode_seconds(case, standard) for standard in (True, False)]
    return (
        f"Projections of a token and layer cost {ours:.0f} M FLOP in MLA and {plain:.0f} M in "
        f"standard attention: compression saves FLOPs. In decode, absorbed, a token costs "
        f"{fixed / 1e6:.0f} M and {slope:,.0f} for each cached token, against "
        f"{plain_fixed / 1e6:.0f} M and {plain_slope:,.0f}. The lines cross at "
        f"**{one.break_even(case):,.0f} tokens**: MLA computes less below and up to "
        f"{slope / plain_slope:.2f} times more far above. Bytes decide, though: "
        f"{case.cache():,.0f} "
        f"against {case.mha_cache():,.0f} a cached token. At {case.context:,} tokens one layer's "
        f"attention of one new token takes {seconds[0]:.0f} µs in the standard form and "
        f"{seconds[1]:.0f} µs in MLA's on {case.chip.name}. No length has to be reached before it "
        "pays."
    )


def load(case: Case) -> str:
    """Drawn and exact loads under uniform routing."""
    fine, coarse = two.options(case)
    (mean, deviation), (_, coarse_deviation) = (two.spread(*x, case.seed) for x in (fine, coarse))
    ranks = coarse[0]
    alone = two.excess(case, fine, fine[0]), two.excess(case, coarse, ranks)
    return (
        f"An expert gets N/{1 / mean:.0f} tokens in both, with deviations of {deviation:.3f} and "
        f"{coarse_deviation:.3f} √N: no difference. With {two.TOKENS:,} tokens the busiest of "
        f"{fine[0]} experts is {100 * alone[0]:.1f} % above the mean and the busiest of {ranks} "
        f"{100 * alone[1]:.1f} %: *more* for small experts, since more are compared. On the same "
        f"{ranks} GPUs it turns: {100 * two.excess(case, fine, ranks):.1f} % against "
        f"{100 * alone[1]:.1f} %, **{alone[1] / two.excess(case, fine, ranks):.1f} times less**, "
        "since four small experts average out."
    )


def quantisation(case: Case) -> str:
    """Measured on drawn weights."""
    one_scale, blocks = three.error(case, "tensor"), three.error(case, "tile")
    x = three.sample(case)
    fixed = [100 * fp8.fixed_point_error(x, scheme) for scheme in ("tensor", "tile")]
    return (
        f"{100 * one_scale.norm:.2f} % in the norm with one scale and {100 * blocks.norm:.2f} % in "
        f"blocks of 128: **a factor of {one_scale.norm / blocks.norm:.2f}**, where theory has none "
        f"(3 mantissa bits give {100 * fp8.norm_error(fp8.E4M3):.2f} %, and what is left "
        "is where in "
        "a binade the largest number falls). INT8, with a step that follows the largest "
        "number, has "
        f"{fixed[0]:.2f} % and {fixed[1]:.2f} %. Blocks pay for a float where it underflows, below "
        f"{fp8.zero_below(fp8.E4M3):.1e} of the largest: with one element in 100,000 larger by 1e5 "
        f"the error by element falls {three.by_element(case, 'outliers'):.0f} times, with "
        "rows that "
        f"differ by up to 1e7, {three.by_element(case, 'uneven'):.0f} times."
    )


def dualpipe(case: Case) -> str:
    """Built, checked and simulated."""
    ranks, count = case.small
    plain, ours = (case.pipeline(name, case.small) for name in ("1f1b", "dualpipe"))
    apart = case.pipeline("zb1p", case.small)
    return (
        f"`build('dualpipe', {ranks}, {count})` is the published order, checked; with F = "
        "I = W and "
        f"no gain from overlap a step takes {ours.seconds:g} against {plain.seconds:g} of "
        "1F1B, idle "
        f"{ours.bubble[0]:g} and {plain.bubble[0]:g}: **{100 * ours.bubble_share:.1f} % against "
        f"{100 * plain.bubble_share:.1f} %**. ZB1P, which splits the backward as well but holds "
        f"every stage once, has {100 * apart.bubble_share:.1f} %. "
        f"DualPipe holds {max(ours.in_flight)} micro-batches in flight on every rank and "
        "two stages "
        "of parameters."
    )


def placement(case: Case) -> str:
    """Expected nodes of a token, and bytes of the experts."""
    m, plan, domain = case.model, case.plan, case.cluster.domain
    lines = []
    for ranks in (m.n_routed_experts, plan.ep, domain):
        weights = 2 * case.elements(".experts.") / plan.pp / ranks / 1e9
        lines.append(
            f"EP {ranks}: {100 * cluster.crossing(case, ranks):.1f} % of the pairs leave "
            f"their node, {weights:.1f} GB of BF16 experts a GPU"
        )
    ours = cluster.design(case).ours
    return (
        f"With {plan.pp} stages {plan.ranks_per_stage} GPUs share a layer. "
        + "; ".join(lines)
        + ". So the least is none at all, with every expert in every node. V3 took EP "
        f"{plan.ep} and a gate that keeps a token to {m.topk_group} of {m.n_group} nodes, "
        "in each of "
        f"which it arrives once: it crosses **{ours:.1f} times** in place of "
        f"{m.num_experts_per_tok * cluster.crossing(case, plan.ep):.0f}."
    )


def dense(case: Case) -> str:
    """Traced FLOPs, published hours."""
    compute, llama = case.training_flops() * case.v3.tokens, case.run("llama_405b")
    return (
        f"The run's {compute / 1e24:.2f}e24 FLOP would by C = 120 N² train a dense model of "
        f"**{cluster.chinchilla(compute) / 1e9:.0f} B** on "
        f"{20 * cluster.chinchilla(compute) / 1e12:.1f} T "
        "tokens: equal compute, so equal cost at equal MFU, and no statement on quality. "
        "The equally "
        "large dense model on the same tokens takes "
        f"{case.dense_flops() / case.training_flops():.1f} "
        f"times the FLOPs. V3 cost {cost(case) / 1e6:.2f} M USD at {100 * mfu(case):.0f} "
        "% MFU; Llama "
        f"3.1 405B, the published dense model nearest to it, {llama.hours / 1e6:.2f} M H100 hours, "
        f"**{llama.hours / case.hours:.0f} times** as many. The 300 B × 3 T tokens of the "
        "seed are a "
        "guess."
    )


EXERCISES = (
    Exercise(
        "Extra FLOPs of MLA's compression, and the length from which on the cache is worth it.", mla
    ),
    Exercise("Load variance of 256 experts, top 8, against 64, top 2.", load),
    Exercise("Error of N(0, 0.02) weights in E4M3, one scale against blocks of 128.", quantisation),
    Exercise("DualPipe for 8 stages and 16 micro-batches; its bubble against 1F1B's.", dualpipe),
    Exercise("Place 256 experts on 2,048 GPUs, 8 a node, with the least between nodes.", placement),
    Exercise("The dense model of equal quality by Chinchilla's law, and its cost.", dense),
)
