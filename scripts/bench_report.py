"""What a whole report costs, cold: seconds, CPU, memory, size of the page, its first paint.

    python scripts/bench_report.py [--model ID] [--runs N] [what else the command takes]
    python scripts/bench_report.py --dtype fp8
    python scripts/bench_report.py --batch 8 --seq 255 --chip h200_sxm --chip b200_sxm

Every run starts a command that writes all files. CPU counts all its processes; memory is that of
the largest of them, of which there are two. The bound that the project set itself is 15 s and
1.5 GiB on two idle cores, a page that paints within a second. The load of the machine stands beside
the numbers: under load the wall says little, and CPU seconds too are longer on a shared core.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "report"))


def main() -> None:
    """Print a row a run."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", default="deepseek-ai/DeepSeek-V3")
    p.add_argument("--runs", type=int, default=3)
    options, more = p.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.runs):
            out = Path(folder) / str(number)
            load = os.getloadavg()[0]
            before, start = _cpu(), time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "tracer.run", "--hf-config", options.model, *more,
                 "--out", str(out)],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            wall, cpu = time.perf_counter() - start, _cpu() - before
            page = out / "report.html"
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
            files = sum(path.is_file() for path in out.rglob("*"))
            rows.append((number + 1, wall, cpu, peak / 2**30, page.stat().st_size / 1e6, files,
                         _paint(page), load))  # fmt: skip
    headers = ("run", "wall s", "CPU s", "peak GiB", "page MB", "files", "first paint ms", "load")
    print(" ".join([options.model, *more]), f"on {os.cpu_count()} cores")
    print(tabulate(rows, headers, floatfmt=".2f"))
    print(f"median wall {statistics.median(row[1] for row in rows):.1f} s")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _paint(page: Path) -> float | None:
    """Milliseconds until chromium first shows something of the page; None without chromium."""
    import browser

    if browser.BINARY is None:
        return None
    with browser.Page() as window:
        window.open(page)
        for _ in range(100):
            paints = window.run("performance.getEntriesByType('paint').map(e => e.startTime)")
            if paints:
                return min(paints)
            time.sleep(0.05)
    return None


if __name__ == "__main__":
    main()
