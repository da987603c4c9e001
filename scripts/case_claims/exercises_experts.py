"""Exercise 2: load variance of 256 experts, top 8, against 64, top 2."""

from __future__ import annotations

import functools

import numpy as np

from tracer.parallel.experts import contiguous, expert_load, uniform
from tracer.parallel.experts.routing import sample

from .case import Case
from .claim import Answer, Section, assuming, holds, wrong

TWO = Section("Exercise 2: Fine-grained MoE Load Variance")
TOKENS = 32_768


def options(case: Case) -> tuple[tuple[int, int], tuple[int, int]]:
    """(experts, top k) of the model, and of one with experts four times as large."""
    m = case.model
    fine = m.n_routed_experts, m.num_experts_per_tok
    return fine, (fine[0] // 4, fine[1] // 4)


@functools.cache
def spread(experts: int, top: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of an expert's tokens, drawn, over N and √N."""
    batch, batches = 512, 128
    chosen = sample(uniform(experts, top), batch * batches, seed)
    counts = np.stack(
        [np.bincount(x.ravel(), minlength=experts) for x in np.split(chosen, batches)]
    )
    return float(counts.mean() / batch), float(counts.std() / batch**0.5)


@functools.cache
def excess(case: Case, size: tuple[int, int], ranks: int) -> float:
    """Slowest rank's rows over the mean, less 1."""
    experts, top = size
    placement = contiguous(experts, ranks, min(ranks, case.cluster.domain))
    return expert_load(uniform(experts, top), placement, TOKENS, case.seed).imbalance - 1


@TWO.claim(876, "8/256 = 2/64 = 3.125\\%", "3.125", "% of routed parameters")
def same_share(case: Case) -> Answer:
    """Mean rows of an expert, drawn, over tokens."""
    return holds(100 * spread(*options(case)[0], case.seed)[0])


@TWO.claim(886, r"= \frac{N}{32}", "32", "= N / μ")
@TWO.claim(893, r"= \frac{N}{32}", "32", "= N / μ")
def mean(case: Case) -> Answer:
    """Tokens over mean rows of an expert, drawn."""
    return holds(1 / spread(*options(case)[0], case.seed)[0])


@TWO.claim(887, r"\sqrt{\frac{N}{32} \times 0.969} \approx 0.174\sqrt{N}", "0.174", "√N")
def deviation_a(case: Case) -> Answer:
    """Standard deviation of an expert's rows over √N, 128 drawn batches of 512 tokens, 256
    experts.
    """
    return holds(spread(*options(case)[0], case.seed)[1])


@TWO.claim(894, r"\sqrt{\frac{N}{32} \times 0.969} \approx 0.174\sqrt{N}", "0.174", "√N")
def deviation_b(case: Case) -> Answer:
    """The same of 64 experts."""
    return holds(spread(*options(case)[1], case.seed)[1])


def _variation(case: Case, which: int) -> Answer:
    average, deviation = spread(*options(case)[which], case.seed)
    return holds(deviation / average)


@TWO.claim(890, r"= \frac{5.57}{\sqrt{N}}", "5.57", "/ √N")
def variation_a(case: Case) -> Answer:
    """Deviation over mean of an expert's rows, drawn, 256 experts."""
    return _variation(case, 0)


@TWO.claim(896, r"CV_B = \frac{5.57}{\sqrt{N}}", "5.57", "/ √N")
def variation_b(case: Case) -> Answer:
    """Deviation over mean of an expert's rows, drawn, 64 experts."""
    return _variation(case, 1)


def _peak(case: Case, which: int) -> Answer:
    """Excess of the busiest expert in standard deviations."""
    size = options(case)[which]
    share = size[1] / size[0]
    deviation = ((1 - share) / share / TOKENS) ** 0.5
    bound = (2 * np.log(size[0])) ** 0.5
    return assuming(
        excess(case, size, size[0]) / deviation,
        "a bound that the mean of the largest reaches only for very many experts",
        float(bound),
    )


@TWO.claim(905, r"For E=256: $\sqrt{2\ln 256} = 3.33$", "3.33", "σ")
def peak_a(case: Case) -> Answer:
    """Mean excess of the busiest of 256 experts, drawn (`expert_load`), in deviations."""
    return _peak(case, 0)


@TWO.claim(906, r"For E=64: $\sqrt{2\ln 64} = 2.88$", "2.88", "σ")
def peak_b(case: Case) -> Answer:
    """Mean excess of the busiest of 64 experts, drawn (`expert_load`), in deviations."""
    return _peak(case, 1)


@TWO.claim(915, r"256 experts has 15\% lower peak imbalance", "15", "% lower")
def lower_peak(case: Case) -> Answer:
    """Excess of the busiest of 64 experts over that of the busiest of 256, one expert a GPU."""
    fine, coarse = options(case)
    change = 1 - excess(case, fine, fine[0]) / excess(case, coarse, coarse[0])
    return wrong(
        100 * change,
        "higher, and by the seed's own 3.33 against 2.88: the largest of more "
        "is larger. What helps is several experts on a GPU, next",
    )


@TWO.claim(912, "| 256 experts, top-8 | N/32 | 1 + 3.33/√(N/32) | Lower |", None, "× less excess")
def ranks_balance(case: Case) -> Answer:
    """Excess of the busiest of 64 GPUs, drawn: 64 experts over 256, so one each over four each."""
    fine, coarse = options(case)
    ranks = coarse[0]
    ratio = excess(case, coarse, ranks) / excess(case, fine, ranks)
    return assuming(
        ratio,
        "on the same GPUs, which hold 4 small experts in "
        "place of a large one: four times as many rows of a quarter of the work. An "
        "expert alone is no better off",
    )
