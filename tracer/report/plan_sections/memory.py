"""Bytes of every GPU of a pipeline, and whether they fit."""

from __future__ import annotations

from ...predict.gpu_memory import GpuMemory
from ...predict.serving import ServingStep
from .. import palette
from ..bars import draw_held
from ..blocks import Column, Drawing, Figure, Section, Table, Text, section_of, table_of
from ..plan_study import PlanStudy, held_by
from ..text import plural, size

_COLOURS = {
    **{name: palette.ROLES[name] for name in ("weights", "gradients", "optimizer", "activations",
                                              "kv")},
    "working": palette.ROLES["temporary"],
}  # fmt: skip


def section(study: PlanStudy) -> Section | None:
    """The fullest GPU by part, and every rank of the pipeline."""
    step, memories = study.step, study.detail.memories
    m = step.memory
    free = m.capacity - m.reserve - m.total
    verdict = f"{size(free)} are left" if m.fits else f"{size(-free)} are missing"
    names = [f"rank {number}" if len(memories) > 1 else "every GPU"
             for number in range(len(memories))]  # fmt: skip
    bars = list(zip(names, (held_by(step, memory) for memory in memories), strict=True))
    chip = step.cluster.chip.name
    return section_of(
        "Memory feasibility",
        Text(
            f"The fullest GPU holds {size(m.total)} at its worst moment. Of {size(m.capacity)}, "
            f"{size(m.reserve)} are kept free for the allocator's fragments, the driver and "
            f"communication{_buffers(m)}: {verdict}." + _serving(study)
        ),
        _fullest(study),
        _ranks(study) if len(memories) > 1 else None,
        Figure(
            "memory",
            "Bars right of the dashed line do not fit.",
            Drawing(draw_held, (
                bars, _COLOURS, m.capacity - m.reserve, f"{chip} less {size(m.reserve)}",
            )),
            (8.0, 1.4 + 0.3 * len(bars)),
        ),
    )  # fmt: skip


def _fullest(study: PlanStudy) -> Table | None:
    m = study.step.memory
    return table_of(
        "memory",
        "The fullest GPU by what its bytes are for. **working** is the most that is needed beside "
        "what is kept: results in passing, gathered layers.",
        (Column("part", "part"), Column("bytes", "bytes", "B"),
         Column("share", "of the chip", "ratio")),
        [(name, held, held / m.capacity) for name, held in study.held().items() if held],
        ("all", m.total, m.total / m.capacity),
    )  # fmt: skip


def _ranks(study: PlanStudy) -> Table | None:
    step = study.step
    held = [held_by(step, memory) for memory in study.detail.memories]
    kinds = [kind for kind in held[0] if any(h[kind] for h in held)]
    return table_of(
        "memory_ranks",
        "By rank of the pipeline.",
        (Column("rank", "rank", "size"), *(Column(kind, kind, "B") for kind in kinds),
         Column("total", "all", "B"), Column("fits", "fits")),
        [
            (number, *(h[kind] or None for kind in kinds), memory.total, _fits(memory))
            for number, (h, memory) in enumerate(zip(held, study.detail.memories, strict=True))
        ],
    )  # fmt: skip


def _buffers(memory: GpuMemory) -> str:
    if not memory.buffers:
        return ""
    return f" ({size(memory.buffers)} of it for the exchange of experts' tokens)"


def _fits(memory: GpuMemory) -> str:
    return "yes" if memory.fits else "no"


def _serving(study: PlanStudy) -> str:
    step = study.step
    if not isinstance(step, ServingStep):
        return ""
    text = f" {size(step.kv)} of it are the KV cache of {plural(step.batch, 'sequence')}"
    if step.plan.pp > 1:
        text += f" in each of {step.plan.pp} batches in flight"
    if step.largest_batch is not None:
        text += f"; at most {plural(step.largest_batch, 'sequence')} of a data rank fit"
    if step.longest_context:
        text += f", or this batch with {step.longest_context:,} keys each"
    return text + "."
