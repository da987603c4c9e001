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
    """Every phase with symbols; `row.notes` gets guards, and why a phase is only concrete.

    Each run has a model of its own: some keep tables that their first call made.
    """
    from tracer.capture.workload import record, record_symbolic
    from tracer.errors import UserError

    for phase in (p for p in PHASES if p in build(row).phases):
        program = build(row)
        start = time.monotonic()
        try:
            trace = record_symbolic(program, _work(phase, TRACED), fold=False)
        except UserError as error:
            row.phases[phase] = _plain_reason(error)
            try:
                record(build(row), _work(phase, TRACED), fold=False)
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
            concrete = record(build(row), _work(phase, point), fold=False)
            wrong = wrong_at(trace, concrete, names)
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


def wrong_at(symbolic: Any, concrete: Any, point: dict[str, int]) -> str:
    """What of the two traces' costs is not equal at `point` under some execution."""
    from tracer.cost import EXECUTIONS, price
    from tracer.study.agreement import differences

    for execution in EXECUTIONS:
        ledgers = (price(trace, execution=execution) for trace in (symbolic, concrete))
        found = differences(*ledgers, point)
        if found:
            return f"{execution} {found}"
    return ""


HEAD = """# Formulas with named sizes

A symbolic trace runs a model once on tensors without data whose batch, sequence or context are
symbols, and its costs are formulas in them: FLOPs, bytes by role, memory. Nothing is fitted.

```python
import torch
import tracer

model = torch.nn.Linear(7168, 1536, bias=False, device="meta", dtype=torch.bfloat16)
with tracer.trace(model, symbols={"B": 8, "S": 4096}) as t:
    x = torch.empty(t.sizes["B"], t.sizes["S"], 7168, device="meta", dtype=torch.bfloat16)
    model(x)

print(t.flops)  # 22020096·B·S
print(t.terms())  # the same as products: 2·B·S·7168·1536
print(t.conditions)  # ['B >= 2', 'S >= 2']
print(t.flops.at({"B": 1024, "S": 131072}))  # exact, without another run
```

* **Names are yours.** Any sizes may have one; build inputs of `t.sizes[name]`. Its value is where
  branches are decided. `record_symbolic` names B and S of prefill and training, B and L (keys that
  a token attends) of decode.
* **Conditions.** Where the model compares sizes, the branch is the one taken at those values, and
  the comparison becomes a condition: `S > 64`, `128 divides B·S`, `S != 96`. Where they do not
  hold, `t.trace.scope.violated(point)` says which; the formulas say nothing there. What holds for
  all sizes in range is no condition. FP8 training of DeepSeek-V3 asks that 128 divides B·S: its
  weight gradients are scaled in tiles of 128 tokens, and other numbers are padded by other ops.
* **Sizes of 0 and 1** take other paths (broadcasting, empty tensors), so a symbol is 2 or more. A
  size of 1 in a workload stays the number 1.
* **Equal means equal in form.** S and a head of 128 are different sizes also where S is 128: the
  formulas are those of S in general. A concrete trace at S = 128 may take a coincidence for more
  (two loops of one length fuse); the tests hold the formulas against concrete traces at such points
  (S = 128 = B, S = 512, S = 7168 of DeepSeek-V3), and they are equal there.
* **No closed form.** A model that turns a size into a number (`int(x.shape[0])`), an op of torch
  that does, or a result whose size data decide raise `NotSymbolic`, one line with op and place.
  Such a model is traced at numbers.
"""


def document(rows: list[Row]) -> str:
    """docs/symbolic.md."""
    import torch
    import transformers

    whole = [row for row in rows if all(_state(row, phase) == SYMBOLIC for phase in PHASES)]
    counts = ", ".join(
        f"{sum(_state(row, phase) == SYMBOLIC for row in rows)} in {phase}" for phase in PHASES
    )
    intro = (
        f"## Which families have closed forms\n\n"
        f"{len(rows)} of the causal language models of transformers {transformers.__version__}, "
        f"torch {torch.__version__}: default configs, shrunk only in depth, every layer traced, "
        f"branches decided at B = {TRACED[0]} and S = L = {TRACED[1]}. **symbolic**: FLOPs by "
        f"precision, vector FLOPs and bytes by role equal the concrete trace under both "
        f"executions there and at {', '.join(f'({b}, {s})' for b, s in OTHERS)}, where the "
        f"conditions hold. "
        f"**concrete**: it is traced at numbers only. **-**: it has no such phase, or does not "
        f"run.\n\n"
        f"Symbolic in all three phases: {len(whole)} of {len(rows)}; {counts}. Seconds are those "
        f"of the symbolic run of each phase, on a shared core.\n\n"
        f"Written by `scripts/survey_symbolic.py`.\n"
    )
    lines = [HEAD, intro]
    lines.append("| family | class | prefill | training | decode | conditions, and why not |")
    lines.append("|---|---|---|---|---|---|")
    return "\n".join([*lines, *map(_line, rows)]) + "\n"


SYMBOLIC = "symbolic"


def _state(row: Row, phase: str) -> str:
    if row.failure or phase not in row.phases or row.phases[phase].startswith("not: "):
        return "-"
    return "concrete" if row.phases[phase] else SYMBOLIC


def _line(row: Row) -> str:
    """Seconds stand beside the state of a phase; reasons that phases share are given once."""
    seconds = dict(note.split(" ")[:2] for note in row.notes if note.endswith(" s"))
    states = [" ".join(filter(None, (_state(row, phase), seconds.get(phase)))) for phase in PHASES]
    reasons: dict[str, list[str]] = {}
    for phase, text in row.phases.items():
        if text:
            reasons.setdefault(text, []).append(phase)
    for note in row.notes:
        if not note.endswith(" s"):
            phase, text = note.split(": ", 1)
            reasons.setdefault(f"for {_short(text)}", []).append(phase)
    notes = [row.failure] if row.failure else []
    notes += [f"{', '.join(phases)}: {text}" for text, phases in reasons.items()]
    text = "; ".join(notes).replace("|", "\\|")
    return f"| {row.family} | {row.model} | {' | '.join(states)} | {text} |"


def _short(guards: str) -> str:
    """The first conditions, and how many more."""
    parts = guards.split("; ")
    more = f" and {len(parts) - 4} more" if len(parts) > 4 else ""
    return "; ".join(parts[:4]) + more


if __name__ == "__main__":
    sys.exit(main())
