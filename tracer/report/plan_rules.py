"""Conclusions and next steps of a plan, each a rule over `PlanFacts` with its figures.

A rule says nothing where it does not apply. `saves` is the time that a cause takes today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..predict.detail import BUBBLE, COMMUNICATION, HOPS, HOST, OPTIMIZER, SLOWED, SUMMED
from .findings import CLEAR, MATTERS, Finding
from .plan_facts import PlanFacts
from .plan_study import LIMITS
from .text import plural, seconds, si, size

SHOWN = 0.005  # shares below it would read 0%
TIGHT = 0.05  # of the chip's memory: less left is near the edge


def plan_conclusions(facts: PlanFacts) -> list[Finding]:
    """What is so, most important first."""
    return [finding for rule in _CONCLUSIONS for finding in rule(facts)]


def plan_next_steps(facts: PlanFacts, most: int = 6) -> list[Finding]:
    """What to try: what makes it run at all, then by what it may save."""
    found = [f for rule in _NEXT for f in rule(facts) if (f.share or 0.0) >= MATTERS]
    found.sort(key=lambda f: -(f.share or 0.0))
    return [*_fit(facts), *found[:most]]


def _limit(facts: PlanFacts) -> Iterator[Finding]:
    """The largest part of the step; memory where it does not run."""
    if not facts.fits:
        kind = max(facts.held, key=lambda name: facts.held[name])
        yield Finding(
            "infeasible",
            "Memory capacity is the limit: the plan does not run, and its seconds are "
            "hypothetical.",
            f"{facts.reason}; most of it {kind}, {size(facts.held[kind])}", facts.phase,
        )  # fmt: skip
    order = sorted(facts.limits, key=lambda name: -facts.limits[name])
    first = order[0]
    share = facts.limits[first] / facts.seconds
    name = _BOUND[first]
    what = f"is {name}-bound" if share >= CLEAR else f"is split, {name} first"
    if not facts.fits:
        what = f"would be {what[3:]} if it had the memory"
    shares = ((n, facts.limits[n] / facts.seconds) for n in order[1:3])
    rest = ", ".join(f"{s:.0%} for {n}" for n, s in shares if s >= SHOWN)
    yield Finding(
        f"{name}-bound" if share >= CLEAR else "split",
        f"{facts.phase.capitalize()} {what}: {share:.0%} of its {seconds(facts.seconds)} waits for "
        f"{first}" + (f", {rest}." if rest else "."),
        f"{seconds(facts.limits[first])}; {seconds(facts.compute)} of the step is compute",
        facts.phase,
    )  # fmt: skip


_BOUND = {
    LIMITS[key]: name for key, name in (
        ("compute", "compute"), ("memory", "memory"), ("latency", "launch"), (SUMMED, "memory"),
        (SLOWED, "SM"), (COMMUNICATION, "communication"), (BUBBLE, "bubble"),
        (OPTIMIZER, "optimizer"), (HOPS, "communication"), (HOST, "host"),
    )
}  # fmt: skip


def _messages(facts: PlanFacts) -> Iterator[Finding]:
    """Which group's messages are exposed."""
    if not facts.axes:
        return
    total = sum(a.seconds for a in facts.axes.values())
    exposed = sum(a.exposed for a in facts.axes.values())
    if exposed < MATTERS * facts.seconds:
        yield Finding(
            "messages-hidden", f"Messages lengthen the step by {exposed / facts.seconds:.1%} only.",
            f"{seconds(total)} of messages, {seconds(total - exposed)} behind compute", facts.phase,
        )  # fmt: skip
        return
    axis = max(facts.axes, key=lambda name: facts.axes[name].exposed)
    a = facts.axes[axis]
    where = "within a node" if a.nodes == 1 else f"over {a.nodes} nodes"
    yield Finding(
        f"{axis}-exposed",
        f"Messages of {axis} are most of what nothing hides: {a.exposed / facts.seconds:.0%} of "
        "the step.",
        f"{seconds(a.exposed)} exposed of {seconds(a.seconds)}, groups of {a.ranks} {where}; all "
        f"groups {seconds(exposed)} of {seconds(total)}", facts.phase,
    )  # fmt: skip


def _pipeline(facts: PlanFacts) -> Iterator[Finding]:
    """Bubbles."""
    bubble = facts.bubble
    if bubble < MATTERS * facts.seconds:
        return
    yield Finding(
        "bubble",
        f"Ranks of the pipeline wait for one another {bubble / facts.seconds:.0%} of the step.",
        f"PP={facts.pp}, {plural(facts.micro_batches, 'micro-batch', 'micro-batches')}, "
        f"{facts.schedule}; the slowest stage takes {facts.pace - 1:+.1%} of the mean", facts.phase,
    )  # fmt: skip


def _again(facts: PlanFacts) -> Iterator[Finding]:
    """What memory that was not there costs."""
    if facts.again >= MATTERS * facts.seconds:
        yield Finding(
            "recompute",
            f"{facts.again / facts.seconds:.0%} of the step computes activations again that were "
            "not kept.",
            f"{seconds(facts.again)} of kernels under recompute={facts.recompute}", facts.phase,
        )  # fmt: skip


def _room(facts: PlanFacts) -> Iterator[Finding]:
    """How near the edge of memory it is."""
    if not facts.fits:
        return
    kind = max(facts.held, key=lambda name: facts.held[name])
    tight = facts.free < TIGHT * facts.capacity
    yield Finding(
        "tight" if tight else "fits",
        f"It fits{', but only just' if tight else ''}: {size(facts.free)} of the fullest GPU are "
        "left.",
        f"{size(facts.total)} held, most of it {kind} ({size(facts.held[kind])}); "
        f"{size(facts.capacity)} less {size(facts.reserve)} kept free", facts.phase,
    )  # fmt: skip


def _uneven(facts: PlanFacts) -> Iterator[Finding]:
    """Experts."""
    if facts.imbalance >= MATTERS * facts.seconds:
        yield Finding(
            "uneven-experts",
            f"Uneven experts cost {facts.imbalance / facts.seconds:.0%} of the step.",
            f"{seconds(facts.imbalance)}; the busiest rank has {facts.skew:.3f} times the mean's "
            "rows", facts.phase,
        )  # fmt: skip


def _use(facts: PlanFacts) -> Iterator[Finding]:
    """MFU."""
    if facts.mfu is not None:
        yield Finding(
            "mfu", f"GPUs do {facts.mfu:.1%} of what their {facts.precision} peak allows (MFU).",
            f"published FLOPs, causal pairs, over {si(facts.peak)}FLOP/s a GPU", facts.phase,
        )  # fmt: skip


def _floor(facts: PlanFacts) -> Iterator[Finding]:
    """Decode against the least that the expert exchange takes."""
    if facts.floor and facts.fits:
        yield Finding(
            "exchange-floor",
            f"Its expert exchange alone takes {seconds(facts.floor)} a token at least; this step "
            f"takes {facts.seconds / facts.floor:,.1f} times that.",
            "copies of a token that leave its node, or else its GPU, over one link, two "
            "micro-batches in turn (arXiv 2505.09343)",
            facts.phase,
        )  # fmt: skip


def _trust(facts: PlanFacts) -> Iterator[Finding]:
    """How sure the counts are."""
    if facts.unmodelled or facts.estimated >= SHOWN:
        text = f"{facts.estimated:.0%} of the kernels' time rests on estimates"
        if facts.unmodelled:
            text += f", {facts.unmodelled:.0%} on bytes alone"
        yield Finding(
            "estimates", f"{text}.", "data decide how rows are routed: an expectation stands for "
            "them", facts.phase,
        )  # fmt: skip


_CONCLUSIONS: tuple[Callable[[PlanFacts], Iterator[Finding]], ...] = (
    _limit, _messages, _pipeline, _again, _room, _uneven, _use, _floor, _trust,
)  # fmt: skip


# -- what to try -----------------------------------------------------------------------------------


def _fit(facts: PlanFacts) -> Iterator[Finding]:
    if facts.fits:
        return
    if facts.advice:
        text = f"{facts.advice[0].upper()}{facts.advice[1:]}."
    elif facts.largest:
        text = f"Take at most {plural(facts.largest, 'sequence')} of a data rank, which fit."
    else:
        text = "Spread it over more GPUs, or keep less: nothing below matters until it fits."
    evidence = f"{size(-facts.free)} are missing on the fullest GPU"
    yield Finding("fit", text, evidence, facts.phase)


def _saving(facts: PlanFacts, rule: str, text: str, evidence: str, saves: float) -> Finding:
    return Finding(rule, text, evidence, facts.phase, saves, saves / facts.seconds)


def _more_micro_batches(facts: PlanFacts) -> Iterator[Finding]:
    bubble = facts.bubble
    if facts.pp > 1 and facts.phase == "training":
        yield _saving(
            facts, "micro-batches",
            "Fill the pipeline: more micro-batches a step, fewer or evener stages, another "
            "schedule.",
            f"{plural(facts.micro_batches, 'micro-batch', 'micro-batches')} through "
            f"{plural(facts.pp, 'stage')} of {facts.schedule}: {seconds(bubble)} of bubble", bubble,
        )  # fmt: skip


def _overlap(facts: PlanFacts) -> Iterator[Finding]:
    """Messages of one micro-batch behind the compute of another."""
    waits = sum(facts.axes[a].exposed for a in ("ep", "tp", "cp") if a in facts.axes)
    if facts.hides:
        return
    if facts.phase == "training":
        how = "Run a forward beside a backward, whose messages it hides: --schedule dualpipe"
        how += "." if facts.pp > 1 else ", with --pp."
    else:
        how = "Run two micro-batches that hide each other's messages: --overlap."
    yield _saving(
        facts, "overlap", how, f"{seconds(waits)} of messages within passes are exposed",
        min(waits, facts.compute),
    )  # fmt: skip


def _fewer_nodes(facts: PlanFacts) -> Iterator[Finding]:
    for axis in ("tp", "ep", "cp"):
        a = facts.axes.get(axis)
        if a is not None and a.nodes > 1:
            yield _saving(
                facts, f"{axis}-nodes",
                f"Keep groups of {axis} in fewer nodes, or send fewer bytes.",
                f"groups of {a.ranks} over {a.nodes} nodes expose {seconds(a.exposed)}", a.exposed,
            )  # fmt: skip


def _inside(facts: PlanFacts) -> Iterator[Finding]:
    """Tensor and context parallelism inside of a node."""
    for axis in ("tp", "cp"):
        a = facts.axes.get(axis)
        if a is not None and a.nodes == 1:
            yield _saving(
                facts, f"{axis}-less", f"Cut {axis} over fewer ranks, and data over more.",
                f"groups of {a.ranks} expose {seconds(a.exposed)}", a.exposed,
            )  # fmt: skip


def _data(facts: PlanFacts) -> Iterator[Finding]:
    waits = sum(facts.axes[a].exposed for a in facts.data if a in facts.axes)
    yield _saving(
        facts, "data-ranks",
        "Sum gradients beside the last backward, or less often: more micro-batches a step.",
        f"messages over data ranks expose {seconds(waits)}", waits,
    )  # fmt: skip


def _keep_more(facts: PlanFacts) -> Iterator[Finding]:
    if facts.fits and facts.free > 0:
        less = "selective or none" if facts.recompute == "full" else "none"
        yield _saving(
            facts, "recompute",
            f"Compute less again, as far as the free memory reaches: --recompute {less}.",
            f"{seconds(facts.again)} of kernels run again; {size(facts.free)} of the fullest GPU "
            "are left", facts.again,
        )  # fmt: skip


def _even(facts: PlanFacts) -> Iterator[Finding]:
    yield _saving(
        facts, "balance", "Even out the experts' load (routing bias, --placement, --redundant).",
        f"the busiest rank has {facts.skew:.3f} times the mean's rows", facts.imbalance,
    )  # fmt: skip


def _launches(facts: PlanFacts) -> Iterator[Finding]:
    waits = facts.waits("latency")
    yield _saving(
        facts, "latency", "Launch less: fewer and larger kernels, larger micro-batches.",
        f"kernels take {seconds(waits)} to start", waits,
    )  # fmt: skip


def _more_sequences(facts: PlanFacts) -> Iterator[Finding]:
    """Weights are read once for all sequences of a rank, caches once for each."""
    waits = facts.waits("memory")
    if facts.phase == "decode" and facts.largest is not None and facts.largest > facts.batch:
        # If all bytes were weights, a sequence of the largest batch would wait for so much less.
        saves = waits * (1 - facts.batch / facts.largest)
        yield _saving(
            facts, "batch",
            "Decode more sequences together: weights are read once for all of them. The saving is "
            "per token, and their caches are read in addition.",
            f"{plural(facts.batch, 'sequence')} of a data rank, {facts.largest:,} fit; "
            f"{seconds(waits)} wait for memory", saves,
        )  # fmt: skip


def _bytes(facts: PlanFacts) -> Iterator[Finding]:
    waits = facts.waits("memory")
    if facts.phase == "training":
        yield _saving(
            facts, "bytes",
            "Move fewer bytes between kernels: fuse casts, norms and permutations.",
            f"kernels wait {seconds(waits)} for memory", waits,
        )  # fmt: skip


def _closer_to_peak(facts: PlanFacts) -> Iterator[Finding]:
    waits = facts.waits("compute")
    lost = waits - facts.peak_seconds
    if lost > 0:
        yield _saving(
            facts, "utilisation",
            "Bring products nearer to the peak: larger micro-batches, fewer and larger products, "
            "padding to tile sizes.",
            f"kernels wait {seconds(waits)} for compute, their products would take "
            f"{seconds(facts.peak_seconds)} at the datasheet's peaks", lost,
        )  # fmt: skip


def _precision(facts: PlanFacts) -> Iterator[Finding]:
    if facts.faster is not None:
        name, ratio = facts.faster
        waits = facts.waits("compute")
        yield _saving(
            facts, "precision",
            f"Run the products in {name}: {ratio:.1f} times the peak of bf16.",
            f"kernels wait {seconds(waits)} for compute", waits * (1 - 1 / ratio),
        )  # fmt: skip


_NEXT: tuple[Callable[[PlanFacts], Iterator[Finding]], ...] = (
    _more_micro_batches, _overlap, _fewer_nodes, _inside, _data, _keep_more, _even, _launches,
    _more_sequences, _bytes, _closer_to_peak, _precision,
)  # fmt: skip
