"""Trace the causal-LM families of transformers with symbolic sizes -> docs/symbolic.md.

    python scripts/survey_symbolic.py               all of them, two at a time
    python scripts/survey_symbolic.py llama mamba   these only, printed, no file written
    python scripts/survey_symbolic.py --rows FILE   keep rows as they are done, go on from them

Default configs, shrunk only in depth, as in `survey_models.py`. A phase counts as symbolic if its
formulas equal the concrete trace, in FLOPs by precision and bytes by role and under both
executions, at the traced sizes and at others.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from survey_models import CAUSAL, Row, build, pool, progress, reason, warm_up

DOCUMENT = Path(__file__).parent.parent / "docs" / "symbolic.md"
TRACED = (4, 96)  # batch and tokens that branches are decided at
OTHERS = ((3, 160),)
TIMEOUT = 300.0  # seconds a family
PHASES = ("prefill", "training", "decode")


def main() -> int:
    """Run the survey; exit code 1 if a family that was asked for by name is not known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("families", nargs="*", help="model types; default all")
    parser.add_argument("--rows", type=Path, help="JSON lines, one a family")
    options = parser.parse_args()
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal

    torch.set_num_threads(1)
    unknown = [name for name in options.families if name not in causal]
    if unknown:
        print(f"{unknown[0]}: not a causal language model of transformers", file=sys.stderr)
        return 1
    todo = [(name, CAUSAL) for name in options.families or sorted(causal)]
    rows = _kept(options.rows)
    todo = [item for item in todo if item[0] not in {row.family for row in rows}]
    warm_up()
    for done, row in enumerate(pool(todo, trace_family, TIMEOUT), 1):
        rows.append(row)
        if options.rows:
            with options.rows.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        print(f"[{done}/{len(todo)}] {progress(row)}", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: row.family)
    if options.families:
        print(document(rows))
    else:
        DOCUMENT.write_text(document(rows))
        print(f"wrote {DOCUMENT}", file=sys.stderr)
    return 0


def _kept(path: Path | None) -> list[Row]:
    """Rows of a run that was cut off."""
    if path is None or not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def trace_family(row: Row) -> None:
    """Every phase with symbols; `row.notes` gets guards, and why a phase is only concrete."""
    from tracer.capture.workload import record, record_symbolic
    from tracer.errors import UserError

    program = build(row)
    for phase in (p for p in PHASES if p in program.phases):
        start = time.monotonic()
        try:
            trace = record_symbolic(program, _work(phase, TRACED), fold=False)
        except UserError as error:
            row.phases[phase] = _plain_reason(error)
            try:
                record(program, _work(phase, TRACED), fold=False)
            except UserError as other:
                row.phases[phase] = f"not: {reason(other)}"
            continue
        row.phases[phase] = ""
        row.notes.append(f"{phase} {time.monotonic() - start:.1f} s")
        guards = [str(guard) for guard in trace.scope.guards]
        for point in (TRACED, *OTHERS):
            names = {"B": point[0], ("L" if phase == "decode" else "S"): point[1]}
            if trace.scope.violated(names):
                continue
            concrete = record(program, _work(phase, point), fold=False)
            wrong = differences(trace, concrete, names)
            if wrong:
                row.phases[phase] = f"differs at {names}: {wrong}"
                break
        if guards:
            row.notes.append(f"{phase}: {'; '.join(guards)}")


def _plain_reason(error: BaseException) -> str:
    """Why there is no closed form, with paths from the package on."""
    text = str(error).split(": no closed form of ", 1)[-1].split(": ", 1)[-1]
    return re.sub(r"/\S*site-packages/", "", text)


def _work(phase: str, point: tuple[int, int]) -> Any:
    from tracer.capture.workload import Workload

    batch, tokens = point
    return Workload(phase, batch, tokens, tokens, "none")


def differences(symbolic: Any, concrete: Any, point: dict[str, int]) -> str:
    """What of the two traces' costs is not equal at `point`; empty if nothing."""
    from tracer.algebra.expression import value_at
    from tracer.cost import EXECUTIONS, price

    for execution in EXECUTIONS:
        ours = price(symbolic, execution=execution).total()
        theirs = price(concrete, execution=execution).total()
        for name in ("flops", "recompute_flops", "read", "write"):
            mine, other = getattr(ours, name), getattr(theirs, name)
            for key in {**mine, **other}:
                value = value_at(mine.get(key, 0), point)
                if value != other.get(key, 0):
                    return f"{execution} {name} {key}: {value} is not {other.get(key, 0)}"
        if value_at(ours.vector_flops, point) != theirs.vector_flops:
            return f"{execution} vector FLOPs"
    return ""


def document(rows: list[Row]) -> str:
    """docs/symbolic.md."""
    return "\n".join(_line(row) for row in rows)


def _line(row: Row) -> str:
    states = [
        "-" if phase not in row.phases else "symbolic" if row.phases[phase] == "" else "concrete"
        for phase in PHASES
    ]
    why = [f"{phase}: {text}" for phase, text in row.phases.items() if text]
    notes = "; ".join([*([row.failure] if row.failure else []), *why, *row.notes])
    return f"| {row.family} | {' | '.join(states)} | {row.seconds:.1f} | {notes} |"


if __name__ == "__main__":
    sys.exit(main())
