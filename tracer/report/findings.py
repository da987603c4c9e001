"""Conclusions, each a rule over `Facts` with the figures that it rests on.

A rule is a function of facts that says nothing where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .facts import Facts, PhaseFacts
from .text import listed, plural, seconds, si, size

MATTERS = 0.05  # of a step: less is not worth a line
DOMINATES = 0.5  # of the bytes, or of the memory held
HELD = {
    "weights": "weights", "kv": "KV cache", "gradients": "gradients",
    "optimizer": "optimizer state", "activations": "activations",
}  # fmt: skip
ROLES = HELD | {"temporary": "temporary tensors"}
CLEAR = 0.6  # of the time, from which one resource alone is the limit


class Finding(NamedTuple):
    """`text` is the sentence, `evidence` the figures, `saves` seconds of `phase` at most."""

    rule: str
    text: str
    evidence: str
    phase: str = ""
    saves: float | None = None
    share: float | None = None  # of the phase's step


def conclusions(facts: Facts) -> list[Finding]:
    """What is so, most important first."""
    return [finding for rule in _CONCLUSIONS for finding in rule(facts)]


def _limits(facts: Facts) -> Iterator[Finding]:
    """What each phase waits for."""
    for p in facts.phases:
        share = p.shares[p.regime]
        second = max((n for n in p.shares if n != p.regime), key=lambda n: p.shares[n])
        if share >= CLEAR:
            text = f"{p.phase.capitalize()} is {p.regime}-bound"
        else:
            text = f"{p.phase.capitalize()} is split, {p.regime} first"
        why = "no matrix work"
        if p.intensity:
            why = f"{p.intensity:,.1f} FLOP/B against a ridge of {p.ridge:,.0f} ({p.mix})"
            side = "compute" if p.intensity > p.ridge else "memory"
            if p.regime in ("compute", "memory") and p.regime != side:
                why += f"; by its sums alone it would be {side}-bound, kernel by kernel it is not"
        yield Finding(
            f"{p.regime}-bound" if share >= CLEAR else "split",
            f"{text}: {share:.0%} of its {seconds(p.step)} waits for {p.regime}, "
            f"{p.shares[second]:.0%} for {second}.",
            why,
            p.phase,
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    """Whether it fits, and what fills the memory."""
    tight = [p for p in facts.phases if not p.fits]
    if not tight:
        if facts.phases:
            most = max(facts.phases, key=lambda p: sum(p.held.values()))
            held = sum(most.held.values())
            one = len(facts.phases) == 1
            yield Finding(
                "fits",
                f"{most.phase.capitalize() if one else 'Every phase'} fits in one {facts.chip}.",
                f"{most.phase} holds {'' if one else 'most: '}{size(held)} of "
                f"{size(facts.chip_memory)}{_tight(held, facts.chip_memory)}",
            )
        return
    names = listed([f"{p.phase} needs at least {plural(p.chips, 'chip')}" for p in tight])
    which = "that phase" if len(tight) == 1 else "those phases"
    worst = max(tight, key=lambda p: p.chips)
    held = sum(worst.held.values())
    kind = max(worst.held, key=lambda name: worst.held[name])
    yield Finding(
        "infeasible",
        f"It does not fit in one {facts.chip}: {names}. Throughput of {which} on one chip is "
        "hypothetical.",
        f"{worst.phase} holds {size(held)}, {worst.held[kind] / held:.0%} of it {HELD[kind]}; "
        f"one chip has {size(facts.chip_memory)}",
    )


def _tight(held: float, capacity: float) -> str:
    """What is left, where an allocator, a driver and workspaces may not find room in it."""
    left = 1 - held / capacity
    return f"; {left:.0%} are left for allocator and driver" if left < 0.1 else ""


_MEANS = {
    "weights": "reads weights more than anything else: a smaller or shared read of them pays",
    "kv": "reads the KV cache more than anything else: its length and format decide",
    "activations": "moves activations more than anything else: fusion and fewer passes pay",
    "temporary": "moves what lives inside of its modules more than anything else: fusion pays",
    "gradients": "moves gradients more than anything else",
    "optimizer": "moves optimizer state more than anything else: the update, not the model",
}


def _bytes(facts: Facts) -> Iterator[Finding]:
    """Which role the bytes of a memory-bound phase have."""
    for p in facts.phases:
        if p.regime != "memory" or not p.moved:
            continue
        role = max(p.bytes, key=lambda name: p.bytes[name])
        share = p.bytes[role] / p.moved
        if share >= DOMINATES:
            yield Finding(
                f"{role}-dominated",
                f"{p.phase.capitalize()} {_MEANS[role]}.",
                f"{share:.1%} of {si(p.moved)}B are {ROLES[role]}",
                p.phase,
            )


def _experts(facts: Facts) -> Iterator[Finding]:
    """Parameters of experts are not their time."""
    if facts.expert_parameters and facts.experts:
        times = listed(
            [f"{p.categories.get('experts', 0) / p.step:.0%} of {p.phase}" for p in facts.phases]
        )
        chosen = f", a token takes {facts.top_k}" if facts.top_k else ""
        yield Finding(
            "moe",
            f"The experts hold {facts.expert_parameters:.1%} of the parameters and take {times} "
            "time.",
            f"{facts.experts} experts{chosen}; {facts.active / facts.parameters:.1%} of the "
            "parameters meet a token",
        )
    elif facts.parameters:
        where = listed([
            f"{_largest(p)[0]} in {p.phase} ({_largest(p)[1] / p.step:.0%})" for p in facts.phases
        ])  # fmt: skip
        meet = (
            f"{facts.parameters:,} parameters, all of which meet every {facts.item}"
            if facts.active == facts.parameters
            else f"{facts.active:,} of {facts.parameters:,} parameters meet a {facts.item}"
        )
        if facts.tables:
            meet = (
                f"{facts.parameters:,} parameters, {facts.tables:.1%} of them in tables of which a "
                f"{facts.item} meets a few rows"
            )
        main = "The model is dense"
        if facts.tables >= DOMINATES:
            main = f"Tables that are looked up hold {facts.tables:.1%} of the parameters"
        yield Finding(
            "tables" if facts.tables >= DOMINATES else "dense",
            f"{main}; the largest part of the time goes to {where}.",
            meet,
        )


def _largest(p: PhaseFacts) -> tuple[str, float]:
    return max(p.categories.items(), key=lambda item: item[1])


def _execution(facts: Facts) -> Iterator[Finding]:
    """What fused attention and fusion change."""
    for p in facts.phases:
        if p.naive is not None and p.naive.step > p.step * (1 + MATTERS):
            yield Finding(
                "fusion",
                f"Fused kernels make {p.phase} {p.naive.step / p.step:.1f} times as fast as one "
                "kernel an op.",
                f"{seconds(p.naive.step)} to {seconds(p.step)}; bytes {si(p.naive.bytes)}B to "
                f"{si(p.moved)}B",
                p.phase,
            )


def _crossover(facts: Facts) -> Iterator[Finding]:
    """Where the regime changes, if anyone looked."""
    for p in facts.phases:
        if p.searched == 0:
            continue
        if p.crossing is None:
            reach = "" if p.searched is None else f" up to {p.searched:,}"
            yield Finding(
                "no-crossover",
                f"{p.phase.capitalize()} reaches the ridge at no {p.axis}{reach}.",
                _now(p),
                p.phase,
            )
        else:
            verb = "is beyond the ridge from" if _at(p) >= p.crossing else "reaches the ridge at"
            more = " on" if _at(p) >= p.crossing else ""
            yield Finding(
                "crossover",
                f"{p.phase.capitalize()} {verb} {p.axis} {p.crossing:,.0f}{more}.",
                _now(p),
                p.phase,
            )


def _now(p: PhaseFacts) -> str:
    note = f"; {p.crossing_note}" if p.crossing_note else ""
    return (
        f"{p.intensity:,.1f} FLOP/B at {p.axis} {_at(p):,} against a ridge of {p.ridge:,.0f} "
        f"({p.mix}){note}"
    )


def _at(p: PhaseFacts) -> int:
    return p.batch if p.axis == "batch" else p.length


def _trust(facts: Facts) -> Iterator[Finding]:
    """How sure the seconds are."""
    wide = [p for p in facts.phases if p.spread is not None and p.step]
    if not wide:
        return
    worst = max(wide, key=lambda p: (p.spread or (0, 0))[1] / p.step)
    low, high = worst.spread or (worst.step, worst.step)
    reach = f"{low / worst.step - 1:+.0%}..{high / worst.step - 1:+.0%}"
    text = f"The seconds are good to {reach}"
    if not facts.calibrated:
        text = f"No kernel was measured on {facts.chip}: its constants are another chip's, {reach}"
    more = f", {_percent(facts.unmodelled)} on bytes alone" if facts.unmodelled else ""
    yield Finding(
        "uncalibrated" if not facts.calibrated else "spread",
        f"{text} (P10 to P90 of the kernel constants, {worst.phase}).",
        f"{_estimated(facts)}{more}",
    )


def _estimated(facts: Facts) -> str:
    if not facts.estimated:
        return "every count follows from shapes"
    return f"{_percent(facts.estimated)} of a phase's time rests on estimates"


def _percent(share: float) -> str:
    """At most so much of something; a trace of it is not 0 %."""
    return f"up to {share:.0%}" if share >= 0.005 else "less than 1%"


_CONCLUSIONS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _limits, _memory, _bytes, _experts, _execution, _crossover, _trust,
)  # fmt: skip
