"""How to read the report: what was run, what the numbers mean, how far to trust them."""

from __future__ import annotations

from ...machine.model import Group
from ...machine.timing import KERNELS
from ..accuracy import accuracy_section
from ..blocks import Column, Section, Table, Text, code, section_of, table_of
from ..facts import item_of, masks, routing, steps_of
from ..summary import Study
from ..text import size


def section(study: Study) -> Section:
    """Goal, method, what was run, conventions in force, coverage, accuracy."""
    return Section(
        "How to read this report",
        (
            Text(
                "The question is what limits a model on a chip, and which knob moves that limit. "
                "The model was run once without data; every op that it dispatched was written "
                "down, and all numbers below are sums over that record. Nothing about the model "
                "was typed in."
            ),
            Text(
                "Read it in three steps. First see what each phase waits for: "
                "the column **waits for** of the results, not the position under a roof, decides. "
                "Then see where its bytes or FLOPs come from: by role, by category, by module. "
                "Then see what would move it: the next steps, with what each may save at "
                "most."
            ),
            *_method(study),
        ),
        tuple(
            part
            for part in (
                _run(study),
                _conventions(study),
                _coverage(study),
                accuracy_section(study.timing, _groups(study)),
            )
            if part is not None
        ),
    )


def _method(study: Study) -> list[Text]:
    if study.timing.model == KERNELS:
        how = (
            "The time of a step is the sum over its kernels on one stream. Each kernel's time "
            "comes from a small formula for its family (tiles, waves, split-K, launch, power) "
            "whose constants were fitted to measured kernels, and is never below what the "
            "datasheet's peaks allow."
        )
    else:
        how = (
            "The time of a step is the sum over its kernels of launch + max(compute, memory) at "
            "the datasheet's peaks (or the shares of them that were given), on one stream."
        )
    return [
        Text(
            f"{how} **ideal** is max(all compute, all memory): a bound in which everything "
            "overlaps with everything, shown beside the estimate and never as the estimate."
        ),
        Text("\n".join(f"* {line}" for line in _gotchas(study))),
    ]


def _gotchas(study: Study) -> list[str]:
    phases = {step.workload.phase for step in study.steps}
    lines = [
        "FLOPs are counts of the algorithm, not of what a chip reaches.",
        "Parameters are not time: what holds most of them need not take most of the step.",
    ]
    if {"prefill", "decode"} <= phases:
        lines.append("Decode's length is what its token attends (L), prefill's the prompt (S).")
    if any(step.chips_at_least > 1 for step in study.steps):
        lines.append("Throughput of a step that does not fit in memory is hypothetical, and is "
                     "marked so.")  # fmt: skip
    return lines


def _run(study: Study) -> Section:
    inventory = study.inventory
    item = item_of(study)
    plain = item == "sample"
    seen: dict[str, tuple[object, ...]] = {}
    for step in steps_of(study):
        work = step.workload
        decode = work.phase == "decode"
        seen[work.phase] = (
            work.phase, work.batch, None if decode or plain else work.seq,
            work.context if decode else None, None if plain else work.tokens,
            work.optimizer if work.phase == "training" else None,
            str(step.trace.header.get("ground", "")) or None,
        )  # fmt: skip
    facts = [
        ("model", study.name),
        ("traced as", study.source),
        ("precision", study.dtype),
        ("parameters", f"{inventory.parameters:,}"),
        (f"parameters that a {item} meets", f"{inventory.active_parameters:,}"),
        ("weights", size(inventory.weight_bytes)),
        ("chips", ", ".join(chip.name for chip in study.chips)),
        ("command", study.command),
        ("versions", ", ".join(f"{k} {v}" for k, v in study.versions.items())),
    ]
    if inventory.kv_bytes_per_token:
        facts.insert(6, ("KV cache a token", f"{inventory.kv_bytes_per_token:,} B"))
    workloads = Table(
        "workloads",
        "What was run. " + _sizes(study),
        (
            Column("phase", "phase"),
            Column("batch", "B", "size"),
            Column("seq", "S", "size"),
            Column("context", "L", "size"),
            Column("tokens", "tokens a step", "size"),
            Column("optimizer", "optimizer"),
            Column("ground", "traced on"),
        ),
        list(seen.values()),
    )
    table = Table(
        "run",
        "The run that this report was made from.",
        (Column("what", "what"), Column("value", "value", "code")),
        facts,
    )
    kept = table_of(workloads.name, workloads.caption, workloads.columns, workloads.rows)
    remarks = (
        [Text("\n".join(f"* {code(note)}" for note in study.remarks))] if study.remarks else []
    )
    return Section("What was run", (table, *([kept] if kept else []), *remarks))


def _sizes(study: Study) -> str:
    """What B, S and L are here."""
    if item_of(study) == "sample":
        return "B samples a step."
    phases = {step.workload.phase for step in study.steps}
    lines = ["B sequences of S tokens."] if phases - {"decode"} else ["B sequences."]
    if "decode" in phases:
        lines.append("A decoded token attends L keys, its own included.")
    if "prefill" in phases:
        lines.append("Prefill has logits at every position, as the model's forward gives them.")
    return " ".join(lines)


def _conventions(study: Study) -> Section:
    notes = study.notes(masks(study), any(routing(study)))
    lines = "\n".join(f"* {note.replace('*', '·')}" for note in notes)
    return Section("Conventions and assumptions in force", (Text(lines),))


def _groups(study: Study) -> list[Group]:
    """Kernels of all steps by family."""
    plans = [step.times.plan for step in study.steps]
    return [group for plan in plans if plan is not None for group in plan.groups]


_TRUST = {
    "exact": "the shapes decide",
    "estimated": "data decide, such as where tokens are sent or how often an index repeats, and an "
    "expectation stands for them",
    "unmodelled": "bytes alone",
}


def _coverage(study: Study) -> Section | None:
    rows: list[tuple[object, ...]] = []
    missing: dict[str, int] = {}
    for step in steps_of(study):
        for confidence, row in step.coverage().items():
            rows.append((step.workload.phase, step.ledger.execution, confidence, row["ops"],
                         row["flops"] if step.cost.total_flops else None,
                         row["bytes"], row["time"]))  # fmt: skip
        missing |= step.ledger.unmodelled()
    text = "Every op has a formula."
    if missing:
        names = ", ".join(f"{code(op)} ({count:,})" for op, count in sorted(missing.items()))
        text = f"Without a formula, priced by their bytes: {names}."
    seen = {row[2] for row in rows}
    kinds = "; ".join(f"**{name}**: {text}" for name, text in _TRUST.items() if name in seen)
    table = table_of(
        "coverage",
        f"How far each number is to be trusted. {kinds}.",
        (
            Column("phase", "phase"),
            Column("exec", "exec"),
            Column("confidence", "confidence"),
            Column("ops", "of ops", "ratio"),
            Column("flops", "of FLOPs", "ratio"),
            Column("bytes", "of bytes", "ratio"),
            Column("time", "of time", "ratio"),
        ),
        rows,
    )
    return section_of("Coverage", Text(text), table)
