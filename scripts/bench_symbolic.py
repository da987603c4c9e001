"""How long a symbolic trace of DeepSeek-V3 takes, beside the concrete one, in one process.

    python scripts/bench_symbolic.py                       forward: symbolic, concrete, unfolded
    python scripts/bench_symbolic.py --points 20           and compared with the concrete trace
    python scripts/bench_symbolic.py --phase decode --dtype fp8

All 61 layers, B = 8, S = L = 4096; record and price. Imports are timed apart: the symbolic
machinery of torch imports its compiler. "first" is the first run in this process. Seconds are wall
clock, with the processor's own in brackets, which a busy machine does not change.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tabulate import tabulate

MODEL = "deepseek-ai/DeepSeek-V3"


class Spent(NamedTuple):
    """Seconds of the wall clock and of the processor."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} ({self.cpu:.2f})"


def main() -> None:
    """Print the table; with `--points`, exit by an AssertionError where numbers differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--phase", default="prefill", choices=("prefill", "decode", "training"))
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp8"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=0, help="random sizes to compare at")
    options = parser.parse_args()
    ours, _ = timed(_import_tracer)
    torchs, _ = timed(_import_symbolic)
    from tracer.capture.program import load_program
    from tracer.capture.workload import Workload, record, record_symbolic
    from tracer.cost import price

    program = load_program(MODEL, dtype=options.dtype)
    work = Workload(options.phase, 8, 4096, 4096, "none")
    variants: dict[str, Callable[[], Any]] = {
        "symbolic, folded": lambda: record_symbolic(program, work),
        "concrete, folded": lambda: record(program, work),
        "symbolic, unfolded": lambda: record_symbolic(program, work, fold=False),
        "concrete, unfolded": lambda: record(program, work, fold=False),
    }
    rows = []
    for name, run in variants.items():
        rounds = options.rounds if name.endswith(" folded") else 1
        first: list[Spent] = []
        later: list[Spent] = []
        for number in range(rounds):
            recorded, trace = timed(run)
            priced, _ = timed(price, trace)
            (later if number else first).append(
                Spent(recorded.wall + priced.wall, recorded.cpu + priced.cpu)
            )
        rows.append((name, len(trace.ops), first[0], min(later) if later else "-"))
    print(f"{MODEL} {options.dtype} {options.phase}, wall seconds (processor seconds)")
    print(f"imports: tracer and torch {ours}, torch's symbolic shapes and compiler {torchs}")
    print(tabulate(rows, ("record + price", "ops", "first", "best of later")))
    if options.points:
        check(program, options.phase, options.points)


def check(program: Any, phase: str, count: int) -> None:
    """Costs at random sizes from the formulas and from the concrete trace."""
    from survey_symbolic import wrong_at

    from tracer.capture.workload import Workload, record, record_symbolic

    symbolic = record_symbolic(program, Workload(phase, 8, 4096, 4096, "none"))
    draw = random.Random(0)
    done = tried = 0
    while done < count:
        batch, tokens = draw.randint(2, 300), draw.randint(2, 8192)
        tried += 1
        at = {"B": batch, ("L" if phase == "decode" else "S"): tokens}
        if symbolic.scope.violated(at):
            continue
        concrete = record(program, Workload(phase, batch, tokens, tokens, "none"))
        wrong = wrong_at(symbolic, concrete, at)
        assert not wrong, f"{at}: {wrong}"
        done += 1
    print(f"formulas equal the concrete trace at {done} random sizes of {tried} drawn; hold for")
    print(", ".join(symbolic.scope.conditions()))


def timed(run: Callable[..., Any], *args: Any) -> tuple[Spent, Any]:
    """What it took, and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run(*args)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu), result


def _import_tracer() -> None:
    import tracer.capture.workload
    import tracer.cost

    assert tracer.cost and tracer.capture.workload


def _import_symbolic() -> None:
    from tracer.capture.symbolic import Sizes

    Sizes({"B": 2})


if __name__ == "__main__":
    main()
