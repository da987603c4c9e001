"""What no kernel and no schedule can change: floors of the architecture on a chip."""

from __future__ import annotations

from typing import NamedTuple

from ...cost.conventions import distinct_experts
from ...predict import Step
from ..blocks import Column, Section, Text, section_of, table_of
from ..decode import batching
from ..facts import detailed, routing, steps_of
from ..summary import Study
from ..text import plural, seconds, si, size
from .decode_limit import far_of, limit_of


class _Limit(NamedTuple):
    """`value` in base units, `reads` as people read it, `why` with the arithmetic."""

    what: str
    value: float
    reads: str
    why: str


def section(study: Study) -> Section | None:
    """Floors and ceilings on the first chip."""
    rows: list[_Limit] = []
    for step in steps_of(study, detailed(study)):
        rows += _of_step(step)
        if step.workload.phase == "decode":
            rows += _of_cache(study, step)
            rows += _of_experts(study, step)
    chip = study.chips[0]
    return section_of(
        "Architectural limits",
        Text(
            f"Bounds that the architecture sets on one {chip.name}, from the datasheet's rates: no "
            "kernel, fusion or schedule gets past them without changing the model, its precision, "
            "the workload or the chip."
        ),
        table_of(
            "limits",
            "Each with its arithmetic.",
            (
                Column("limit", "limit"),
                Column("value", "value in base units", "number"),
                Column("reads", "reads"),
                Column("why", "because"),
            ),
            [tuple(row) for row in rows],
        ),
    )


def _of_step(step: Step) -> list[_Limit]:
    chip, work = step.chip, step.workload
    found = []
    if step.times.compute:
        found.append(_Limit(
            f"{work.phase}: time of its matrix work", step.times.compute,
            seconds(step.times.compute),
            f"{si(step.cost.total_flops)}FLOP at the dense peaks of their precisions",
        ))  # fmt: skip
    weights = step.cost.read.get("weights", 0)
    if work.phase == "decode":
        floor = weights / chip.memory_bandwidth
        found.append(_Limit(
            f"decode: time to read the weights of a step once, at batch {work.batch:,}", floor,
            seconds(floor),
            f"{si(weights)}B over {si(chip.memory_bandwidth)}B/s: at most "
            f"{work.tokens / floor:,.0f} tokens/s at this batch" if floor else "no weights",
        ))  # fmt: skip
    return found


def _of_cache(study: Study, step: Step) -> list[_Limit]:
    b = batching(step)
    found = []
    room = float(step.chip.memory_capacity)
    each = step.memory.kv / step.workload.batch
    if study.inventory.kv_bytes_per_token and each:
        length = step.workload.context
        tokens = room / each * length
        found.append(_Limit(
            f"tokens of cache that the whole memory of a chip holds, in sequences of {length:,}",
            tokens, f"{tokens:,.0f}",
            f"{size(room)} over {si(each)}B a sequence, with no room for weights",
        ))  # fmt: skip
    far = far_of(study, step)
    if far is not None:
        found.append(_Limit(
            "FLOP/B of decode as the context grows", far.intensity, f"{far.intensity:,.1f}",
            "what a key more brings, FLOPs over bytes, from the closed forms; the ridge of its "
            f"FLOPs is {far.ridge:,.0f}",
        ))  # fmt: skip
    limit = limit_of(study, step)
    found.append(_Limit(
        "FLOP/B of decode as the batch grows, at this context", limit, f"{limit:,.1f}",
        f"{si(b.flops)}FLOP over {si(b.flops / limit)}B, what a sequence more brings; the ridge is "
        f"{b.ridge:,.0f}" if limit else "no matrix work",
    ))  # fmt: skip
    return found


def _up_to(hit: float, experts: int) -> str:
    """12 of 12 only if it is all of them."""
    text = f"{hit:,.1f}"
    if float(text.replace(",", "")) < experts:
        return text
    return f"{experts}" if hit >= experts * (1 - 1e-9) else f"all but {experts - hit:.2g}"


def _of_experts(study: Study, step: Step) -> list[_Limit]:
    experts, top_k = routing(study)
    if not experts or not top_k:
        return []
    tokens = step.workload.tokens
    law = study.conventions.routing
    hit = distinct_experts(law, experts, top_k, tokens)
    rows = tokens * top_k / hit
    return [
        _Limit(
            f"distinct experts of a layer that {plural(tokens, 'decoded token')} "
            f"{'hits' if tokens == 1 else 'hit'}", hit, f"{_up_to(hit, experts)} of {experts}",
            f"routing={law}; each is read whole, for {rows:,.1f} rows in the mean",
        )
    ]  # fmt: skip
