"""Next steps, each a rule over `Facts`, ranked by the time that its cause takes today.

That is what a change may save at most: something else limits next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from .facts import Facts, PhaseFacts
from .findings import DOMINATES, HELD, MATTERS, Finding
from .text import plural, seconds, si, size

SMALL = 0.1  # of the time: below it, what a chip can do at full rates is not what limits


def next_steps(facts: Facts, most: int = 3) -> list[Finding]:
    """A phase at a time: what makes it run at all, then up to `most` by what they may save."""
    found: list[Finding] = []
    for phase in facts.phases:
        found += _fit(facts, phase)
        mine = [f for rule in _NEXT for f in rule(facts, phase)]
        mine = [f for f in mine if (f.share or 0) >= MATTERS]
        found += sorted(mine, key=lambda f: -(f.share or 0))[:most]
    return found


def _fit(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    if p.fits:
        return
    held = sum(p.held.values())
    kind = max(p.held, key=lambda name: p.held[name])
    least = facts.chip_memory - (held - p.held[kind])  # what of `kind` would fit
    other = ""
    if kind == "activations" and p.phase == "training":
        fewer = math.ceil((held - p.held[kind]) / facts.chip_memory)
        if fewer < p.chips:
            other = (
                f", or over {fewer:,} with its activations recomputed in the backward (up to a "
                "third more work)"
            )
    elif kind != "activations" and p.held[kind] <= _shrinks(facts, kind) * least:
        other = f", or bring its {HELD[kind]} down to {size(least)}"
    yield Finding(
        "shard",
        f"Spread it over at least {plural(p.chips, 'chip')}{other}: until it fits, its other rows "
        "are hypothetical.",
        f"{HELD[kind]} {size(p.held[kind])} of {size(held)}; one chip has "
        f"{size(facts.chip_memory)}",
        p.phase,
    )


def _shrinks(facts: Facts, kind: str) -> float:
    """By how much it does in the fewest bits that people use: 4 of a weight or a key, 4 bytes of
    optimizer state a parameter in place of 12.
    """
    if kind == "optimizer":
        return 3
    return {"fp32": 8, "bf16": 4, "fp16": 4, "fp8": 2}.get(facts.dtype, 4)


def _saving(p: PhaseFacts, rule: str, text: str, evidence: str, saves: float) -> Finding:
    return Finding(rule, text, evidence, p.phase, saves, saves / p.step if p.step else 0.0)


def _reading(p: PhaseFacts, *roles: str) -> float:
    """Seconds that wait for bytes of `roles`: their part of the time that waits for memory."""
    moved = sum(p.bytes.get(role, 0.0) for role in roles)
    return p.shares.get("memory", 0.0) * p.step * moved / p.moved if p.moved else 0.0


def _smaller_weights(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    if p.phase == "training":
        return
    half = {"bf16": "FP8", "fp16": "FP8", "fp32": "BF16", "fp8": "4-bit"}.get(facts.dtype)
    if half is not None:
        waits = _reading(p, "weights")
        yield _saving(
            p, "weights", f"Keep the weights in {half}: half of their bytes.",
            f"{waits / p.step:.0%} of the step waits for {si(p.bytes['weights'])}B of weights",
            waits / 2,
        )  # fmt: skip


def _more_sequences(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    """Weights are read once for all sequences of a batch."""
    waits = _reading(p, "weights")
    if p.phase == "decode" and p.regime == "memory" and waits >= DOMINATES * p.step:
        experts = ", less the experts that were not hit yet" if facts.experts else ""
        yield _saving(
            p, "batch",
            "Decode more sequences together: a read of the weights serves all of them. The step "
            f"grows, the time per token shrinks by up to this share{experts}.",
            f"{p.intensity:,.1f} FLOP/B at batch {p.batch}, the ridge is "
            f"{p.ridge / p.intensity:,.0f} times as high" if p.intensity else "no matrix work",
            waits,
        )  # fmt: skip


def _more_work(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    """Kernels of a small step take their least time, whatever is in them."""
    if p.bound < SMALL * p.step:
        item = "sequences" if facts.item == "token" else "samples"
        yield _saving(
            p, "batch",
            f"Put more {item} in a step: its kernels are too small to fill the chip. The time per "
            f"{facts.item} shrinks by up to this share.",
            f"all work at full rates takes {seconds(p.bound)} of {seconds(p.step)}",
            p.step - p.bound,
        )  # fmt: skip


def _smaller_cache(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    waits = _reading(p, "kv")
    if p.phase != "training":
        yield _saving(
            p, "kv", "Keep the KV cache in a format of half the size (--assume kv=fp8 prices one).",
            f"{waits / p.step:.0%} of the step waits for {si(p.bytes.get('kv', 0))}B of cache",
            waits / 2,
        )  # fmt: skip


def _fuse(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    waits = _reading(p, "activations", "temporary")
    moved = p.bytes.get("activations", 0) + p.bytes.get("temporary", 0)
    why = f"{waits / p.step:.0%} of the step waits for {si(moved)}B of activations"
    chains = p.shares.get("compute", 0.0) * p.step - p.products
    if chains >= MATTERS * p.step:
        why += f", {chains / p.step:.0%} for the instructions of copies and elementwise kernels"
        waits += chains
    yield _saving(
        p, "fuse", "Fuse across the kernels that remain: activations written and read again.",
        why, waits,
    )  # fmt: skip


def _optimizer(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    waits = _reading(p, "optimizer", "gradients")
    if p.phase == "training" and facts.tables >= DOMINATES:
        yield _saving(
            p, "sparse",
            "Update only the rows of its tables that a step looked up: sparse gradients and a "
            "sparse optimizer.",
            f"tables hold {facts.tables:.1%} of the parameters; {waits / p.step:.0%} of the step "
            "waits for gradients and optimizer state", waits * facts.tables,
        )  # fmt: skip
    elif p.phase == "training":
        yield _saving(
            p, "optimizer",
            "Update less often (more sequences or microbatches a step), spread the optimizer over "
            "the data-parallel chips, or keep its state in fewer bits.",
            f"{waits / p.step:.0%} of the step waits for "
            f"{si(p.bytes.get('optimizer', 0) + p.bytes.get('gradients', 0))}B of optimizer state "
            "and gradients", waits,
        )  # fmt: skip


def _precision(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    if p.faster is None or p.compute < SMALL * p.products:  # the peak is not what they wait for
        return
    name, ratio, part = p.faster
    waits = p.products * part
    which = "the products" if part > 0.99 else f"the {p.precision} products"
    yield _saving(
        p, "precision", f"Run {which} in {name}: {ratio:.1f} times the peak of {p.precision}.",
        f"{waits / p.step:.0%} of the step waits for {which[4:]} to compute",
        waits * (1 - 1 / ratio),
    )  # fmt: skip


def _closer_to_peak(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    lost = p.products - p.compute
    if lost > 0:
        yield _saving(
            p, "utilisation",
            "Bring the products nearer to the peak: larger tiles, fewer and larger products, "
            "padding to tile sizes.",
            f"products that wait for compute take {seconds(p.products)}, all FLOPs at the "
            f"datasheet's peak {seconds(p.compute)}", lost,
        )  # fmt: skip


def _last_logits(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    """A prompt's next token comes from its last position alone."""
    head = p.categories.get("head", 0.0)
    if p.phase == "prefill" and p.length > 1:
        yield _saving(
            p, "logits",
            "Compute logits of the last token of each prompt alone: the next token comes from it.",
            f"the head takes {seconds(head)} at all {p.tokens:,} positions",
            head * (1 - 1 / p.length),
        )  # fmt: skip


def _latency(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    waits = p.shares.get("latency", 0.0) * p.step
    yield _saving(
        p, "latency",
        "Record the step as a CUDA graph: the host launches every kernel on its own."
        if facts.eager
        else "Launch less: fewer and larger kernels, or starts that overlap with what runs.",
        f"{plural(p.launches, 'launch', 'launches')}: {waits / p.step:.0%} of the step waits "
        "for them to start", waits,
    )  # fmt: skip


def _network(facts: Facts, p: PhaseFacts) -> Iterator[Finding]:
    waits = p.shares.get("network", 0.0) * p.step
    yield _saving(
        p, "network",
        "Send less or behind compute: overlap, another split, messages in fewer bits.",
        f"{waits / p.step:.0%} of the step waits for collectives that nothing hides", waits,
    )  # fmt: skip


_NEXT: tuple[Callable[[Facts, PhaseFacts], Iterator[Finding]], ...] = (
    _smaller_weights, _more_sequences, _more_work, _smaller_cache, _fuse, _optimizer, _precision,
    _closer_to_peak, _last_logits, _latency, _network,
)  # fmt: skip
