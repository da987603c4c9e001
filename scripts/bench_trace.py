"""How long recording takes, beside the bare model and torch's FlopCounterMode, in one run.

    python scripts/bench_trace.py                     # DeepSeek-V3, forward, and the whole command
    python scripts/bench_trace.py --all               # four models, forward and forward + backward

All on meta: the full 61 layers of DeepSeek-V3 (B=8, S=255), a Llama of 32 layers, a ResNet-50 and a
toy of 10,000 small ops. Each variant runs in turn, several rounds, so that a slow moment of the
machine hits all of them; the table shows the best round and the median of the ratios to the bare
run of the same round.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tracer.capture import Capture
from tracer.cost import price
from tracer.models import build, bundled_config

DEEPSEEK = "deepseek-ai/DeepSeek-V3"


class Case(NamedTuple):
    """A model on meta with its input."""

    model: nn.Module
    x: Tensor


def main() -> None:
    """Print one table for every case and pass."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--all", action="store_true", help="all models, with backward too")
    args = options.parse_args()
    for name in CASES if args.all else ["DeepSeek-V3"]:
        for backward in (False, True) if args.all else (False,):
            print(f"\n{name}, {'forward + backward' if backward else 'forward'}")
            measure(CASES[name](backward), backward, args.rounds)
    wall, peak = cold_command()
    print(
        f"\npython -m tracer.run --hf-config {DEEPSEEK}: {wall:.2f} s cold, {peak / 2**20:.2f} GiB"
    )


def measure(case: Case, backward: bool, rounds: int) -> None:
    """Bare, ours, ours + pricing and FlopCounterMode on one model."""

    def run() -> None:
        if backward:
            case.model.zero_grad(set_to_none=True)
            torch.autograd.backward(case.model(case.x).sum())
        else:
            with torch.no_grad():
                case.model(case.x)

    def ours() -> Capture:
        with Capture(case.model) as capture:
            run()
        return capture

    def counter() -> None:
        with FlopCounterMode(display=False):
            run()

    variants: dict[str, Callable[[], object]] = {
        "bare": run,
        "ours, recording": ours,
        "FlopCounterMode": counter,
        "ours, recording + pricing": lambda: price(ours().trace),
    }
    seconds = race(variants, rounds)
    rows = [
        (
            name,
            f"{min(times):.3f}",
            f"{statistics.median(t / b for t, b in zip(times, seconds['bare'], strict=True)):.2f}",
        )
        for name, times in seconds.items()
    ]
    print(
        tabulate(
            rows, (f"{len(ours().trace):,} ops", "best CPU s", "x bare"), disable_numparse=True
        )
    )


def race(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant, `rounds` times in turn after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, function in variants.items():
            gc.collect()
            start = time.process_time()
            function()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def cold_command() -> tuple[float, int]:
    """Wall seconds and peak KiB of the main command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tracer.run", "--hf-config", DEEPSEEK]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    return wall, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


# -- the models ------------------------------------------------------------------------------------


def deepseek(training: bool) -> Case:
    """61 layers, 671 billion parameters."""
    model = build(bundled_config(DEEPSEEK), training=training)
    return Case(model, torch.zeros(8, 255, dtype=torch.long, device="meta"))


class LlamaBlock(nn.Module):
    """Grouped-query attention and a SwiGLU, the sizes of an 8-billion model."""

    def __init__(self, dim: int = 4096, heads: int = 32, kv_heads: int = 8, ffn: int = 14336):
        super().__init__()
        self.heads, self.kv_heads, self.head = heads, kv_heads, dim // heads
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, kv_heads * self.head, bias=False)
        self.v = nn.Linear(dim, kv_heads * self.head, bias=False)
        self.o = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, ffn, bias=False)
        self.up = nn.Linear(dim, ffn, bias=False)
        self.down = nn.Linear(ffn, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, dim = x.shape
        h = self.norm1(x)
        q = self.q(h).view(batch, seq, self.heads, self.head).transpose(1, 2)
        k = self.k(h).view(batch, seq, self.kv_heads, self.head).transpose(1, 2)
        v = self.v(h).view(batch, seq, self.kv_heads, self.head).transpose(1, 2)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(o.transpose(1, 2).reshape(batch, seq, dim))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def llama(training: bool) -> Case:
    """32 blocks between an embedding and a head."""
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Embedding(128256, 4096), *[LlamaBlock() for _ in range(32)], nn.Linear(4096, 128256)
        ).bfloat16()
        return Case(model, torch.zeros(2, 2048, dtype=torch.long))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width),
        )  # fmt: skip
        self.shortcut = (
            nn.Identity()
            if width_in == 4 * width and stride == 1
            else nn.Sequential(
                nn.Conv2d(width_in, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet(training: bool) -> Case:
    """ResNet-50 on 224 x 224."""
    with torch.device("meta"):
        layers: list[nn.Module] = [
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        ]  # fmt: skip
        width_in = 64
        for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for number in range(blocks):
                layers.append(Bottleneck(width_in, width, stride if number == 0 else 1))
                width_in = 4 * width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)]
        return Case(nn.Sequential(*layers), torch.empty(8, 3, 224, 224))


class Toy(nn.Module):
    """2,500 times a product, an addition, a ReLU and a scaling."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2500):
            x = torch.relu(x @ self.weight + x) * 0.5
        return x


def toy(training: bool) -> Case:
    """10,000 ops, next to no work in each."""
    with torch.device("meta"):
        return Case(Toy(), torch.empty(64, 64))


CASES: dict[str, Callable[[bool], Case]] = {
    "DeepSeek-V3": deepseek,
    "Llama, 32 layers": llama,
    "ResNet-50": resnet,
    "toy, 10,000 ops": toy,
}


if __name__ == "__main__":
    main()
