"""What a step holds, and whether a chip has it."""

from __future__ import annotations

from ...predict import Step
from .. import palette
from ..bars import draw_held
from ..blocks import Column, Drawing, Figure, Section, Text, section_of, table_of
from ..facts import MEMORY_KINDS, item_of, steps_of
from ..summary import Study
from ..text import listed, size

_STANDING = {
    "weights": "weights", "kv": "caches", "gradients": "gradients", "optimizer": "optimizer state",
}  # fmt: skip


def section(study: Study) -> Section | None:
    """Bytes held by what they are for, chips at least, sequences that fit."""
    steps = steps_of(study)
    holds = "samples" if item_of(study) == "sample" else "sequences"
    kinds = [kind for kind in MEMORY_KINDS if any(getattr(s.memory, kind) for s in steps)]
    standing = listed([_STANDING[kind] for kind in kinds if kind in _STANDING])
    chip = study.chips[0]
    limit = float(chip.memory_capacity)
    held = [{kind: getattr(s.memory, kind) for kind in MEMORY_KINDS} for s in steps]
    names = [f"{s.workload.phase}, {s.ledger.execution}" for s in steps]
    colours = {kind: palette.ROLES[kind] for kind in MEMORY_KINDS}
    return section_of(
        "Memory feasibility",
        Text(
            (f"{standing.capitalize()} are taken as held throughout; activations" if standing
               else "Activations")
            + " are the peak of everything that comes and goes, replayed op by op. An allocator "
            "adds rounding and fragments on top. A step that does not fit here does not "
            f"run on one {chip.name} ({size(limit)}), whatever its time."
        ),
        table_of(
            "memory",
            "Bytes held at the worst moment. **chips at least**: if the bytes divided perfectly.",
            (
                Column("phase", "phase"),
                Column("exec", "exec"),
                *(Column(kind, kind, "B") for kind in MEMORY_KINDS),
                Column("total", "total", "B"),
                Column("chips", "chips at least", "size"),
                Column("most", f"{holds} that fit in one chip", "size"),
            ),
            [
                (s.workload.phase, s.ledger.execution, *(h[k] or None for k in MEMORY_KINDS),
                 s.memory.total, s.chips_at_least, _most(s))
                for s, h in zip(steps, held, strict=True)
            ],
        ),
        Figure(
            "memory",
            "Bars right of the dashed line do not fit in one chip.",
            Drawing(draw_held, (list(zip(names, held, strict=True)), colours, limit, chip.name)),
            (8.0, 1.4 + 0.42 * len(steps)),
        ),
    )  # fmt: skip


def _most(step: Step) -> int | None:
    """Sequences of this length that fit beside what does not grow; None if that does not fit."""
    memory = step.memory
    fixed = memory.weights + memory.gradients + memory.optimizer
    each = (memory.kv + memory.activations) / step.workload.batch
    room = float(step.chip.memory_capacity) - fixed
    return int(room / each) if room >= each > 0 else None
