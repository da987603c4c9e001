#!/usr/bin/env python
"""Expert load with the bias of DeepSeek-V3, with an auxiliary loss, and with nothing.

    python scripts/balance.py                # 400 steps each, about a minute
    python scripts/balance.py --mean 1     # a milder skew

One MoE layer of 16 routed experts (2 a token) and a shared one learns a regression by squared
error. The data are skewed as text is: 64 kinds of token with Zipf frequencies (1/rank), around a
common mean that makes a few experts everybody's favourites at the start. Each kind has its own
linear map to the target. Load is counted on 16,384 tokens that are not trained on, as the largest
over the mean: 1 is perfect, 8 is all tokens at the same two experts. The loss is relative to the
variance of the target, on the same tokens, and without the auxiliary term.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from tabulate import tabulate

from tracer.models import Config
from tracer.models.balance import (
    Balancer,
    auxiliary_loss,
    imbalance,
    load_of,
    proportional_rule_,
    sign_rule_,
)
from tracer.models.linear import Linear, Precision
from tracer.models.moe import Experts, Gate, MoE

DIM, KINDS = 64, 64
LR = 3e-3
MEAN = 2.0  # of the common mean; that of kinds is 0.7, that of tokens within a kind 0.5
CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 1,
    "hidden_size": DIM,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
}


class Task:
    """Where tokens and targets come from."""

    def __init__(self, mean: float, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.mean = mean * self._normal(DIM)
        self.centres = self._normal(KINDS, DIM)
        self.maps = self._normal(KINDS, DIM, DIM) * DIM**-0.5
        self.frequency = 1.0 / torch.arange(1, KINDS + 1)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def draw(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, [T, DIM] each."""
        kind = torch.multinomial(self.frequency, tokens, True, generator=self.generator)
        x = self.mean + 0.7 * self.centres[kind] + 0.5 * self._normal(tokens, DIM)
        y = torch.empty_like(x)
        for k in range(KINDS):
            y[kind == k] = x[kind == k] @ self.maps[k]
        return x, y


class Method(NamedTuple):
    """How balance is sought: by a rule for the bias, by α of an auxiliary loss, or not."""

    name: str
    rule: Callable[[torch.Tensor, torch.Tensor, float], None] | None = None
    speed: float = 0.0  # at first; it falls with the learning rate (V3 ends with 0)
    alpha: float = 0.0


METHODS = (
    Method("none"),
    Method("bias, sign, 0.01", sign_rule_, 0.01),
    Method("bias, proportional, 0.03", proportional_rule_, 0.03),
    Method("auxiliary loss, 0.001", alpha=0.001),
    Method("auxiliary loss, 0.01", alpha=0.01),
    Method("auxiliary loss, 0.1", alpha=0.1),
)


class Result(NamedTuple):
    """`load` is (step, largest over mean) before training, on the way and after; `loss` at last."""

    method: str
    load: list[tuple[int, float]]
    loss: float


def run(
    method: Method, steps: int, *, tokens: int = 1024, mean: float = MEAN, seed: int = 0
) -> Result:
    """Train one layer; the same task, weights and batches for every method."""
    task = Task(mean, seed)
    held_x, held_y = task.draw(16384)
    pool_x, pool_y = task.draw(65536)
    model = MoE(Config.from_hf(CONFIG), Precision(torch.float32, training=True), "cpu")
    generator = torch.Generator().manual_seed(seed + 1)
    for module in model.modules():
        if isinstance(module, Linear | Gate | Experts):
            module.init_weights(0.1, generator)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0
    )
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    balancer = Balancer(model) if method.rule else None
    gate, experts = model.gate, model.gate.config.n_routed_experts
    loads, marks = [], {0, steps // 10, steps // 2, steps}

    def measure(step: int) -> float:
        model.eval()
        with torch.no_grad():
            loads.append((step, imbalance(load_of(gate(held_x)[1], experts))))
            loss = (model(held_x) - held_y).square().mean() / held_y.var()
        model.train()
        return loss.item()

    for step in range(steps):
        if step in marks:
            measure(step)
        picked = torch.randint(len(pool_x), (tokens,), generator=task.generator)
        x, y = pool_x[picked], pool_y[picked]
        loss = (model(x) - y).square().mean() / held_y.var()
        if method.alpha:
            loss = loss + auxiliary_loss(gate.scores(x), gate(x)[1], method.alpha)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if balancer:
            speed = method.speed * rate.get_last_lr()[0] / LR
            balancer.rule = partial(method.rule, speed=speed)
            balancer.update()
    return Result(method.name, loads, measure(steps))


def main() -> None:
    """Print a table."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--mean", type=float, default=MEAN, help="common to tokens: the skew")
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args()
    if o.steps < 10:
        p.error(f"--steps {o.steps} is less than 10")
    torch.set_num_threads(1)
    results = [run(method, o.steps, mean=o.mean, seed=o.seed) for method in METHODS]
    headers = ["method", *(f"step {s}" for s, _ in results[0].load), "loss"]
    rows = [[r.method, *(f"{x:.2f}" for _, x in r.load), f"{r.loss:.4f}"] for r in results]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
