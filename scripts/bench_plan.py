"""How long a plan takes to price: the first, a second of another pipeline, and a search.

python scripts/bench_plan.py [--search] [--transformers CONFIG.json ...]
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

from tracer.capture.program import load_program
from tracer.errors import UserError
from tracer.parallel.memory import Headroom
from tracer.parallel.plan import Plan
from tracer.predict.training import Assumptions, predict_training
from tracer.study.plans import search

PLANS = (
    ("first plan, traced", "pp=16 ep=64 dp=128 schedule=dualpipe micro_batches=120"),
    ("the same again", "pp=16 ep=64 dp=128 schedule=dualpipe micro_batches=120"),
    ("another pipeline", "pp=8 ep=64 dp=256 schedule=1f1b micro_batches=60"),
    ("another schedule", "pp=16 ep=64 dp=128 schedule=zb1p micro_batches=120"),
    ("other expert groups", "pp=16 ep=32 dp=128 schedule=dualpipe micro_batches=120"),
    ("another tensor cut", "tp=2 sequence_parallel pp=16 ep=32 dp=64 micro_batches=240"),
)
# Of a model of transformers; those that it does not take (experts, TP) are left out.
CUTS = (
    "dp=32 zero=0",  # the first also counts the model's FLOPs
    "dp=64 zero=3",
    "tp=8 dp=8 zero=3",
    "pp=4 dp=16 zero=3 micro_batches=8",
    "ep=8 dp=64 zero=0",
    "ep=8 dp=64 zero=3",
    "ep=16 dp=64 zero=3",
    "ep=8 tp=8 dp=8 zero=0",
)


def of_transformers(configs: list[str]) -> None:
    """A line a plan of each model."""
    predict_training(load_program(configs[0]), Plan.parse("dp=2 zero=3"), "h100_ib")  # imports
    for config in configs:
        program = load_program(config)
        for text in CUTS:
            wall, process = time.perf_counter(), time.process_time()
            try:
                predict_training(program, Plan.parse(text), "h100_ib")
            except UserError:
                continue
            wall, process = time.perf_counter() - wall, time.process_time() - process
            print(f"{Path(config).stem:14} {text:34} {wall:7.2f} s wall {process:7.2f} s process")


def main() -> int:
    """Print a line a measurement: wall and process seconds."""
    p = argparse.ArgumentParser()
    p.add_argument("--search", action="store_true", help="also all plans of 2,048 GPUs")
    p.add_argument("--transformers", nargs="+", metavar="CONFIG", help="plans of these instead")
    options = p.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if options.transformers:
        of_transformers(options.transformers)
        return 0
    program = load_program("deepseek-ai/DeepSeek-V3", dtype="fp8")
    for name, text in PLANS:
        plan = Plan.parse(f"{text} zero=1 recompute=latent moments=bf16")
        wall, process = time.perf_counter(), time.process_time()
        predict_training(program, plan, "h800_ib")
        wall, process = time.perf_counter() - wall, time.process_time() - process
        print(f"{name:20} {wall:7.2f} s wall {process:7.2f} s process")
    if options.search:
        wall, process = time.perf_counter(), time.process_time()
        found = search(
            program,
            2048,
            "h800_ib",
            global_batch=15360,
            assume=Assumptions(headroom=Headroom(0.05)),
            like=Plan(zero=1, recompute="selective", moments="bf16"),
            executor="local",
        )
        wall, process = time.perf_counter() - wall, time.process_time() - process
        workers = resource.getrusage(resource.RUSAGE_CHILDREN)
        process += workers.ru_utime + workers.ru_stime
        count = len(found.ranked) + len(found.dropped)
        print(f"search, {count:,} plans {wall:7.2f} s wall {process:7.2f} s process")
    return 0


if __name__ == "__main__":
    sys.exit(main())
