"""Exercise 4: DualPipe on 8 stages with 16 micro-batches."""

from __future__ import annotations

from tracer.parallel.schedules import build

from .case import Case
from .claim import Answer, Section, holds, wrong
from .pipeline import fewer

FOUR = Section("Exercise 4: DualPipe Scheduling")


def seed_1f1b(stages: int, count: int) -> list[list[str]]:
    """The exercise's `standard_1f1b`, restated."""
    rows: list[list[str]] = [[] for _ in range(stages)]
    for m in range(stages):
        for s, row in enumerate(rows):
            row.append(f"F{m - s}" if m >= s else "_")
    for m in range(stages, count):
        for s, row in enumerate(rows):
            row += [f"F{m - s}", f"B{m - stages - s}"]
    for m in range(stages):
        for s, row in enumerate(rows):
            row.append(f"B{count - stages + m - s}" if m < stages - s else "_")
    return rows


@FOUR.claim(981, "def standard_1f1b(stages: int, micro_batches: int)", None, "% of the step")
def code_1f1b(case: Case) -> Answer:
    """Simulated idle share, 8 stages, 16 micro-batches; the seed's is what its code computes."""
    rows = seed_1f1b(*case.small)
    flat = [word for row in rows for word in row]
    negative = sum(word.startswith("B-") for word in flat)
    return wrong(
        100 * case.pipeline("1f1b", case.small).bubble_share,
        "its lists do not give the "
        f"7/23 printed below: {negative} backwards are of micro-batches with negative "
        "numbers, and nothing checks who waits for whom",
        100 * flat.count("_") / len(flat),
    )


def seed_dualpipe(stages: int, count: int) -> list[str]:
    """Every word of the exercise's `dualpipe_schedule`, restated."""
    words, half = [], count // 2
    for t in range(stages + half):
        for s in range(stages):
            a, b = t - s, t - (stages - 1 - s)
            if 0 <= a < half and t < half:
                words.append(f"F{a}")
                if t >= stages and a >= stages:
                    words.append(f"B{a - stages}")
            elif 0 <= a < half:
                words.append(f"F{a}" if t < stages else f"B{a}")
            if 0 <= b < half:
                words.append(f"F'{b}")
    return words


@FOUR.claim(1009, "def dualpipe_schedule(stages: int, micro_batches: int)", None, "backwards")
def code_dualpipe(case: Case) -> Answer:
    """Backwards in the library's DualPipe, 8 stages, 16 micro-batches; the seed's in its lists."""
    words = seed_dualpipe(*case.small)
    lists = build("dualpipe", *case.small)
    ours = sum(part.kind in "BI" for _, action in lists for part in action.parts)
    return wrong(
        ours,
        "one on each stage for each micro-batch; in the seed's the second pipe has none at all",
        float(sum(word[0] == "B" for word in words)),
    )


@FOUR.claim(
    1065, "dual_bubble = (stages - 1) / (micro_batches + stages - 1) / 2", None, "of 1F1B's"
)
def circular(case: Case) -> Answer:
    """Simulated bubble seconds of DualPipe over 1F1B's, 8 stages, 16 micro-batches."""
    return wrong(
        fewer(case, case.small),
        "the exercise asks to verify that half is left; "
        "its code builds a DualPipe schedule, ignores it and prints half of 1F1B's",
    )


@FOUR.claim(1076, r"\frac{7}{23} = 30.4\%", "30.4", "% of the step")
def bubble_1f1b(case: Case) -> Answer:
    """Simulated idle share of all ranks' time, F = I = W."""
    return holds(100 * case.pipeline("1f1b", case.small).bubble_share)


@FOUR.claim(1077, r"\frac{7}{46} = 15.2\%", "15.2", "% of the step")
def bubble_dualpipe(case: Case) -> Answer:
    """Simulated idle share of all ranks' time, F = I = W, F with B their sum."""
    step = case.pipeline("dualpipe", case.small)
    return wrong(
        100 * step.bubble_share,
        f"{step.bubble[0]:g} idle in {step.seconds:g}, where 1F1B "
        f"has {case.pipeline('1f1b', case.small).bubble[0]:g} in "
        f"{case.pipeline('1f1b', case.small).seconds:g}",
    )


@FOUR.claim(1079, r"DualPipe achieves } 50\% \text{ bubble reduction", "50", "% less")
def reduction(case: Case) -> Answer:
    """Simulated bubble seconds that DualPipe saves of 1F1B's."""
    return wrong(
        100 * (1 - fewer(case, case.small)),
        "for twice the parameters, and "
        f"{max(case.pipeline('dualpipe', case.small).in_flight)} micro-batches in flight "
        f"on every rank in place of {max(case.pipeline('1f1b', case.small).in_flight)} on "
        "the first",
    )
