"""1F1B and DualPipe: bubbles by simulation, the seed's schedule under the checker."""

from __future__ import annotations

import functools

from tracer.errors import UserError
from tracer.parallel.schedules import Action, Schedule

from .case import Case
from .claim import Answer, Section, assuming, holds, wrong

OPENING = Section("Case Study: DeepSeek-V3")
STANDARD = Section("DualPipe: Advanced Pipeline Parallelism")
INNOVATION = Section("The DualPipe Innovation")
SCHEDULE = Section("DualPipe Schedule")
REDUCTION = Section("Bubble Reduction")
HIDING = Section("Communication Optimization")
LESSON = Section("Lesson 1: Architectural Efficiency Dominates")
ANALYSER = Section("Reproducing the Analysis")
TAKEAWAYS = Section("Key Takeaways")


def of_work(case: Case, name: str, size: tuple[int, int] | None = None) -> float:
    """Bubble over computing, mean of all ranks."""
    step = case.pipeline(name, size)
    return sum(step.bubble) / sum(step.busy)


def fewer(case: Case, size: tuple[int, int] | None = None) -> float:
    """Seconds of bubble of DualPipe over those of 1F1B."""
    return sum(case.pipeline("dualpipe", size).bubble) / sum(case.pipeline("1f1b", size).bubble)


@OPENING.claim(18, "interleaves two pipelines to halve the bubble fraction", "0.5", "of 1F1B's")
@REDUCTION.claim(465, "DualPipe reduces the bubble by approximately half", "0.5", "of 1F1B's")
@TAKEAWAYS.claim(1254, "**DualPipe halves the bubble**", "0.5", "of 1F1B's")
def halves(case: Case) -> Answer:
    """Simulated bubble seconds, 16 stages, 32 micro-batches, F = I = W, F with B their sum."""
    return wrong(
        fewer(case),
        "less than half is left: (PP/2-1)(F&B+B-3W) against (PP-1)(F+B), "
        "because weight gradients fill the holes. It holds every stage twice for that",
    )


@STANDARD.claim(396, r"\text{Bubble} = \frac{p-1}{m}", None, "% of the step")
@STANDARD.claim(398, r"$47\%$ bubble!", "47", "% of the step")
@REDUCTION.claim(471, r"Standard: $\frac{15}{32} = 47\%$", "47", "% of the step")
def one_f_one_b(case: Case) -> Answer:
    """Simulated idle share of all ranks' time, 16 stages, 32 micro-batches."""
    p, m = case.ranks, case.microbatches
    return assuming(
        100 * case.pipeline("1f1b").bubble_share,
        f"as a share of the work; of the step it is {p - 1}/({m}+{p - 1})",
        100 * of_work(case, "1f1b"),
        100 * (p - 1) / m,
    )


@INNOVATION.claim(420, "another can be in backward pass on the same stage", None, "of the forwards")
def overlaps(case: Case) -> Answer:
    """Slots of the built schedule in which a rank runs a forward with a backward, of all
    forwards.
    """
    from tracer.parallel.schedules import build

    both = sum(
        action.kind == "F&B" for _, action in build("dualpipe", case.ranks, case.microbatches)
    )
    return holds(
        both / (case.ranks * case.microbatches),
        "run in one slot with a "
        "backward of another micro-batch; the drawing, though, has one end only: the "
        "streams enter from both ends",
    )


def seed_schedule(ranks: int, microbatches: int) -> Schedule:
    """The seed's `get_schedule` for every stage, its two streams as even and odd micro-batches."""
    lists = []
    for rank in range(ranks):
        order: list[tuple[str, int]] = []
        ahead = ranks - 1
        for i in range(ahead - rank):
            order += [("F", 2 * i), ("F", 2 * i + 1)]
        for i in range(microbatches - ahead):
            for stream in (0, 1):
                order += [("F", 2 * (ahead + i) + stream), ("B", 2 * i + stream)]
        for i in range(ahead - rank):
            order += [("B", 2 * (microbatches - ranks + i) + s) for s in (0, 1)]
        lists.append(tuple(Action(kind, rank, number) for kind, number in order))
    held = tuple((rank,) for rank in range(ranks))
    return Schedule("seed", ranks, 2 * microbatches, held, tuple(lists))


@SCHEDULE.claim(430, "def get_schedule(self, stage_id):")
@functools.cache
def get_schedule(case: Case) -> Answer:
    """The seed's lists as a `Schedule`, handed to its checker."""
    schedule = seed_schedule(case.ranks, case.microbatches)
    ran = sum(a.kind == "F" for _, a in schedule)
    wanted = case.ranks * schedule.microbatches
    try:
        schedule.check()
    except UserError as error:
        return wrong(
            f"{error}",
            f"stage s runs m - s forwards a stream, {wanted - ran} of "
            f"{wanted} are missing; both streams enter at stage 0, and there is no split "
            "of B into I and W, so it is 1F1B twice and no DualPipe",
        )
    return holds("runs", "the checker accepts it")


@SCHEDULE.claim(456, "def bubble_fraction(self):", None, "% of the step")
@REDUCTION.claim(467, r"\approx \frac{p-1}{2m}", None, "% of the step")
@REDUCTION.claim(472, r"DualPipe: $\frac{15}{64} \approx 23\%$", "23", "% of the step")
def dualpipe(case: Case) -> Answer:
    """Simulated idle share of all ranks' time, 16 stages, 32 micro-batches in all."""
    p, m = case.ranks, case.microbatches
    code = (p - 1) / 2 / (2 * m + p - 1)
    return wrong(
        100 * case.pipeline("dualpipe").bubble_share,
        "half of 1F1B's is a guess; its code has "
        f"{100 * code:.1f} % and its text 23 %, for the same pipeline",
        100 * (p - 1) / (2 * m),
    )


@HIDING.claim(476, "DualPipe enables communication hiding", None, "× as long in the open")
def hides(case: Case) -> Answer:
    """Simulated step with blocking sends of half a forward over one with sends beside computing."""
    plain = case.pipeline("dualpipe", transfer=0.5).seconds
    blocked = case.pipeline("dualpipe", transfer=0.5, blocking=True).seconds
    return holds(
        blocked / plain,
        "if sends are not hidden. The code waits for its "
        "receive before it computes and never for its sends; what V3 hides is the "
        "experts' exchange, of which the code has none",
    )


@LESSON.claim(666, "(DualPipe) provided incremental improvements (~2×)", "2", "×")
def incremental(case: Case) -> Answer:
    """Simulated step of 1F1B over DualPipe, at the micro-batches of the run's last batch size."""
    plan = case.plan
    size = (plan.pp, plan.micro_batches)
    ratio = case.pipeline("1f1b", size).seconds / case.pipeline("dualpipe", size).seconds
    return wrong(
        ratio,
        f"with {plan.micro_batches} micro-batches on {plan.pp} stages little is "
        "left to gain from bubbles; what DualPipe is for is hiding the exchange",
    )


@ANALYSER.claim(744, "def dualpipe_bubble_fraction(self, microbatches=64):", None, "% of the step")
def analyser_bubble(case: Case) -> Answer:
    """Simulated idle share, 16 stages, 64 micro-batches."""
    count = 2 * case.microbatches
    return wrong(
        100 * case.pipeline("dualpipe", (case.ranks, count)).bubble_share,
        "the formula above, (p-1)/2m",
        100 * (case.ranks - 1) / (2 * count),
    )


@functools.cache
def loss(case: Case) -> float:
    """The published bubble over the published step."""
    return float(case.step.bubble / case.step.step)
