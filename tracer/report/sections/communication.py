"""Plans over many chips and what they send, where they were computed."""

from __future__ import annotations

from ..blocks import Column, Section, Text, section_of, table_of
from ..summary import Study


def section(study: Study) -> Section | None:
    """Absent on one chip."""
    plans = table_of(
        "plans",
        "A step under each plan. **compute** and **memory** are the ideal ones, **network** is "
        "what nothing hides; tokens/s are those of all chips together, none where it does not fit. "
        "It **fits** if the whole memory holds it, with nothing kept free.",
        (
            Column("phase", "phase"),
            Column("plan", "plan"),
            Column("chip", "chip", "code"),
            Column("chips", "chips", "size"),
            Column("step", "step", "s"),
            Column("compute", "compute", "s"),
            Column("memory", "memory", "s"),
            Column("network", "network", "s"),
            Column("tokens_per_s", "tokens/s", "tokens/s"),
            Column("per_chip", "tokens/s a chip", "tokens/s"),
            Column("held", "holds a chip", "B"),
            Column("fits", "fits"),
            Column("regime", "waits for"),
        ),
        [
            (p.phase, p.plan, p.chip, p.chips, p.step, p.compute, p.memory, p.network,
             p.tokens / p.step if p.fits else None,
             p.tokens / p.step / p.chips if p.fits else None, p.held, "yes" if p.fits else "no",
             p.regime)
            for p in study.plans or ()
        ],
    )  # fmt: skip
    messages = table_of(
        "messages",
        "What one chip sends in a step, by collective.",
        (
            Column("phase", "phase"),
            Column("plan", "plan"),
            Column("collective", "collective", "code"),
            Column("group", "group"),
            Column("calls", "calls", "count"),
            Column("bytes", "bytes", "B"),
            Column("seconds", "time", "s"),
            Column("hidden", "of it hidden", "s"),
        ),
        [tuple(message) for message in study.messages or ()],
    )
    if plans is None and messages is None:
        return None
    return section_of(
        "Plans and communication",
        Text(
            "What a split of the model over chips costs in messages, and what it leaves of the "
            "step. **dp = ep N**: N chips with a batch each share the routed experts, which are "
            "hit evenly; every layer sends its rows to their experts, one for each expert that a "
            "token chose, and gets them back; nothing hides that. Link bandwidths count one "
            "direction. `python -m tracer.plan` prices whole plans and writes a report of each: "
            "tensor and pipeline parallelism, overlap, rows that go once to a node, uneven experts."
        ),
        plans,
        messages,
    )
