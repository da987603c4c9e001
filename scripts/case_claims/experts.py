"""DeepSeekMoE: sizes, what is sent, the gate, and balance without an auxiliary loss."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from tracer.models import Config
from tracer.models.balance import (
    Balancer,
    auxiliary_loss,
    imbalance,
    load_of,
    proportional_rule_,
    sign_rule_,
)
from tracer.models.moe import Gate
from tracer.parallel.expert_traffic import Routing
from tracer.parallel.experts import contiguous, expert_load, uniform
from tracer.parallel.experts.copies import copies_of
from tracer.parallel.experts.routing import gate

from .case import Case
from .claim import Answer, Section, assuming, holds, wrong

SIZES = Section("DeepSeekMoE Architecture")
FINE = Section("Why Fine-grained?")
SHARED = Section("Shared Experts")
BALANCE = Section("Auxiliary-Loss-Free Load Balancing")


@SIZES.claim(165, "| Total experts | 256 |", "256", "", exact=True)
def routed(case: Case) -> Answer:
    """Rows of the traced gate."""
    return holds(case.shapes("mlp.gate.weight")[0])


@SIZES.claim(166, "| Experts per token | 8 |", "8", "", exact=True)
def per_token(case: Case) -> Answer:
    """Experts that the model's gate returns for a token, on the CPU."""
    return holds(small_gate(case)(torch.zeros(3, 32))[1].shape[1])


@SIZES.claim(167, "| Shared experts | 1 |", "1", "", exact=True)
def shared(case: Case) -> Answer:
    """Width of the traced shared expert over that of a routed one."""
    one = case.shapes("mlp.experts.gate_proj")[1]
    return holds(case.shapes("shared_experts.gate_proj.weight")[0] // one)


@SIZES.claim(168, r"| Expert dimension | $d_{\text{ffn}} / 4$ |", "4", "= d_ffn / width")
def width(case: Case) -> Answer:
    """Width of the traced dense feed-forward over that of an expert."""
    dense = case.shapes("layers.0.mlp.gate_proj.weight")[0]
    return wrong(
        dense / case.shapes("mlp.experts.gate_proj")[1],
        "18,432 against 2,048; a token's "
        "8 routed experts and the shared one are together as wide as a dense layer",
    )


@FINE.claim(172, "DeepSeek uses 4× smaller experts with 4× more activated", "4", "× narrower")
def narrower(case: Case) -> Answer:
    """Width of the traced dense feed-forward over that of an expert."""
    return width(case)


def copies(case: Case, routing: Routing) -> float:
    """Expected copies of a token that cross to another node of the plan's EP group."""
    return copies_of(routing, case.expert_group).crossing


@FINE.claim(177, r"\times 2 = 4BSd", "4", "d bytes a token")
def coarse_volume(case: Case) -> Answer:
    """Expected copies of 8 experts, top 2, that cross between nodes of the plan's group,
    in BF16.
    """
    coarse = Routing(8, 2)
    return holds(
        2 * copies(case, coarse),
        "one way, an eighth of the copies staying on its node; the way back is as much again",
    )


@FINE.claim(180, r"\times 2 = 16BSd", "16", "d bytes a token")
def fine_volume(case: Case) -> Answer:
    """Expected copies of the model's routing that cross between nodes of the plan's group,
    in BF16.
    """
    return wrong(
        2 * copies(case, case.routing),
        "a token goes once to a node, however many of "
        "its experts are there, and the gate keeps it to 4 of 8 nodes: over the network "
        "it is far from 4 times the coarse volume. In FP8 the way there is half of that",
    )


@FINE.claim(
    182,
    "**better load balancing** due to more fine-grained routing decisions",
    None,
    "× less excess",
)
@functools.cache
def fine_balance(case: Case) -> Answer:
    """Excess of the slowest rank over the mean, 8 large experts top 2 over the model's, uniform."""
    ranks, tokens, m = 8, 32_768, case.model
    per_node = case.cluster.domain
    coarse = expert_load(uniform(8, 2), contiguous(8, ranks, per_node), tokens, case.seed)
    fine = expert_load(
        uniform(m.n_routed_experts, m.num_experts_per_tok),
        contiguous(m.n_routed_experts, ranks, per_node),
        tokens,
        case.seed,
    )
    return holds(
        (coarse.imbalance - 1) / (fine.imbalance - 1),
        "of the slowest of 8 GPUs, by chance alone, since more and smaller pieces average out",
    )


class SeedMoE(nn.Module):
    """The seed's first line of `__init__`: a module is set before `super().__init__()`."""

    def __init__(self) -> None:
        self.gate = nn.Linear(2, 2)


@SHARED.claim(189, "class DeepSeekMoE(nn.Module):")
@BALANCE.claim(236, "class AuxFreeMoE(nn.Module):")
def constructs(case: Case) -> Answer:
    """The seed's constructor, restated, under torch."""
    try:
        SeedMoE()
    except AttributeError as error:
        return wrong(
            f"AttributeError: {error}",
            "`super().__init__()` is missing; in AuxFreeMoE "
            "n_active is never set either, and the dispatch is not written",
        )
    return holds("constructs", "torch accepts it")


@SHARED.claim(191, "self.shared_experts = nn.ModuleList([", None, "columns")
def shared_width(case: Case) -> Answer:
    """Rows of the traced shared expert's gate_proj; the seed's is one d_expert."""
    return holds(
        case.shapes("shared_experts.gate_proj.weight")[0],
        "as wide as a routed expert",
        float(case.shapes("mlp.experts.gate_proj")[1]),
    )


def small_gate(case: Case) -> Gate:
    """The model's gate over 32 features, on the CPU, with drawn weights."""
    import json

    config = Config.from_hf({**json.loads(case.config), "hidden_size": 32})
    gate = Gate(config, dtype=torch.float32, device="cpu")
    gate.init_weights(0.3, case.generator())
    return gate


@SHARED.claim(207, "routing_weights = F.softmax(top_k_logits, dim=-1)", None, "= sum of weights")
@BALANCE.claim(248, "routing_weights = F.softmax(top_k_logits, dim=-1)", None, "= sum of weights")
def gate_weights(case: Case) -> Answer:
    """Sum of a token's weights from the model's gate, on the CPU."""
    weights, _ = small_gate(case)(torch.randn(64, 32, generator=case.generator()))
    return wrong(
        round(weights.sum(dim=1).mean().item(), 4),
        "V3 takes the sigmoid of every score, "
        "divides by their sum and multiplies by 2.5; groups of experts are dropped first",
        1.0,
    )


@BALANCE.claim(224, r"\alpha \sum_{i=1}^{N} f_i \cdot P_i", None, "= α at perfect balance")
def auxiliary(case: Case) -> Answer:
    """The library's auxiliary loss over the seed's, both of perfectly balanced scores."""
    m = case.model
    experts, top = m.n_routed_experts, m.num_experts_per_tok
    score = torch.full((experts, experts), 0.5, dtype=torch.float64)
    chosen = (torch.arange(experts)[:, None] + torch.arange(top)) % experts
    ours = auxiliary_loss(score, chosen, 1.0).item()
    fraction = load_of(chosen, experts).double() / len(chosen)
    seed = (fraction * (score / score.sum(1, keepdim=True)).mean(0)).sum().item()
    return assuming(
        ours,
        "α takes up the factor N / k that V3 and Switch have in f, so that "
        "balance is worth α whatever the number of experts",
        ours * top / experts,
        seed,
    )


@BALANCE.claim(237, "update_rate=0.01", "0.01", "")
def speed(case: Case) -> Answer:
    """The published γ, which is the default of the library's `Balancer`."""
    published = float(case.v3.bias_speed)
    default = Balancer(_layer(case)).rule.keywords["speed"]  # type: ignore[attr-defined]
    same = "the library's default" if default == published else f"the library's is {default:g}"
    return wrong(
        published,
        f"ten times faster than V3's, which is {same}; and V3 moves by the "
        "sign of the excess, not in proportion",
    )


def _layer(case: Case) -> nn.Module:
    return nn.ModuleDict({"gate": small_gate(case)})


@BALANCE.claim(244, "logits = gate(x) + self.expert_bias", None, "largest change of a weight")
def bias_in_weights(case: Case) -> Answer:
    """Largest change of a weight by a bias of 0.5 for one expert, tokens whose choice stays."""
    model_gate = small_gate(case)
    x = torch.randn(512, 32, generator=case.generator())
    bias = torch.zeros(model_gate.config.n_routed_experts)
    bias[model_gate(x)[1].mode().values[0]] = 0.5
    pushed = bias.clone()
    top, logits = model_gate.config.num_experts_per_tok, nn.functional.linear(x, model_gate.weight)

    def seeds() -> tuple[torch.Tensor, torch.Tensor]:
        value, chosen = (logits + bias).topk(top)
        return value.softmax(1), chosen

    theirs = _moved(seeds, bias)
    assert model_gate.e_score_correction_bias is not None
    model_gate.e_score_correction_bias.data = pushed
    ours = _moved(lambda: model_gate(x), pushed)
    return wrong(
        theirs,
        "in the seed's softmax: the bias is in what experts weigh, and so in the "
        f"output and its gradient. V3's shifts only the choice: there it is {ours:.3f}",
    )


def _moved(weigh: Callable[[], tuple[torch.Tensor, torch.Tensor]], bias: torch.Tensor) -> float:
    """Largest change of a token's weights when the bias is set to 0, where its experts stay."""

    def by_expert() -> torch.Tensor:
        with torch.no_grad():
            weight, chosen = weigh()
        return torch.zeros(len(weight), len(bias)).scatter(1, chosen, weight)

    after = by_expert()
    bias.zero_()
    before = by_expert()
    same = ((after > 0) == (before > 0)).all(1)
    return (after - before)[same].abs().max().item()


@BALANCE.claim(
    265, "This achieves balanced loading without gradient interference.", None, "largest over mean"
)
@functools.cache
def balances(case: Case) -> Answer:
    """Largest load over the mean of a skewed gate after 120 updates by the seed's rule at 0.01."""
    start, by_seed = _balanced(case, proportional_rule_, 0.01)
    _, by_sign = _balanced(case, sign_rule_, 0.01)
    return assuming(
        round(by_seed, 1),
        f"from {start:.1f} at first; the rule by sign ends at "
        f"{by_sign:.1f}. It does balance a gate that stands still, and the gradient "
        "is untouched if the bias stays out of the weights, see above",
    )


def _balanced(
    case: Case, rule: Callable[[torch.Tensor, torch.Tensor, float], None], speed: float
) -> tuple[float, float]:
    """Imbalance before and after, of scores with 1.5 standard deviations between experts."""
    m = case.model
    experts, top = m.n_routed_experts, m.num_experts_per_tok
    generator = case.generator()
    popular = 1.5 * torch.randn(experts, generator=generator, dtype=torch.float64)
    noise = torch.randn(512, experts, generator=generator, dtype=torch.float64)
    score = (popular + noise).sigmoid()
    bias, loads = torch.zeros(experts, dtype=torch.float64), []
    for _ in range(120):
        chosen = torch.from_numpy(gate((score + bias).numpy(), top))  # quicker than topk
        load = load_of(chosen, experts)
        loads.append(imbalance(load))
        rule(bias, load, speed)
    return loads[0], loads[-1]
