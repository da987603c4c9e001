"""What the model is: fingerprint, config, diagrams, parameters and memory, modules."""

from __future__ import annotations

from ...capture.records import Trace
from ...predict import Step
from .. import palette
from ..bars import draw_ring
from ..blocks import Column, Diagram, Drawing, Figure, Section, Table, Text, section_of, table_of
from ..categories import ATTENTION, EXPERTS, FEED_FORWARD, Categories
from ..diagrams import inside, stack
from ..facts import detailed, parameters_by_category, steps_of
from ..fingerprint import config_rows, fingerprint
from ..summary import Study
from ..text import pattern

_CATEGORIES = {
    ATTENTION: "modules that attend, and their projections.",
    EXPERTS: "the routed ones, with their router and the shared ones.",
}
_ROWS = 24  # of the module table


def section(study: Study) -> Section:
    """The architecture as traced."""
    return Section(
        "Architecture",
        (
            Text(
                "Where FLOPs and bytes come from before any chip is asked. All of it is read off "
                "the trace: shapes, ops, and which storage each part reads."
            ),
        ),
        tuple(
            part
            for part in (_fingerprint(study), _diagrams(study), _parameters(study), _modules(study))
            if part is not None
        ),
    )


def _fingerprint(study: Study) -> Section | None:
    columns = (Column("property", "property"), Column("value", "value", "code"))
    return section_of(
        "Model fingerprint",
        table_of("fingerprint", "What the trace shows.", columns, fingerprint(study)),
        table_of(
            "config", "The config that it was built from, as far as it decides shapes.",
            (Column("key", "key", "code"), Column("value", "value", "code")),
            config_rows(study.config),
        ),
    )  # fmt: skip


def _diagrams(study: Study) -> Section | None:
    steps = steps_of(study, detailed(study))
    order = {"prefill": 0, "forward": 1, "decode": 2, "training": 3}
    step = min(steps, key=lambda s: order.get(s.workload.phase, 4))
    cached = next((s for s in steps if s.workload.phase == "decode"), step)
    found: list[Diagram | None] = [stack(step.trace)]
    layer = _heaviest_layer(step)
    if layer:
        found.append(inside(
            step.trace, layer, "layer",
            f"Inside {pattern(layer)}, the layer that takes most time: a box a child or a run of "
            "the layer's own ops, an arrow where one reads what the other wrote.",
        ))  # fmt: skip
        for category, trace in ((ATTENTION, cached.trace), (EXPERTS, step.trace),
                                (FEED_FORWARD, step.trace)):  # fmt: skip
            if category == FEED_FORWARD and any(d and d.name == "experts" for d in found):
                continue
            name, phase = category.replace("-", "_"), trace.header.get("phase", "")
            drawn = (
                inside(trace, module, name, f"Inside {pattern(module)} ({category}, {phase}).")
                for module in _blocks(trace, layer, category)
            )
            found.append(next((diagram for diagram in drawn if diagram is not None), None))
    return section_of("Architecture diagrams", *found)


def _heaviest_layer(step: Step) -> str:
    """The traced layer that takes most time; "" if nothing repeats."""

    def layer(path: str) -> str:
        names = path.split(".")
        at = next((i for i, name in enumerate(names) if name.isdigit()), None)
        return "" if at is None else ".".join(names[: at + 1])

    times = step.times.by(lambda k, n: layer(k.kernel.parts[n].module))
    return next((name for name in times if name), "")


def _blocks(trace: Trace, layer: str, category: str) -> list[str]:
    """Modules of `category` inside of `layer`, highest first: a wrapper shows little."""
    known = Categories(trace)
    paths = {c.module for c in trace.calls if c.module.startswith(f"{layer}.")}
    mine = [path for path in paths if known.of(path) == category]
    return sorted(mine, key=lambda path: (path.count("."), path))


def _stored(study: Study) -> Trace:
    """A trace with the weights as a server holds them; training may keep them in another format."""
    steps = study.steps
    return next((s for s in steps if s.workload.phase != "training"), steps[0]).trace


def _parameters(study: Study) -> Section | None:
    trace = _stored(study)
    by_category = parameters_by_category(study)
    whole = sum(by_category.values())
    if not whole:
        return None
    parameters = [p for p in trace.parameters if not p.buffer]
    buffers = sum(p.nbytes for p in trace.parameters if p.buffer)
    first = [p for p in study.steps[0].trace.parameters if not p.buffer]
    trainable = sum(p.numel for p in first if p.trainable)
    dtypes: dict[str, list[int]] = {}
    for p in parameters:
        row = dtypes.setdefault(p.dtype, [0, 0])
        row[0] += p.numel
        row[1] += p.nbytes
    held = sum(p.nbytes for p in parameters)
    text = (
        f"{whole:,} parameters, {trainable:,} of them trainable in the first phase traced, take "
        f"{held:,} bytes as stored"
    )
    text += f"; buffers take {buffers:,} more." if buffers else "."
    trained = sum(p.nbytes for p in first)
    if study.steps[0].workload.phase == "training" and trained != held:
        text += f" In training they take {trained:,} bytes."
    figure = Figure(
        "parameters",
        "Where the parameters live. This is not where the time goes: compare with the shares of "
        "time by category.",
        Drawing(draw_ring, (by_category, palette.CATEGORIES, "Parameters", "parameters")),
        (8.0, 3.4),
    )
    return section_of(
        "Parameters and memory",
        Text(text),
        Table(
            "parameters_by_category",
            "Parameters by what their module is for."
            + "".join(
                f" **{name}**: {text}" for name, text in _CATEGORIES.items() if name in by_category
            ),
            (Column("category", "category"), Column("parameters", "parameters", "count"),
             Column("share", "share", "share")),
            [(name, count, count / whole) for name, count in by_category.items()],
            ("total", whole, 1.0),
        ),
        Table(
            "parameters_by_dtype",
            "Parameters by the type that they are stored in"
            f"{_without_training(study)}.",
            (Column("dtype", "dtype", "code"), Column("parameters", "parameters", "count"),
             Column("bytes", "bytes", "B")),
            [(name, numel, nbytes) for name, (numel, nbytes) in sorted(dtypes.items())],
            ("total", sum(p.numel for p in parameters), held),
        ),
        figure,
    )  # fmt: skip


def _each(whole: int, count: int) -> int | None:
    """The parameters of one instance; None where they differ."""
    return whole // count if whole % count == 0 else None


def _without_training(study: Study) -> str:
    """Says where the formats are from, if there is a training step beside."""
    phases = {step.workload.phase for step in study.steps}
    return ", outside of training" if "training" in phases and len(phases) > 1 else ""


def _modules(study: Study) -> Section | None:
    trace = _stored(study)
    groups: dict[str, list[int]] = {}
    owners: dict[str, set[str]] = {}
    for p in trace.parameters:
        if p.buffer:
            continue
        owner = p.name.rpartition(".")[0]
        name = pattern(owner)
        row = groups.setdefault(name, [0, 0])
        row[0] += p.numel
        row[1] += p.nbytes
        owners.setdefault(name, set()).add(owner)
    if not groups:
        return None
    whole, held = (sum(row[i] for row in groups.values()) for i in (0, 1))
    ordered = sorted(groups.items(), key=lambda item: -item[1][0])
    rows: list[tuple[object, ...]] = [
        (name, len(owners[name]), _each(numel, len(owners[name])), numel, numel / whole, nbytes)
        for name, (numel, nbytes) in ordered[:_ROWS]
    ]
    rest = ordered[_ROWS:]
    if rest:
        numel, nbytes = (sum(row[i] for _, row in rest) for i in (0, 1))
        rows.append((f"{len(rest)} others", sum(len(owners[n]) for n, _ in rest), None, numel,
                     numel / whole, nbytes))  # fmt: skip
    return section_of(
        "Modules",
        Table(
            "modules",
            "Modules that hold parameters, layer numbers as *, largest first.",
            (
                Column("module", "module pattern", "module"),
                Column("instances", "instances", "count"),
                Column("each", "parameters each", "size"),
                Column("parameters", "parameters", "count"),
                Column("share", "share", "share"),
                Column("bytes", "bytes", "B"),
            ),
            rows,
            ("total", sum(len(o) for o in owners.values()), None, whole, 1.0, held),
        ),
    )
