"""Priced plans on a terminal: a table of where the seconds, the memory and the dollars go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ..predict.money import Money
from ..predict.serving import ServingStep
from ..predict.training import TrainingStep
from ..study.plans import Dropped, Found
from . import text
from .blocks import Table, Text
from .units import show

if TYPE_CHECKING:
    from .plan_sides import PlanSide
    from .plan_study import PlanStudy

SLOTS = {"F": "forward (1F)", "I": "input gradient (1B)", "W": "weight gradient (1W)",
         "F&B": "forward with backward (1F1B)"}  # fmt: skip


def render(
    step: TrainingStep | ServingStep, *, verbose: bool = False, advice: str = "",
    money: Money | None = None,
) -> str:  # fmt: skip
    """The plan's table; `advice` says what would make a plan fit that does not, `money` what a
    server's tokens cost.

    What does not fit has no throughput: its seconds are marked as hypothetical.
    """
    if isinstance(step, TrainingStep):
        lines = _training(step, advice)
    else:
        lines = _serving(step, advice, money)
    return "\n".join(lines + _noted(step, verbose))


def _noted(step: TrainingStep | ServingStep, verbose: bool) -> list[str]:
    """All notes, or what nobody is to miss: kernels that were never measured on such a chip."""
    notes = [f"note: {note}" for note in step.notes if verbose or "UNCALIBRATED" in note]
    return ["", *notes] if notes else []


def _head(step: TrainingStep | ServingStep) -> list[str]:
    gpus = text.plural(step.plan.world, "GPU")
    return [f"{step.model} on {gpus} of {step.cluster.name} ({step.cluster.chip.name})",
            f"plan: {step.plan}"]  # fmt: skip


def _memory(step: TrainingStep | ServingStep) -> tuple[str, str]:
    m = step.memory
    fits = "fits" if m.fits else "does not fit"
    kept = f"{text.size(m.reserve)} kept free"
    if m.buffers:
        kept += f" ({text.size(m.buffers)} of it DeepEP's)"
    return "memory of the fullest GPU", (
        f"{text.size(m.total)} of {text.size(m.capacity)}, {kept}: {fits}"
    )


def _training(step: TrainingStep, advice: str) -> list[str]:
    rows = _seconds(step)
    memory = [_memory(step), ("  of it", str(step.memory))]
    if not step.feasible:
        return [
            *_head(step), f"INFEASIBLE: {step.reason}", *([advice] if advice else []),
            "HYPOTHETICAL, as if GPUs had the memory:", _table([*rows, *memory]),
        ]  # fmt: skip
    return [*_head(step), _table([*rows, *_throughput(step), *memory])]


def _seconds(step: TrainingStep) -> list[tuple[str, str]]:
    rows = []
    b = step.breakdown
    assert b is not None
    share = [("compute", b.compute), ("exposed communication", b.communication),
             ("pipeline bubble", b.bubble), ("optimizer", b.optimizer)]  # fmt: skip
    rows.append(("step", f"{text.seconds(step.seconds)} for {step.tokens:,} tokens"))
    rows += [
        (f"  {name}", f"{text.seconds(value)} ({value / step.seconds:.0%})")
        for name, value in share
    ]
    rows += _uneven(step)
    return rows + _slots(step)


def _slots(step: TrainingStep) -> list[tuple[str, str]]:
    """The same step by slot of its pipeline, and what is left of it."""
    if step.plan.pp == 1:
        return []
    slots = {SLOTS[kind]: step.slots[kind] for kind in SLOTS if step.slots.get(kind)}
    slots["bubble, data ranks, optimizer"] = step.seconds - sum(slots.values())
    # How DeepSeek-V3's published step splits is the only check there is.
    return [
        ("the same by slot", "sums over the step, mean of the ranks, exposed messages included"),
        *((f"  {name}", text.seconds(value)) for name, value in slots.items()),
        ("", "slots are less sure than the step: see docs/plans.md"),
    ]


def _uneven(step: TrainingStep | ServingStep) -> list[tuple[str, str]]:
    """What even experts would save; nothing where no ranks exchange tokens."""
    if not step.imbalance:
        return []
    rows = f"{step.load.rows:.3f} x mean rows on the busiest rank"
    return [("  of it uneven experts", f"{text.seconds(step.imbalance)} ({rows})")]


def _throughput(step: TrainingStep) -> list[tuple[str, str]]:
    peak = f"of {text.si(step.peak)}FLOP/s {step.precision}"
    more = f"; {step.mfu_with_mtp:.1%} causal with MTP's FLOPs" if step.plan.mtp else ""
    rows = [
        ("tokens/s", f"{step.tokens_per_s:,.0f}; {step.tokens_per_s / step.plan.world:,.0f} a GPU"),
        ("MFU", f"{step.mfu:.1%} causal, {step.mfu_full:.1%} not causal, {peak}{more}"),
        ("GPU hours for 1e12 tokens", f"{step.gpu_hours_per_trillion:,.0f}"),
    ]
    hours = step.money.hours(step.tokens_per_s, step.plan.world)
    if hours is not None:
        cost = step.money.dollars(step.tokens_per_s, step.plan.world)
        dollars = "" if cost is None else f", {cost:,.0f} USD at {step.money.price:g} an hour"
        tokens = f"{text.si(step.money.tokens or 0).strip()} tokens"
        rows.append((tokens, f"{hours:,.0f} GPU hours{dollars}"))
    return rows


def _serving(step: ServingStep, advice: str, money: Money | None = None) -> list[str]:
    if not step.feasible:
        table = _table([_memory(step), *_edges(step)])
        return [*_head(step), f"INFEASIBLE: {step.reason}", *([advice] if advice else []), table]
    decode = step.phase == "decode"
    name = "TPOT" if decode else "TTFT, no queue"
    slowed = f", {text.seconds(step.slowed)} of it because messages hold SMs"
    slowed = slowed if step.slowed else ""
    keys = f"{step.context:,} keys" if decode else f"{step.seq:,} tokens"
    rows = [
        (
            name,
            f"{text.seconds(step.seconds)}, {text.plural(step.batch, 'sequence')} of {keys} "
            "a data rank" + (f" in each of {step.plan.pp} batches in flight" * (step.plan.pp > 1)),
        ),
        ("  compute", text.seconds(step.compute + step.slowed) + slowed),
        (
            "  exposed communication",
            f"{text.seconds(step.exposed)} of {text.seconds(step.communication)}",
        ),
        *([("  between stages", text.seconds(step.hops))] if step.hops else []),
        ("tokens/s", f"{step.tokens_per_s:,.0f}; {step.tokens_per_s_per_gpu:,.0f} a GPU"),
    ]
    rows[3:3] = _uneven(step)
    if money is not None:
        rows += _spent(step, money)
    if step.host:
        rows.append(("  host, eager", text.seconds(step.host)))
    if step.ep_limit is not None:
        rows.append(("least TPOT of the expert exchange", text.seconds(step.ep_limit)))
    rows.append(_memory(step))
    rows.append(("  KV cache", text.size(step.kv)))
    rows += _edges(step)
    return [*_head(step), _table(rows)]


def _spent(step: ServingStep, money: Money) -> list[tuple[str, str]]:
    """GPU hours and dollars, of a million tokens and of the tokens that were asked for."""
    hours, dollars = million(step, money)
    price = "" if dollars is None else f", {show(dollars, 'USD')} USD at {money.price:g} an hour"
    rows = [("GPU hours for 1e6 tokens", f"{show(hours, 'hours')}{price}")]
    run = money.hours(step.tokens_per_s, step.plan.world)
    if run is not None:
        cost = money.dollars(step.tokens_per_s, step.plan.world)
        price = "" if cost is None else f", {cost:,.0f} USD"
        tokens = f"{text.si(money.tokens or 0).strip()} tokens"
        rows.append((tokens, f"{run:,.0f} GPU hours{price}"))
    return rows


def render_compared(study: PlanStudy, other: PlanSide) -> str:
    """Both sides of `--compare`: seconds by part, memory, throughput."""
    from .plan_sections.compared import section

    found = section(study)
    assert found is not None
    lines = [f"\ncompared with {other.name}"]
    for block in found.blocks:
        if isinstance(block, Text):
            lines += re.findall(r"(?<=\*\*)(?:This|The other) plan [^*]+", block.text)
        if isinstance(block, Table) and block.name in _COMPARED:
            total = [block.total] if block.total is not None else []
            rows = [
                [show(v, c.unit) for v, c in zip(row, block.columns, strict=True)]
                for row in (*block.rows, *total)
            ]
            heads = [column.header for column in block.columns]
            right = ["left", *["right"] * (len(heads) - 1)]
            lines.append(tabulate(rows, heads, tablefmt="simple", disable_numparse=True,
                                  colalign=right))  # fmt: skip
    return "\n".join(lines)


_COMPARED = ("compared_results", "compared_breakdown", "compared_memory")


def million(step: ServingStep, money: Money) -> tuple[float, float | None]:
    """GPU hours and dollars of a million tokens; no dollars without a price."""
    hours = 1e6 / step.tokens_per_s * step.plan.world / 3600
    return hours, None if money.price is None else hours * money.price


def _edges(step: ServingStep) -> list[tuple[str, str]]:
    """How much more would fit, where it was asked for."""
    rows = []
    if step.largest_batch is not None:
        rows.append(("largest batch of a data rank", f"{step.largest_batch:,}"))
    if step.longest_context is not None:
        rows.append(("longest context of this batch", f"{step.longest_context:,}"))
    return rows


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return tabulate(rows, tablefmt="plain", disable_numparse=True, preserve_whitespace=True)


def nearest_to_fitting(item: Dropped) -> str:
    """The plan that comes nearest where none fits, and what takes less."""
    less = "more GPUs, --recompute full, --moments bf16 and --zero 3 take less"
    if item.alone:
        return (
            "weights and gradients alone are too large in every plan, "
            f"{(item.nbytes or 0) / 1e9:,.1f} GB a GPU and more; {less}"
        )
    return f"nearest to fitting is {item.plan}: {item.reason}; {less}"


def render_server_search(found: Found[ServingStep], top: int, *, verbose: bool = False) -> str:
    """The best plans of a server, and why the others are not among them."""
    rows = [
        (n + 1, str(s.plan), text.seconds(s.seconds), s.batch,
         f"{s.tokens_per_s / s.plan.world:,.0f}", f"{s.exposed / s.seconds:.0%}",
         f"{s.memory.total / 1e9:,.0f}")
        for n, s in enumerate(found.ranked[:top])
    ]  # fmt: skip
    name = "TTFT" if found.ranked and found.ranked[0].phase == "prefill" else "TPOT"
    header = ("", "plan", name, "batch", "tokens/s a GPU", "exposed", "GB")
    return _searched(found, rows, header, verbose)


def render_search(found: Found[TrainingStep], top: int, *, verbose: bool = False) -> str:
    """The best training plans, and why the others are not among them."""
    rows = [
        (n + 1, str(s.plan), text.seconds(s.seconds), f"{s.tokens_per_s / s.plan.world:,.0f}",
         f"{s.mfu:.1%}", f"{s.pipeline.bubble_share:.0%}", f"{s.memory.total / 1e9:,.0f}")
        for n, s in enumerate(found.ranked[:top])
    ]  # fmt: skip
    header = ("", "plan", "step", "tokens/s a GPU", "MFU", "bubble", "GB")
    return _searched(found, rows, header, verbose)


def _searched(
    found: Found[Any], rows: list[tuple[Any, ...]], header: tuple[str, ...], verbose: bool
) -> str:
    lines = [f"{text.plural(len(found.ranked), 'plan')} fit, {len(found.dropped):,} do not run"]
    if rows:
        lines.append(tabulate(rows, headers=header, tablefmt="simple", disable_numparse=True))
    elif found.nearest is not None:
        lines.append(nearest_to_fitting(found.nearest))
    first = found.first
    lines += [
        f"dropped, {kind}: {count:,}, such as {first[kind].plan}: {first[kind].why}"
        for kind, count in found.reasons.items()
    ]
    if verbose:
        lines += [f"  {item.plan}: {item.reason}" for item in found.dropped]
    if found.ranked:
        lines += _noted(found.ranked[0], verbose=False)
    return "\n".join(lines)
