#!/usr/bin/env python
"""Kernel evaluations a second on one core, family by family, against a plain roofline's.

    python scripts/bench_kernels.py

Each family gets a million random shapes in arrays that stay in the cache. The ratio compares with
`max(compute, memory)` of the same shapes in the same run, so that it holds on a busy machine too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import numpy as np

from tracer.hardware import load_chip
from tracer.machine.calibration import calibration_of
from tracer.machine.families import PRECISIONS, predict, roofline
from tracer.machine.measured import COLUMNS

CHUNK = 1 << 13  # rows at a time: a few dozen temporaries of 64 KiB
RANGES = {
    "m": (1, 32768), "n": (128, 65536), "k": (128, 65536), "heads": (1, 128), "kv_heads": (1, 8),
    "batch": (1, 256), "keys": (128, 131072), "size": (64, 256), "tokens": (1, 16384),
    "top_k": (1, 8), "experts": (8, 256), "hidden": (1024, 8192), "inner": (128, 4096),
    "bytes": (512, 1 << 29), "elements": (256, 1 << 28), "ranks": (2, 8),
}  # fmt: skip


def main() -> None:
    """Print a table."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--chip", default="h200_sxm")
    p.add_argument("--rows", type=int, default=1_000_000)
    options = p.parse_args()
    chip = load_chip(options.chip)
    calibration = calibration_of(chip)
    print(f"{'family':18s} {'M kernels/s':>12s} {'roofline':>9s} {'times slower':>13s}")
    for family in PRECISIONS:
        columns = sample(family)
        model = rate(lambda f=family, x=columns: predict(f, x, calibration), options.rows)
        plain = rate(lambda f=family, x=columns: np.maximum(*roofline(f, x, chip)), options.rows)
        print(f"{family:18s} {model / 1e6:12.1f} {plain / 1e6:9.1f} {plain / model:13.1f}")


def sample(family: str) -> Mapping[str, np.ndarray]:
    """Random shapes of a family, log-uniform."""
    random = np.random.default_rng(0)
    columns = {}
    for name in COLUMNS[family]:
        if name in ("access", "reduces"):
            columns[name] = random.integers(0, 4 if name == "access" else 2, CHUNK).astype(float)
        else:
            low, high = RANGES[name]
            columns[name] = np.floor(np.exp(random.uniform(np.log(low), np.log(high), CHUNK)))
    return columns


def rate(function: Callable[[], object], rows: int) -> float:
    """Rows a second of the best of three runs."""
    function()
    calls = max(1, rows // CHUNK)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        best = max(best, calls * CHUNK / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
