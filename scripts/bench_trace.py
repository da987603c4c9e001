"""How long recording takes, beside the bare model and torch's FlopCounterMode, in one run.

    python scripts/bench_trace.py

All on the full 61 layers of DeepSeek-V3 on meta, B=8, S=255: a bare forward, ours recording, ours
recording and pricing, and FlopCounterMode. Every variant runs in turn, several rounds, so that a
slow moment of the machine hits all of them; the table shows the best round and the median of the
ratios to the bare forward of the same round. Then the whole command, cold, in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from tracer.capture import Capture
from tracer.cost import price
from tracer.models import build, bundled_config

MODEL = "deepseek-ai/DeepSeek-V3"


def main() -> None:
    """Print both tables."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--backward", action="store_true", help="forward and backward")
    args = options.parse_args()

    model = build(bundled_config(MODEL), training=args.backward)
    ids = torch.zeros(8, 255, dtype=torch.long, device="meta")

    def run() -> None:
        if args.backward:
            model.zero_grad(set_to_none=True)
            torch.autograd.backward(model(ids).sum())
        else:
            with torch.no_grad():
                model(ids)

    def ours() -> Capture:
        with Capture(model) as capture:
            run()
        return capture

    def counter() -> None:
        with FlopCounterMode(display=False):
            run()

    variants: dict[str, Callable[[], object]] = {
        "bare meta forward": run,
        "ours, recording": ours,
        "ours, recording + pricing": lambda: price(ours().trace),
        "FlopCounterMode": counter,
    }
    seconds = race(variants, args.rounds)
    bare = seconds["bare meta forward"]
    rows = [
        (
            name,
            f"{min(times):.3f}",
            f"{statistics.median(t / b for t, b in zip(times, bare, strict=True)):.2f}",
        )
        for name, times in seconds.items()
    ]
    print(f"{len(ours().trace):,} ops")
    print(tabulate(rows, ("variant", "best s", "x bare"), disable_numparse=True))

    wall, peak = cold_command()
    print(f"\npython -m tracer.run --hf-config {MODEL}: {wall:.2f} s cold, {peak / 2**20:.2f} GiB")


def race(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant, `rounds` times in turn after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, function in variants.items():
            start = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def cold_command() -> tuple[float, int]:
    """Wall seconds and peak KiB of the main command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tracer.run", "--hf-config", MODEL]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    return wall, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


if __name__ == "__main__":
    main()
