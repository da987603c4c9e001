"""The model behind the numbers: notation, execution, formulas, bytes by role and what dominates."""

from __future__ import annotations

from ...cost import EFFICIENT, NAIVE, ROLES
from ...cost.work import FREE
from ...machine.timing import KERNELS
from ...predict import Step
from .. import palette
from ..bars import draw_shares
from ..blocks import Column, Drawing, Figure, Section, Table, Text, section_of, table_of
from ..facts import detailed, item_of, masks, rates, routing, steps_of
from ..provenance import Origin, origin_of
from ..summary import Study
from ..text import listed, pattern, si
from . import symbolic

_ROWS = 20

# From which share of the bytes of a memory-bound step a role decides what to do.
_RULES = (
    ("weights", 0.5, "smaller weights, or more work for each read of them"),
    ("kv", 0.3, "a smaller cache: its format, its layout, fewer heads or a latent"),
    ("optimizer", 0.3, "rarer updates, fewer bits of state, states spread over chips"),
    ("temporary", 0.3, "fused attention and fused chains: what lives inside a module"),
    ("activations", 0.5, "fusion across modules, recomputation, fewer passes"),
)


def section(study: Study) -> Section:
    """From shapes to FLOPs, bytes and seconds."""
    return Section(
        "Analytical model",
        (
            Text(
                "The contract behind the numbers: how an op becomes FLOPs and bytes, how ops "
                "become kernels, and how kernels become seconds. Each formula sees one op with the "
                "shapes that it ran with; everything else is addition."
            ),
        ),
        tuple(
            part
            for part in (
                _notation(study),
                _execution(study),
                symbolic.section(study),
                *(_by_module(study, step) for step in steps_of(study, detailed(study))),
                _formulas(study),
                _bytes(study),
                _dominance(study),
            )
            if part is not None
        ),
    )


def _notation(study: Study) -> Section:
    steps = steps_of(study, detailed(study))
    phases = {step.workload.phase: step.workload for step in steps}

    def whole(symbol: str, meaning: str, value: int) -> tuple[object, ...]:
        return symbol, meaning, value, f"{value:,}"

    plain = item_of(study) == "sample"
    rows = [whole("B", f"{'samples' if plain else 'sequences'} in a step",
                  steps[0].workload.batch)]  # fmt: skip
    long = [name for name in ("prefill", "training", "forward") if name in phases]
    if long and not plain:
        rows.append(whole("S", f"tokens of a sequence ({listed(long)})", phases[long[0]].seq))
    if "decode" in phases:
        rows.append(whole("L", "keys that a decoded token attends", phases["decode"].context))
    if not plain:
        rows += [
            whole("T", f"tokens of a step ({s.workload.phase})", s.workload.tokens) for s in steps
        ]
    chip = study.chips[0]
    rows += [
        ("P", f"dense peak of {chip.name} in {name}", rate, f"{si(rate)}FLOP/s")
        for name, rate in rates(steps[0]).items()
    ]
    bandwidth = chip.memory_bandwidth
    rows.append(("W", f"bandwidth of the memory of {chip.name}", bandwidth, f"{si(bandwidth)}B/s"))
    columns = (
        Column("symbol", "symbol", "code"),
        Column("meaning", "meaning"),
        Column("value", "value in base units", "number"),
        Column("reads", "reads"),
    )
    return Section(
        "Notation", (Table("notation", "Symbols and their values here.", columns, rows),)
    )


def _execution(study: Study) -> Section | None:
    shown = {step.ledger.execution for step in study.steps}
    texts = {
        NAIVE: "every op is a kernel of its own: it reads its inputs from memory and writes its "
        "outputs back. Attention is two products and a softmax over a score matrix.",
        EFFICIENT: "attention is one fused kernel; a chain of elementwise ops, reductions and "
        "copies that reads what the one before wrote is one kernel, and what it passes on inside "
        "touches no memory.",
    }
    names = [name for name in (NAIVE, EFFICIENT) if name in shown]
    return section_of(
        "Execution assumptions",
        Text("\n".join(f"* **{name}**: {texts[name]}" for name in names)),
        table_of(
            "assumptions",
            "What `--assume` can change that bears on this run, and its value in it.",
            (Column("name", "name", "code"), Column("value", "value", "code"),
             Column("about", "what it is")),
            [
                (name, _plain(getattr(of, name)), _ASSUMPTIONS.get(name, ""))
                for of in (study.conventions, study.timing)
                for name in of.names()
                if name not in _idle(study)
            ],
        ),
        _fusion(study),
    )  # fmt: skip


_ASSUMPTIONS = {
    "causal": "the pairs that causal attention counts: those it needs, or all of S x S",
    "routing": "which experts tokens hit: drawn evenly, all of them, or the same for every token",
    "weight_residency": "divides the bytes of weights; 1 reads every touched weight once a kernel",
    "activation_fusion": "multiplies the bytes of activations; 1 is what the dataflow shows",
    "kv": "the type of KV caches: as traced, or FP8 with scales",
    "model": "of seconds: measured kernels by family, or a roofline",
    "launch": "s between two kernels",
    "matmul_efficiency": "share of the matrix peak that is there, on top of what kernels reach",
    "memory_efficiency": "the same of the memory's bandwidth",
    "fp32_matmul": "the units that FP32 products run on",
    "host": "s that the CPU takes to launch a kernel; 0 is a CUDA graph",
    "clock": "share of the datasheet's clock that is sustained",
    "reserved_sms": "SMs that communication keeps from all other kernels",
    "attention": "the best kernels for the chip, or portable ones of an older generation",
    "load": "the clock of matrix kernels: as each was measured, or as a long load leaves it",
    "rows": "how rows found by index move: as torch does it, or with vector loads",
}


def _idle(study: Study) -> set[str]:
    """Assumptions that nothing in this run depends on."""
    idle = (
        {"launch"}
        if study.timing.model == KERNELS
        else {"attention", "rows", "reserved_sms", "load"}
    )
    if not any(routing(study)):
        idle.add("routing")
    if not any(step.memory.kv for step in study.steps):
        idle.add("kv")
    return idle if masks(study) else idle | {"causal"}


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fusion(study: Study) -> Table | None:
    rows: list[tuple[object, ...]] = []
    for step in steps_of(study):
        ops = sum(step.trace.ops[p.op].times for p in step.ledger.parts())
        rows.append((step.workload.phase, step.ledger.execution, ops, step.times.launches,
                     step.cost.total_bytes))  # fmt: skip
    return table_of(
        "fusion", "What fusion leaves: ops that do something, kernels launched, bytes moved.",
        (Column("phase", "phase"), Column("exec", "exec"), Column("ops", "ops", "count"),
         Column("launches", "kernels launched", "count"), Column("bytes", "bytes", "B")),
        rows,
    )  # fmt: skip


def _by_module(study: Study, step: Step) -> Section | None:
    costs = step.ledger.by(lambda kernel, part: pattern(part.module))
    times = step.times.by(lambda k, n: pattern(k.kernel.parts[n].module))
    ops: dict[str, dict[str, None]] = {}
    for part in step.ledger.parts():
        name = step.trace.ops[part.op].overload_packet.removeprefix("aten.")
        ops.setdefault(pattern(part.module), {})[name] = None
    ordered = sorted(costs, key=lambda name: -times.get(name, 0.0))

    def row(name: str, members: list[str], what: str) -> tuple[object, ...]:
        mine = [costs[m] for m in members]
        roles = (sum(c.bytes_by_role[role] for c in mine) or None for role in ROLES)
        seconds = sum(times.get(m, 0.0) for m in members)
        return (
            name, what, sum(c.total_flops for c in mine) or None,
            sum(c.vector_flops for c in mine) or None, *roles,
            sum(c.total_bytes for c in mine), seconds, seconds / step.times.device,
        )  # fmt: skip

    rows = [row(name, [name], _few(list(ops[name]))) for name in ordered[:_ROWS]]
    rest = ordered[_ROWS:]
    if rest:
        rows.append(row(f"{len(rest)} others", rest, ""))
    phase, execution = step.workload.phase, step.ledger.execution
    return section_of(
        f"By module: {phase}, {execution}",
        table_of(
            f"modules_{phase}_{execution}",
            f"FLOPs, bytes by role and time of each module in {phase} on {step.chip.name}, layers "
            "together. A fused kernel's time is split among its ops by their bytes.",
            (
                Column("module", "module", "module"),
                Column("ops", "ops", "code"),
                Column("flops", "FLOPs", "FLOP"),
                Column("vector_flops", "vector", "FLOP"),
                *(Column(f"{role}_bytes", role, "B") for role in ROLES),
                Column("bytes", "bytes", "B"),
                Column("seconds", "time", "s"),
                Column("share", "of time", "share"),
            ),
            rows,
            row("total", ordered, ""),
        ),
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", {len(names) - 3} more" if len(names) > 3 else "")


def _formulas(study: Study) -> Section | None:
    found: dict[Origin, tuple[dict[str, None], list[float]]] = {}
    for step in steps_of(study, detailed(study)):
        for timed in step.times.kernels:
            for number, part in enumerate(timed.kernel.parts):
                if timed.kernel.kind == FREE:
                    continue
                op = step.trace.ops[part.op]
                names, sums = found.setdefault(origin_of(op, step.trace), ({}, [0.0, 0.0]))
                names[op.overload_packet.removeprefix("aten.")] = None
                sums[0] += timed.seconds_of(number)
                sums[1] += part.cost.total_flops
    whole = sum(sums[0] for _, sums in found.values()) or 1.0
    ordered = sorted(found.items(), key=lambda item: -item[1][1][0])
    return section_of(
        "Formulas used",
        Text(
            "A product of [M, K] and [K, N] is 2 M K N FLOPs. By default a kernel reads every "
            "input once and writes every output once; a formula states the exceptions. These "
            "are all that priced this model; `docs/ops.md` of the project lists every op."
        ),
        table_of(
            "formulas",
            "Formulas behind the FLOPs and bytes, by the share of time (all phases together) that "
            "they priced.",
            (
                Column("formula", "formula", "code"),
                Column("ops", "ops", "code"),
                Column("text", "what it counts"),
                Column("place", "where", "code"),
                Column("share", "of time", "share"),
            ),
            [
                (origin.name, _few(list(names)), origin.text, origin.place or None,
                 seconds / whole)
                for origin, (names, (seconds, _)) in ordered
            ],
        ),
    )  # fmt: skip


_ROLES = {
    "weights": "weights (parameters and buffers)",
    "kv": "the cache",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations (they cross a module boundary)",
    "temporary": "temporary (it lives inside of a module)",
}


def _bytes(study: Study) -> Section | None:
    steps = steps_of(study)
    rows = [
        (s.workload.phase, s.ledger.execution,
         *(s.cost.bytes_by_role[role] or None for role in ROLES), s.cost.total_bytes)
        for s in steps
    ]  # fmt: skip
    bars = [(f"{s.workload.phase}, {s.ledger.execution}", s.cost.bytes_by_role) for s in steps]
    return section_of(
        "Byte accounting",
        Text(
            "Every byte has the role of the storage that it is in: "
            + listed([text for role, text in _ROLES.items() if any(
                s.cost.bytes_by_role[role] for s in steps)])
            + "."
            + (
                f" Of routed experts only those that are hit are read: {_routing(study)}."
                if any(routing(study))
                else ""
            )
        ),
        table_of(
            "bytes_by_role",
            "Bytes that a step moves, by role; the last column is the sum of the others.",
            (Column("phase", "phase"), Column("exec", "exec"),
             *(Column(role, role, "B") for role in ROLES), Column("total", "total", "B")),
            rows,
        ),
        Figure(
            "bytes_by_role",
            "Shares of the bytes by role. What shrinks from naive to efficient is what fusion "
            "keeps out of memory.",
            Drawing(draw_shares, (bars, palette.ROLES, "the bytes moved", "Bytes by role")),
            (8.0, 1.4 + 0.42 * len(bars)),
        ),
    )  # fmt: skip


def _routing(study: Study) -> str:
    return {
        "uniform": "`E(1-(1-k/E)^T)` in expectation",
        "all": "all E, as `--assume routing=all` has it",
        "same": "k, as `--assume routing=same` has it",
    }[study.conventions.routing]


def _dominance(study: Study) -> Section | None:
    rows: list[tuple[object, ...]] = []
    for step in steps_of(study, detailed(study)):
        whole = step.cost.total_bytes
        if not whole:
            continue
        memory = step.times.shares()["memory"]
        shares = {role: n / whole for role, n in step.cost.bytes_by_role.items()}
        fits = [(role, text) for role, least, text in _RULES if shares[role] >= least]
        verdict = "no role alone" if not fits else "; ".join(f"{r}: {t}" for r, t in fits)
        if memory < 0.5:
            verdict += " (but memory is not what most of the time waits for)"
        rows.append((step.workload.phase, memory, *(shares[role] or None for role in ROLES),
                     verdict))  # fmt: skip
    rules = ", ".join(f"{role} from {least:.0%}" for role, least, _ in _RULES)
    return section_of(
        "Which bytes dominate",
        table_of(
            "dominance",
            f"Shares of the bytes, and what the dominant ones ask for (a rule: {rules}).",
            (Column("phase", "phase"), Column("memory", "time waiting for memory", "ratio"),
             *(Column(role, role, "share") for role in ROLES), Column("verdict", "so")),
            rows,
        ),
    )  # fmt: skip
