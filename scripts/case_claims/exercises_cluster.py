"""Exercises 5 and 6: experts on 2,048 GPUs, cost of a dense model."""

from __future__ import annotations

import functools

from tracer.parallel.expert_traffic import Routing, spread
from tracer.parallel.experts import contiguous, expert_load, round_robin, uniform
from tracer.parallel.groups import packed

from .case import Case
from .claim import Answer, Section, assuming, wrong
from .efficiency import mfu
from .specification import cost, six_n_d

FIVE = Section("Exercise 5: Expert Communication")
SIX = Section("Exercise 6: Cost Comparison")

# -- 5 ---------------------------------------------------------------------------------------------


def crossing(case: Case, ranks: int) -> float:
    """Share of (token, expert) pairs that leave their node, experts spread over `ranks` GPUs."""
    m = case.model
    routing = Routing(m.n_routed_experts, m.num_experts_per_tok)
    return spread(routing, packed(ranks, case.cluster)).pairs_crossing / routing.top_k


@FIVE.claim(
    1138, "experts_per_gpu = num_experts // num_gpus  # 256/2048 = 0.125", "0.125", "experts a GPU"
)
def per_gpu(case: Case) -> Answer:
    """Experts over EP of the published plan; the code's is an integer division."""
    return wrong(
        case.sizes.experts / case.plan.ep,
        "// gives 0. Layers are spread over 16 stages "
        "as well, so 128 GPUs and not 2,048 share a layer's experts",
    )


@FIVE.claim(1174, "- 8× replication possible per expert", "8", "copies", exact=True)
def replicas(case: Case) -> Answer:
    """Ranks of a stage over EP of the published plan."""
    return wrong(case.plan.ranks_per_stage // case.plan.ep, "2,048 GPUs are 16 stages of 128")


@FIVE.claim(1163, "dst_gpu = placement.expert_to_gpu.get(expert,", None, "% leave the node")
def lookup(case: Case) -> Answer:
    """Pairs that leave their node with every expert on a GPU of its own, % (`expert_traffic`)."""
    return wrong(
        100 * crossing(case, case.model.n_routed_experts),
        ""
        "keys are (expert, replica), so that .get(expert) never finds one and falls back "
        "to GPU `expert`; no replica is ever chosen, let alone the nearest",
    )


@FIVE.claim(1191, "| Naive round-robin | 87.5% |", "87.5", "% leave the node")
@functools.cache
def naive(case: Case) -> Answer:
    """Pairs that leave their node, one expert a GPU (`expert_traffic`)."""
    m, plan = case.model, case.plan
    routing = uniform(m.n_routed_experts, m.num_experts_per_tok)
    place = round_robin(m.n_routed_experts, plan.ep, case.cluster.domain)
    at_plan = 1 - 1 / place.nodes
    load = expert_load(routing, place, plan.ep * 64, case.seed)
    return assuming(
        100 * crossing(case, m.n_routed_experts),
        "the 8 nodes of EP 64, of which a "
        "token is on one; even then it is pairs, and sent once a node a token crosses "
        f"{load.remote_nodes_per_token:.1f} times, not 7",
        100 * at_plan,
    )


@FIVE.claim(1192, "| Node-local groups | 50% |", "50", "% leave the node")
def halves(case: Case) -> Answer:
    """Pairs that leave their node with all experts in each half of the nodes of EP 64."""
    return wrong(
        100 * crossing(case, case.plan.ep // 2),
        "half of the nodes is 128 of them in the "
        "seed, of which a token is on one: 99 %. Even with 4 nodes to a copy, here, most "
        "pairs leave",
    )


@FIVE.claim(1193, "| Hierarchical (8-node) | 12.5% |", "12.5", "% leave the node")
@FIVE.claim(1195, r"12.5\% inter-node comm", "12.5", "% leave the node")
def hierarchical(case: Case) -> Answer:
    """Pairs that leave their node with all experts in each 8 nodes, the published EP 64."""
    return wrong(
        100 * crossing(case, case.plan.ep),
        "12.5 % is what stays; 8-expert groups on 64 "
        "GPUs hold 8 of 256 experts, so 31 of 32 pairs leave the group",
    )


@FIVE.claim(1183, "Inter-node comm: ~12.5% (1 in 8 experts cross boundary)", None, "copies cross")
@functools.cache
def design(case: Case) -> Answer:
    """Nodes that a token crosses to, of EP 64 in order, with the gate's limit to groups
    (`expert_load`).
    """
    m, plan = case.model, case.plan
    place = contiguous(m.n_routed_experts, plan.ep, case.cluster.domain)
    limited = uniform(m.n_routed_experts, m.num_experts_per_tok, m.n_group, m.topk_group)
    load = expert_load(limited, place, plan.ep * 64, case.seed)
    inside = 2 * case.elements(".experts.") / plan.pp / case.cluster.domain / 1e9
    return wrong(
        load.remote_nodes_per_token,
        "that is V3's own design: one group of "
        "the gate a node, at most 4 of 8 nodes, sent once a node and on over NVLink. "
        "Nothing crosses if each node holds all experts (EP 8), which is the least there "
        f"is: {inside:.1f} GB of BF16 experts a GPU at PP 16, twice that in DualPipe, and "
        "gradients of each expert summed over 16 nodes",
    )


# -- 6 ---------------------------------------------------------------------------------------------


@SIX.claim(1202, r"= 3.29 \times 10^{24}$ FLOPs", "3.29", "e24 FLOP")
@SIX.claim(1228, r"= 3.29 \times 10^{24} \text{ FLOPs}", "3.29", "e24 FLOP")
def flops(case: Case) -> Answer:
    """Traced training FLOPs a token × tokens."""
    rule = six_n_d(case.inventory().active_parameters, case.v3.tokens)
    return assuming(
        case.training_flops() * case.v3.tokens / 1e24,
        "6 N D, without attention's own products",
        rule / 1e24,
    )


@SIX.claim(1206, r"$N_{opt} = 0.7 \times D^{0.5}$ (approximate)", None, "×")
def optimum(case: Case) -> Answer:
    """Parameters for V3's tokens by D = 20 N, which the seed takes below, over those by
    this rule.
    """
    tokens = case.v3.tokens
    return wrong(
        tokens / 20 / (0.7 * tokens**0.5),
        f"0.7 √D is {0.7 * tokens**0.5 / 1e6:.1f} M "
        "parameters for 14.8 T tokens; the square root is of compute",
    )


def chinchilla(compute: float) -> float:
    """Parameters of a dense model with 20 tokens a parameter: C = 120 N²."""
    return (compute / 120) ** 0.5


@SIX.claim(1213, r"= 165B \text{ parameters}", "165", "B")
def dense_size(case: Case) -> Answer:
    """√(C / 120) with traced C."""
    rule = six_n_d(case.inventory().active_parameters, case.v3.tokens)
    return assuming(
        chinchilla(case.training_flops() * case.v3.tokens) / 1e9,
        "C by 6 N D",
        chinchilla(rule) / 1e9,
    )


DENSE, DENSE_TOKENS = 300e9, 3e12  # the exercise's guess at an equal dense model


@SIX.claim(1225, r"= 5.4 \times 10^{24} \text{ FLOPs}", "5.4", "e24 FLOP")
def dense_compute(case: Case) -> Answer:
    """The published run of Llama 3.1 405B by 6 N D; under the assumption, the exercise's guess."""
    llama = case.run("llama_405b")
    return assuming(
        six_n_d(llama.parameters, llama.tokens) / 1e24,
        "a dense equal of 300 B "
        "parameters and 3 T tokens is a guess, with nothing published behind it; ours is "
        "a dense model that was published, seven times more",
        six_n_d(DENSE, DENSE_TOKENS) / 1e24,
    )


def hours_at(case: Case, compute: float, share: float) -> float:
    """GPU hours at a share of the dense BF16 peak."""
    return compute / (share * float(case.chip.peak["bf16"])) / 3600


@SIX.claim(1234, "| 3.0M |", "3.0", "M hours")
def dense_hours(case: Case) -> Answer:
    """5.4e24 FLOP at the run's MFU."""
    guess = six_n_d(DENSE, DENSE_TOKENS)
    return assuming(
        hours_at(case, guess, mfu(case)) / 1e6,
        "50 % MFU; here the seed takes the dense 989 TFLOP/s after all",
        hours_at(case, guess, 0.5) / 1e6,
    )


@SIX.claim(1235, "| 1.8M |", "1.8", "M hours")
def v3_hours(case: Case) -> Answer:
    """Published hours."""
    rule = six_n_d(case.inventory().active_parameters, case.v3.tokens)
    return assuming(
        case.hours / 1e6, "50 % MFU, when the hours are published", hours_at(case, rule, 0.5) / 1e6
    )


@SIX.claim(1234, "| $6.0M |", "6.0", "M USD")
def dense_cost(case: Case) -> Answer:
    """5.4e24 FLOP at the run's MFU × the published price of an hour."""
    guess, price = six_n_d(DENSE, DENSE_TOKENS), float(case.cluster.chip_hour or 0.0)
    return assuming(
        price * hours_at(case, guess, mfu(case)) / 1e6,
        "50 % MFU",
        price * hours_at(case, guess, 0.5) / 1e6,
    )


@SIX.claim(1235, "| $3.6M |", "3.6", "M USD")
def v3_cost(case: Case) -> Answer:
    """Published hours × the published price of one."""
    return wrong(
        cost(case) / 1e6, "the seed has 5.58 M itself, above; 3.6 M rests on an MFU of 50 %"
    )


@SIX.claim(1237, r"1.6\times \text{ cheaper than equivalent dense model}", "1.6", "×")
def times_cheaper(case: Case) -> Answer:
    """5.4e24 FLOP over the traced FLOPs of the run, at equal MFU."""
    guess = six_n_d(DENSE, DENSE_TOKENS)
    rule = six_n_d(case.inventory().active_parameters, case.v3.tokens)
    llama = case.run("llama_405b")
    return assuming(
        guess / case.training_flops() / case.v3.tokens,
        "the guess above, both by 6 N D; "
        f"against the published hours of Llama 3.1 405B it is {llama.hours / case.hours:.0f}×",
        guess / rule,
    )


@SIX.claim(1240, "- Lower inference cost (37B vs 300B activated)", None, "B read")
@functools.cache
def inference(case: Case) -> Answer:
    """Parameters that a decode batch of 256 tokens reads, B: experts hit in expectation, and the
    rest.
    """
    m, batch = case.model, 256
    routing = uniform(m.n_routed_experts, m.num_experts_per_tok)
    place = contiguous(m.n_routed_experts, 1, 1)
    read = expert_load(routing, place, batch, case.seed).experts_read[0] / m.n_routed_experts
    experts = case.elements(".experts.")
    whole = experts * read + case.inventory().parameters - experts
    return assuming(
        whole / 1e9,
        "lower in FLOPs, and in bytes only for few tokens; a "
        "batch meets nearly all experts, twice the dense model's 300 B, on many GPUs",
    )
