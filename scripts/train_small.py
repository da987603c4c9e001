#!/usr/bin/env python
"""Train a small DeepSeek-V3 in BF16 and in FP8 and compare the loss curves.

    python scripts/train_small.py                 # 300 steps, minutes on one core
    python scripts/train_small.py --steps 60 --window 10

Both runs have the same initial weights, the same batches, FP32 master weights and AdamW; only the
products of attention and feed-forward differ. A third run, in FP32, tells how far BF16 itself
moves a curve. The paper states a relative loss error of FP8 against BF16 "consistently below
0.25 %" (arXiv 2412.19437, section 3.3) for curves of large batches; a batch here has a few hundred
tokens, so both curves are smoothed first: a trailing mean over `--window` steps, which starts at
step `window`. The differences printed are those of the smoothed curves, and of the raw ones
beside them, over all steps and over the second half, where curves are no longer steep. Last, the
weights of each run are evaluated in both precisions on held-out walks: what FP8 costs where the
weights are the same.

The data are a Markov chain: each of the 96 tokens has four possible successors with probabilities
0.5, 0.25, 0.15, 0.1. Knowing nothing costs ln 96 = 4.564 nats a token, the chain itself 1.208.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tabulate import tabulate

from tracer.models import DeepSeek, build
from tracer.models.masters import MasterWeights

# DeepSeek-V3 with every size small, and wide enough for tiles of 128; one width (192) does not
# fill its last tile. 3 layers, the first dense; 8 experts in 4 groups, 2 a token, one shared.
CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 384,
    "moe_intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "initializer_range": 0.06,
}
SEQ = 32  # tokens
SUCCESSORS = (0.5, 0.25, 0.15, 0.1)
PAPER = 0.0025


def batches(
    steps: int, batch: int, seq: int = SEQ, seed: int = 0, held_out: bool = False
) -> Iterator[torch.Tensor]:
    """INT64 [batch, seq + 1] walks through the chain of this seed; other walks if held out."""
    generator = torch.Generator().manual_seed(seed)
    vocab = CONFIG["vocab_size"]
    following = torch.stack(
        [torch.randperm(vocab, generator=generator)[: len(SUCCESSORS)] for _ in range(vocab)]
    )
    weights = torch.tensor(SUCCESSORS).expand(batch, -1)
    if held_out:
        generator.manual_seed(seed + 10**6)
    for _ in range(steps):
        ids = [torch.randint(vocab, (batch,), generator=generator)]
        for _ in range(seq):
            choice = torch.multinomial(weights, 1, generator=generator)
            ids.append(following[ids[-1]].gather(1, choice).squeeze(1))
        yield torch.stack(ids, dim=1)


class Run(NamedTuple):
    """`curve` is the loss in nats a token before each step, on the batch of that step."""

    curve: list[float]
    model: DeepSeek


def loss_of(model: DeepSeek, ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the next token, over ids [batch, seq + 1]."""
    return F.cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())


def train(precision: str, steps: int, *, batch: int = 8, lr: float = 1e-3, seed: int = 0) -> Run:
    """Train from scratch.

    The learning rate warms up over the first tenth and falls as a cosine to a tenth of its peak.
    """
    model: DeepSeek = build(CONFIG, precision=precision, training=True, device="cpu")
    model.init_weights(seed)
    masters = MasterWeights(model.parameters())
    optimizer = torch.optim.AdamW(masters.weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    warm = max(1, steps // 10)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))

    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    curve = []
    for ids in batches(steps, batch, seed=seed):
        loss = loss_of(model, ids)
        loss.backward()
        masters.take_gradients()
        torch.nn.utils.clip_grad_norm_(masters.weights, 1.0)
        optimizer.step()
        masters.write_back()
        rate.step()
        curve.append(loss.item())
    return Run(curve, model)


@torch.no_grad()
def evaluate(model: DeepSeek, precision: str, seed: int = 0, count: int = 4) -> float:
    """Loss of a model's weights on `count` · 4096 held-out tokens, in another precision."""
    other = build(CONFIG, precision=precision, training=True, device="cpu").init_weights()
    other.load_state_dict(model.state_dict())
    losses = [loss_of(other, ids).item() for ids in batches(count, 128, seed=seed, held_out=True)]
    return sum(losses) / len(losses)


def smooth(curve: list[float], window: int) -> list[float]:
    """Trailing means over `window` steps; the first is of steps 0 to window - 1."""
    return [
        sum(curve[i - window : i]) / window for i in range(window, len(curve) + 1)
    ]  # fmt: skip


class Difference(NamedTuple):
    """Of a curve from a reference, relative to the reference."""

    largest: float  # of the absolute values
    mean: float  # of the absolute values
    signed: float  # mean with its sign: above 0 the curve lies higher


def difference(curve: list[float], reference: list[float], window: int = 1) -> Difference:
    """Point by point behind the same smoothing; window 1 is none."""
    pairs = zip(smooth(curve, window), smooth(reference, window), strict=True)
    off = [(a - b) / b for a, b in pairs]
    size = [abs(x) for x in off]
    return Difference(max(size), sum(size) / len(size), sum(off) / len(off))


def main() -> None:
    """Print the curves and their differences."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--window", type=int, default=30)
    p.add_argument("--batch", type=int, default=8, help="sequences of 32 tokens")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=1, help="small products gain little from more")
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    if not 1 <= o.window <= o.steps // 2:
        p.error(f"--window {o.window} is not within 1 and half of --steps {o.steps}")
    names = ("bf16", "fp8", "fp32")
    runs = {n: train(n, o.steps, batch=o.batch, lr=o.lr, seed=o.seed) for n in names}
    curves = {n: run.curve for n, run in runs.items()}
    smoothed = {n: smooth(c, o.window) for n, c in curves.items()}
    rows = []
    for i in range(0, len(smoothed["bf16"]), max(1, len(smoothed["bf16"]) // 12)):
        bf16, fp8, fp32 = (smoothed[n][i] for n in names)
        rows.append([i + o.window, f"{bf16:.4f}", f"{fp8:.4f}", f"{fp32:.4f}",
                     f"{fp8 / bf16 - 1:+.3%}", f"{fp32 / bf16 - 1:+.3%}"])  # fmt: skip
    headers = ["step", "BF16", "FP8", "FP32", "FP8 - BF16", "FP32 - BF16"]
    print(f"loss, nats a token, mean of the {o.window} steps before\n")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), end="\n\n")
    rows = []
    for name in ("fp8", "fp32"):
        for part, start in (("all", 0), ("second half", o.steps // 2)):
            for window in (o.window, 1):
                d = difference(curves[name][start:], curves["bf16"][start:], window)
                rows.append([f"{name.upper()} - BF16", part, window, f"{d.largest:.3%}",
                             f"{d.mean:.3%}", f"{d.signed:+.3%}"])  # fmt: skip
    headers = ["relative", "steps", "window", "largest", "mean", "mean, signed"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), end="\n\n")
    rows = []
    for name, run in runs.items():
        losses = [evaluate(run.model, other, o.seed) for other in ("bf16", "fp8")]
        rows.append([name.upper(), *(f"{x:.4f}" for x in losses),
                     f"{losses[1] / losses[0] - 1:+.3%}"])  # fmt: skip
    headers = ["trained in", "run in BF16", "run in FP8", "FP8 - BF16"]
    print("held-out loss\n")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), end="\n\n")
    largest = difference(curves["fp8"], curves["bf16"], o.window).largest
    print(f"paper: below {PAPER:.2%}; here {largest:.3%}: {'met' if largest < PAPER else 'missed'}")


if __name__ == "__main__":
    main()
