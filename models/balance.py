"""Balance of experts without an auxiliary loss, and the losses that it replaces.

arXiv 2412.19437, section 2.1.2 (and 2408.15664, which introduced it): a bias per expert is added to
the scores when experts are chosen, not when they are weighed (see `moe.Gate`); after each step it
falls for experts with too many tokens and rises for those with too few. No gradient is involved.

Shapes: T tokens, E experts, k experts a token, B sequences.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from .moe import Gate


def load_of(expert_Tk: torch.Tensor, experts: int) -> torch.Tensor:
    """Tokens that each expert was chosen by, INT64 [E]."""
    return torch.bincount(expert_Tk.flatten(), minlength=experts)


def imbalance(load_E: torch.Tensor) -> float:
    """Largest load over the mean; 1 is perfect, E/k all tokens in the same k experts."""
    load_E = load_E.double()
    return (load_E.max() / load_E.mean()).item()


@torch.no_grad()
def sign_rule_(bias_E: torch.Tensor, load_E: torch.Tensor, speed: float) -> None:
    """The paper's: `speed` (γ, 0.001 in V3) down where the load is above the mean, up where below.

    An expert at the mean keeps its bias. The size of the excess does not count, so the bias ends
    by swinging within about γ.
    """
    load_E = load_E.double()
    bias_E += speed * (load_E.mean() - load_E).sign().to(bias_E.dtype)


@torch.no_grad()
def proportional_rule_(bias_E: torch.Tensor, load_E: torch.Tensor, speed: float) -> None:
    """By `speed` times (1 - load/mean): far off moves fast, nearly balanced hardly moves."""
    load_E = load_E.double()
    bias_E += speed * (1 - load_E / load_E.mean()).to(bias_E.dtype)


def auxiliary_loss(
    score_TE: torch.Tensor, expert_Tk: torch.Tensor, alpha: float, sequences: int = 1
) -> torch.Tensor:
    """α·Σ f_e·P_e, the mean over sequences: equations 17 to 20 of the paper.

    f is the load over its mean (a constant to autograd), P the mean of an expert's share of the
    scores. Perfectly balanced it is α.

    Args:
        score_TE: scores as the gate made them, all positive (`Gate.scores`).
        expert_Tk: the choice.
        alpha: 0.0001 in V3, where it only complements the bias.
        sequences: B, equally long and one after another in T; 1 takes the whole batch as one, as
            in Switch Transformers (arXiv 2101.03961, equation 4).
    """
    experts = score_TE.shape[1]
    chosen_TE = torch.zeros_like(score_TE).scatter_(1, expert_Tk, 1.0)
    share_TE = score_TE / score_TE.sum(dim=-1, keepdim=True)
    f_BE = chosen_TE.unflatten(0, (sequences, -1)).mean(dim=1) * (experts / expert_Tk.shape[1])
    p_BE = share_TE.unflatten(0, (sequences, -1)).mean(dim=1)
    return alpha * (f_BE * p_BE).sum(dim=-1).mean()


Rule = Callable[[torch.Tensor, torch.Tensor], None]


class Balancer:
    """Counts the load of every gate of a model while it trains, and moves the biases.

        balancer = Balancer(model, partial(sign_rule_, speed=0.001))
        ... forward, backward, optimizer.step() ...
        balancer.update()

    Loads add up over micro-batches until `update`. Only forwards in training mode count.

    Args:
        model: with gates that have a bias (`topk_method` "noaux_tc").
        rule: takes (bias [E], load [E]) and changes the bias; the paper's with γ = 0.001 if None.

    Raises:
        ValueError: no gate has a bias.
    """

    def __init__(self, model: nn.Module, rule: Rule | None = None):
        self.rule = rule or partial(sign_rule_, speed=0.001)
        self.gates = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, Gate) and module.e_score_correction_bias is not None
        }
        if not self.gates:
            raise ValueError("no gate with a bias: the model has no experts, or not 'noaux_tc'")
        self.load: dict[str, torch.Tensor] = {}
        self._hooks = [
            gate.register_forward_hook(partial(self._count, name))
            for name, gate in self.gates.items()
        ]

    def _count(self, name: str, gate: Gate, inputs: tuple, output: tuple) -> None:
        if gate.training:
            load_E = load_of(output[1], gate.config.n_routed_experts)
            self.load[name] = self.load.get(name, 0) + load_E

    def update(self) -> dict[str, float]:
        """Move the biases by what was counted, count anew; the imbalance by gate."""
        result = {}
        for name, load_E in self.load.items():
            self.rule(self.gates[name].e_score_correction_bias, load_E)
            result[name] = imbalance(load_E)
        self.load.clear()
        return result

    def close(self) -> None:
        """Stop counting."""
        for hook in self._hooks:
            hook.remove()
