"""Trace every causal-LM family and many other architectures of transformers -> docs/models.md.

    python scripts/survey_models.py                 all of them, two at a time
    python scripts/survey_models.py llama bert      these only, printed, no file written

Default configs, shrunk only in depth: two layers, or as many as it takes to have one of each kind.
Each family runs in a process of its own with a time limit, so that one failure costs nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from survey_families import DEPTHS, FIELDS, FULL_DEPTH, OTHERS

DOCUMENT = Path(__file__).parent.parent / "docs" / "models.md"
BATCH, SEQ = 2, 128
MEDIA_SEQ = 4096  # prompts with an image: its placeholders alone take hundreds of tokens
TIMEOUT = 120.0  # seconds a family
JOBS = 2
CAUSAL = "causal language model"
_DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")


@dataclass
class Row:
    """What is known of one family; `phases` maps a phase to "" (traced) or the reason why not."""

    family: str
    group: str
    model: str = "-"
    layers: int = 0
    phases: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ops: int = 0
    without_formula: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failure: str = ""


def main() -> int:
    """Run the survey; exit code 1 if a family that was asked for by name is not known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("families", nargs="*", help="model types; default all")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    options = parser.parse_args()
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal

    torch.set_num_threads(1)
    todo = [(name, CAUSAL) for name in sorted(causal)]
    todo += [(name, group) for group, names in OTHERS.items() for name in sorted(names.split())]
    if options.families:
        known = {name for name, _ in todo}
        for name in options.families:
            if name not in known:
                print(f"{name}: not in the survey", file=sys.stderr)
                return 1
        todo = [item for item in todo if item[0] in options.families]
    warm_up()
    rows = []
    for done, row in enumerate(pool(todo, trace_family), 1):
        rows.append(row)
        print(f"[{done}/{len(todo)}] {progress(row)}", file=sys.stderr, flush=True)
    order = {item: index for index, item in enumerate(todo)}
    rows.sort(key=lambda row: order[row.family, row.group])
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=1))
    text = document(rows)
    if options.families:
        print(text)
    else:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(text)
        print(f"wrote {DOCUMENT}", file=sys.stderr)
    return 0


def warm_up() -> None:
    """Import what every child will need. No backward: its threads would not survive the fork."""
    from tracer.capture.huggingface import HuggingFaceProgram
    from tracer.capture.huggingface.config import quiet
    from tracer.capture.program import PREFILL
    from tracer.capture.workload import Workload, record
    from tracer.cost import price

    with quiet():
        config, _ = small_config("llama")
        program = HuggingFaceProgram("llama", config)
    price(record(program, Workload(PREFILL, 1, 8, 8), fold=False))


# -- running ---------------------------------------------------------------------------------------


def pool(
    todo: list[tuple[str, str]], trace: Callable[[Row], None], timeout: float = TIMEOUT
) -> Iterator[Row]:
    """Rows as they are done, each filled in by `trace`; forked children share our imports."""
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(todo))
    running: dict[Any, tuple[Any, Row, float]] = {}
    while waiting or running:
        while waiting and len(running) < JOBS:
            family, group = waiting.pop()
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(theirs, trace, family, group))
            process.start()
            theirs.close()
            running[mine] = (process, Row(family, group), time.monotonic())
        for pipe in multiprocessing.connection.wait(list(running), timeout=1.0):
            process, row, _ = running.pop(pipe)
            try:
                row = Row(**pipe.recv())  # type: ignore[attr-defined]
            except EOFError:
                process.join()
                row.failure = f"the process died (exit code {process.exitcode})"
            process.join()
            yield row
        for pipe, (process, row, start) in list(running.items()):
            if time.monotonic() - start > timeout:
                process.kill()
                process.join()
                del running[pipe]
                row.failure, row.seconds = f"no end within {timeout:.0f} s", timeout
                yield row


def _child(pipe: Any, trace: Callable[[Row], None], family: str, group: str) -> None:
    warnings.filterwarnings("ignore")
    row = Row(family, group)
    start = time.monotonic()
    try:
        trace(row)
    except Exception as error:
        row.failure = _one_line(error)
    row.seconds = time.monotonic() - start
    pipe.send(asdict(row))


def trace_family(row: Row) -> None:
    """Build the family's class from its default config and run every phase that it has."""
    from tracer.capture.program import DECODE, TRAINING
    from tracer.capture.workload import Workload, record
    from tracer.cost import NAIVE, price
    from tracer.errors import UserError

    program = build(row)
    seq = MEDIA_SEQ if program.shortest > SEQ else SEQ
    seq = min(seq, program.longest or seq)
    for phase in program.phases:
        work = Workload(phase, BATCH, seq, SEQ if phase == DECODE else seq, "none")
        try:
            trace = record(program, work, fold=False)
        except UserError as error:
            row.phases[phase] = reason(error)
            continue
        row.phases[phase] = ""
        row.notes += [note for note in _notes(trace.header) if note not in row.notes]
        ledger = price(trace, execution=NAIVE)
        row.ops += len(trace.ops)
        for name, count in ledger.unmodelled().items():
            row.without_formula[name] = row.without_formula.get(name, 0) + count
    if TRAINING in row.phases and program.dtype != "bf16":
        row.model += f" ({program.dtype})"


def build(row: Row) -> Any:
    """The family's class from its default config, as a program; notes class and layers."""
    from tracer.capture.huggingface import HuggingFaceProgram
    from tracer.capture.huggingface.classes import task_class
    from tracer.capture.huggingface.config import quiet, text_config

    with quiet():
        config, row.layers = small_config(row.family)
        if row.group == CAUSAL:
            config.architectures = [task_class("CAUSAL_LM", row.family)]
            text = text_config(config)
            if hasattr(text, "is_decoder"):
                text.is_decoder = True
        program = HuggingFaceProgram(row.family, config)
    row.model = program.source.removeprefix("transformers ")
    return program


def small_config(family: str) -> tuple[Any, int]:
    """The default config with two layers, or as many as it takes to see every kind; how many."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from tracer.capture.huggingface.config import text_config, with_layers
    from tracer.errors import UserError

    kind = CONFIG_MAPPING[family]
    config = kind(**FIELDS.get(family, {}))
    if family in FULL_DEPTH:
        return config, 0
    text = text_config(config)
    layers = DEPTHS.get(family) or max(2, _all_kinds(text))
    for part in (config, text):
        for name in _DENSE_FIRST:
            if isinstance(getattr(part, name, None), int) and getattr(part, name) > 1:
                setattr(part, name, 1)
    try:
        return with_layers(config, layers), layers
    except UserError:
        return config, 0


def _all_kinds(config: Any) -> int:
    """Length of the shortest prefix of the stack with every kind of layer in it."""
    longest = 0
    for name in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, (list, tuple)) and kinds:
            longest = max(longest, *(kinds.index(kind) + 1 for kind in set(kinds)))
    return longest


def _notes(header: dict[str, Any]) -> list[str]:
    where = {"values": "integer values computed beside the trace", "real": "real CPU tensors"}
    ground = where.get(header["ground"])
    return [*([ground] if ground else []), *header["notes"]]


def reason(error: BaseException) -> str:
    """The model's own error, without where and for which sizes it was raised."""
    cause = error.__cause__
    return _one_line(cause if cause is not None else error)


def _one_line(error: BaseException) -> str:
    from tracer.capture.huggingface.config import first_line

    text = f"{type(error).__name__}: {first_line(error)}".removeprefix("UserError: ")
    return text if len(text) <= 160 else text[:157] + "..."


# -- the document ----------------------------------------------------------------------------------


def document(rows: list[Row]) -> str:
    """docs/models.md."""
    import torch
    import transformers

    lines = [
        "# Models that trace",
        "",
        f"Written by `scripts/survey_models.py` with torch {torch.__version__.split('+')[0]} and "
        f"transformers {transformers.__version__}: default configs, shrunk only in depth, "
        f"{BATCH} sequences of {SEQ} tokens ({MEDIA_SEQ} with an image), shapes concrete, "
        "no weights and no data. Decode is one token after a context; a dash means that the "
        "architecture has no such phase.",
        "",
        *_totals(rows),
        "",
        "*formula* is the share of ops that have one; ops without are priced by their bytes and "
        "named.",
    ]
    for group in dict.fromkeys(row.group for row in rows):
        lines += [
            "",
            f"## {group.capitalize()}s" if group != "time series" else "## Time series",
            "",
        ]
        lines += ["| family | class | layers | forward | backward | decode | formula | s | notes |"]
        lines += ["|---|---|--:|---|---|---|--:|--:|---|"]
        lines += [_line(row) for row in rows if row.group == group]
    return "\n".join(lines) + "\n"


def _totals(rows: list[Row]) -> list[str]:
    lines = ["| | families | forward | backward | decode |", "|---|--:|--:|--:|--:|"]
    for group in dict.fromkeys(row.group for row in rows):
        mine = [row for row in rows if row.group == group]
        decodes = [row for row in mine if "decode" in row.phases]
        counts = (
            sum(_forward(row) == "yes" for row in mine),
            sum(row.phases.get("training") == "" for row in mine),
        )
        share = [f"{n} ({n / len(mine):.0%})" for n in counts]
        decoded = sum(row.phases["decode"] == "" for row in decodes)
        tail = f"{decoded} of {len(decodes)}" if decodes else "-"
        lines.append(f"| {group} | {len(mine)} | {share[0]} | {share[1]} | {tail} |")
    return lines


def _forward(row: Row) -> str:
    """Say "yes" if some forward ran: the inference one, or that of the training step."""
    states = [row.phases[p] for p in ("prefill", "forward", "training") if p in row.phases]
    if "" in states[:1] or (states and states[-1] == "" and len(states) == 1):
        return "yes"
    return states[0] if states else row.failure or "-"


def _line(row: Row) -> str:
    if row.failure:
        cells = [row.family, row.model, "-", "no", "no", "-", "-", f"{row.seconds:.1f}"]
        return f"| {' | '.join(cells)} | {row.failure} |"
    notes = list(dict.fromkeys(row.notes))
    if row.family in FIELDS:
        notes.insert(0, f"default config with {', '.join(FIELDS[row.family])} set")
    cells = [row.family, row.model, str(row.layers or "all")]
    for phase in (("prefill", "forward"), ("training",), ("decode",)):
        state = next((row.phases[p] for p in phase if p in row.phases), None)
        cells.append("-" if state is None else "yes" if state == "" else "no")
        if state:
            notes.insert(0, f"{phase[0] if phase[0] in row.phases else phase[-1]}: {state}")
    missing = sum(row.without_formula.values())
    cells.append(f"{1 - missing / row.ops:.1%}" if row.ops else "-")
    cells.append(f"{row.seconds:.1f}")
    if row.without_formula:
        names = sorted(name.removesuffix(".default") for name in row.without_formula)
        notes.append(f"no formula: {', '.join(names)}")
    cells.append("; ".join(dict.fromkeys(notes)).replace("|", "\\|"))
    return "| " + " | ".join(cells) + " |"


def progress(row: Row) -> str:
    if row.failure:
        return f"{row.family}: {row.failure}"
    states = ", ".join(f"{p} {why or 'ok'}" for p, why in row.phases.items())
    return f"{row.family}: {states} ({row.seconds:.1f} s)"


if __name__ == "__main__":
    sys.exit(main())
