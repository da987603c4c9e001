"""The opening, the specification, and dense against active FLOPs."""

from __future__ import annotations

from .case import Case
from .claim import Answer, Section, assuming, holds, wrong

OPENING = Section("Case Study: DeepSeek-V3")
TABLE = Section("The DeepSeek-V3 Specification")
ADVANTAGE = Section("The Efficiency Advantage")


def six_n_d(parameters: float, tokens: float) -> float:
    """FLOPs of a training run by the rule 6 N D."""
    return 6 * parameters * tokens


def cost(case: Case) -> float:
    """USD of the whole run: published hours at the cluster's published price."""
    return case.hours * float(case.cluster.chip_hour or 0.0)


@OPENING.claim(7, "training cost can be reduced by an order of magnitude", "10", "×")
@OPENING.claim(11, "roughly 10× cheaper than comparable models", "10", "×")
def cheaper(case: Case) -> Answer:
    """FLOPs of Llama 3.1 405B's published run, 6 N D, over traced FLOPs of V3's."""
    llama = case.run("llama_405b")
    ours = case.training_flops() * case.v3.tokens
    flops = six_n_d(llama.parameters, llama.tokens) / ours
    return holds(
        flops,
        "the FLOPs of Llama 3.1 405B, if that is the comparable model; its published "
        f"hours are {llama.hours / case.hours:.1f}× V3's",
    )


@OPENING.claim(11, "a 671B parameter model", "671", "B")
@TABLE.claim(29, "| Total parameters | 671B |", "671", "B")
def parameters(case: Case) -> Answer:
    """Parameters in the trace of a prefill, without the MTP layer."""
    return holds(case.inventory().parameters / 1e9)


@OPENING.claim(11, "for $5.5M", "5.5", "M USD")
@TABLE.claim(33, "| Training cost (estimated) | ~$5.5M |", "5.5", "M USD")
def dollars(case: Case) -> Answer:
    """Published GPU hours × the published price of one."""
    return holds(cost(case) / 1e6)


@TABLE.claim(30, "| Activated parameters per token | 37B |", "37", "B")
def active(case: Case) -> Answer:
    """Parameters that one token meets in the trace, k of E routed experts, embedding included."""
    return holds(case.inventory().active_parameters / 1e9)


@TABLE.claim(31, "| Training tokens | 14.8 trillion |", "14.8", "T")
def tokens(case: Case) -> Answer:
    """Published hours of pre-training over published hours a trillion tokens."""
    return holds(case.v3.pretraining_hours / case.v3.hours_per_trillion_tokens)


@TABLE.claim(32, "| GPU hours | 2.788M H800 hours |", "2.788", "M")
def gpu_hours(case: Case) -> Answer:
    """Sum of the published hours of pre-training, context extension and post-training."""
    return holds(case.hours / 1e6)


@TABLE.claim(34, "| GPUs used | 2,048 H800s |", "2,048", "", exact=True)
def gpus(case: Case) -> Answer:
    """The world of the published plan, PP16 × DP128 with EP64 inside."""
    return holds(case.plan.world)


@TABLE.claim(35, "| Training time | ~2 months |", "2", "months")
def months(case: Case) -> Answer:
    """Published hours over the GPUs of the plan, months of 365/12 days."""
    return holds(case.hours / case.plan.world / 24 / (365 / 12))


@TABLE.claim(37, "a dense 671B model would require ~10× more compute", "10", "×")
def dense_ratio(case: Case) -> Answer:
    """Traced training FLOPs a token with all experts active over those with k."""
    ratio = case.dense_flops() / case.training_flops()
    return wrong(
        ratio,
        "671 / 37 alone is 18, as the seed says ten lines on; attention, which a "
        "dense model has too, makes it less",
    )


@ADVANTAGE.claim(42, r"\approx 5.96 \times 10^{25} \text{ FLOPs}", "5.96", "e25 FLOP")
def dense_flops(case: Case) -> Answer:
    """Traced training FLOPs a token of the same model with all experts active × tokens."""
    return holds(case.dense_flops() * case.v3.tokens / 1e25)


@ADVANTAGE.claim(45, r"\approx 3.3 \times 10^{24} \text{ FLOPs}", "3.3", "e24 FLOP")
def active_flops(case: Case) -> Answer:
    """Traced training FLOPs a token at the run's 4,096 tokens × tokens."""
    by_rule = six_n_d(case.inventory().active_parameters, case.v3.tokens)
    return assuming(
        case.training_flops() * case.v3.tokens / 1e24,
        "6 N D leaves out what attention computes with no parameter, scores and values; the "
        "published 250 GFLOP a token have it",
        by_rule / 1e24,
    )


@ADVANTAGE.claim(47, "~18× compute reduction", "18", "×")
def reduction(case: Case) -> Answer:
    """Traced training FLOPs a token, all experts active over k."""
    found = case.inventory()
    return assuming(
        case.dense_flops() / case.training_flops(),
        "18 is the ratio of parameters; attention's own products are the same in both models",
        found.parameters / found.active_parameters,
    )
