"""Where the seconds of a step go."""

from __future__ import annotations

from ...predict.detail import COMPUTE
from ...predict.training import TrainingStep
from .. import palette
from ..bars import draw_shares
from ..blocks import Column, Drawing, Figure, Section, Table, Text, section_of, table_of
from ..plan_study import LIMITS, PlanStudy
from ..plans import SLOTS
from ..text import seconds

_COLOURS = {"compute": palette.STEP["compute"], **palette.COMPUTE, **palette.STEP}
_SHARES = (Column("seconds", "time", "s"), Column("share", "of it", "share"))


def section(study: PlanStudy) -> Section | None:
    """The step's parts, what it waits for, and slots of the pipeline."""
    detail, step = study.detail, study.step
    parts = {name: s for name, s in detail.parts.items() if s}
    training = isinstance(step, TrainingStep)
    deep = step.plan.pp > 1
    if training:
        who = "A GPU's step" + (", the mean over the pipeline's ranks." if deep else ".")
    else:
        who = "One step of the instance" + (", all stages one after the other." if deep else ".")
    # What is a part of its own has one name, and one colour, in both bars.
    names = {LIMITS[part]: part for part in detail.parts if part != COMPUTE}
    waits = {names.get(name, name): s for name, s in study.limits.items()}
    bars = [("by part", parts), ("by what it waits for", waits)]
    return section_of(
        "Where the time goes",
        Text(who + _skew(study)),
        _split("breakdown", "Seconds of a step by part." + study.if_it_fit, "part", parts),
        _split(
            "limits",
            "The same step by what it waits for. Compute is its kernels, by what bounds each once "
            "it has started" + (
                ", gradients of a micro-batch that are added to those kept" if training else ""
            ) + ", and what kernels take longer while messages hold SMs." + study.if_it_fit,
            "waits for",
            study.limits,
        ),
        Figure(
            "breakdown", "The step by part, and by what it waits for." + study.if_it_fit,
            Drawing(draw_shares, (
                bars, _COLOURS, "the step's time", f"{seconds(step.seconds)} a step",
            )),
            (8.0, 2.9),
        ),
        _slots(study) if training else None,
    )  # fmt: skip


def _split(name: str, caption: str, header: str, parts: dict[str, float]) -> Table | None:
    total = sum(parts.values())
    return table_of(
        name, caption, (Column("part", header), *_SHARES),
        [(part, s, s / total) for part, s in sorted(parts.items(), key=lambda item: -item[1])],
        ("step", total, 1.0),
    )  # fmt: skip


def _skew(study: PlanStudy) -> str:
    step = study.step
    if step.load.rows <= 1:
        return ""
    saved = step.imbalance or 0.0
    return (
        f" The busiest expert-parallel rank has {step.load.rows:.3f} times the mean's rows; even "
        f"experts would save {seconds(saved)} ({saved / step.seconds:.1%} of a step)."
    )


def _slots(study: PlanStudy) -> Table | None:
    """Slots of the pipeline and what is outside of it: they add up to the step, too."""
    step = study.step
    assert isinstance(step, TrainingStep)
    if step.plan.pp == 1:
        return None
    pipeline = step.pipeline
    parts = {text: step.slots.get(kind, 0.0) for kind, text in SLOTS.items()}
    parts |= {
        "kept from computing by its own sends": sum(pipeline.sending) / len(pipeline.sending),
        "bubble": sum(pipeline.bubble) / len(pipeline.bubble),
        "messages over data ranks": step.slots["data"],
        "optimizer, weights rounded to FP8": step.slots["optimizer"],
    }
    total = sum(parts.values())
    return table_of(
        "slots",
        "The same step by slot of the pipeline, messages that nothing hides included; a backward "
        "that runs in one slot counts under 1B and 1W. Published figures come by these names; the "
        "only ones there are say that slots are less sure than the step (`docs/plans.md`)."
        + study.if_it_fit,
        (Column("slot", "slot"), *_SHARES),
        [(name, s, s / total) for name, s in parts.items() if s],
        ("step", total, 1.0),
    )
