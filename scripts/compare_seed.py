"""The seed report beside the trace, term by term: writes docs/seed_report.md.

    python scripts/compare_seed.py            # write docs/seed_report.md
    python scripts/compare_seed.py --check    # fail if it would change

The seed report is the analytic "Model Report" of DeepSeek-V3 on an H200 with which this project
began. Its rules are hand formulas and live with the tests, in tests/analytic/seed_report_*.py; what
it is compared with is a trace of the same model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

from tracer.report import text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "analytic"))

import seed_report_rules as rules  # noqa: E402
import seed_report_studies as studies  # noqa: E402
import seed_report_traced as traced  # noqa: E402
from pages import write_or_check  # noqa: E402
from seed_report_claims import Claim, claims  # noqa: E402
from seed_report_rules import ATTENTION, EMBEDDING, EXPERTS, FFN, HEAD, Line  # noqa: E402
from seed_report_traced import Point, TracedLine  # noqa: E402
from seed_tables import TABLES  # noqa: E402

PAGE = ROOT / "docs" / "seed_report.md"

ANCHOR = ((rules.TRAINING, 8, 255), (rules.PREFILL, 8, 255), (rules.DECODE, 8, 255))
LONG = ((rules.DECODE, 8, 32768), (rules.PREFILL, 8, 4096))

# Why a line differs, by letter; `test_seed_critique.py` turns those of FLOPs, weights and KV into
# equations without remainder.
REASONS = {
    "a": "FLOPs: the report counts a FLOP a score for softmax; here softmax is vector work.",
    "b": "FLOPs: a causal kernel computes S(S+1)/2 pairs, the report counts S². Naive attention "
    "multiplies all S² here too.",
    "c": "FLOPs: decode is absorbed here (1,088 multiply-adds a cached token and head, against 320 "
    "in head space), which is what reading 576 elements a token means.",
    "d": "FLOPs: a gather has none.",
    "e": "FLOPs: FP8 weight gradients contract over tokens and are padded to blocks of 128: 2,048 "
    "for 2,040.",
    "f": "Weights: the report divides by residency factors of 4, 4 and 2 in its efficient mode, "
    "below the one read of every touched weight that a step must make.",
    "g": "Weights: FP32 scales a block of 128 × 128; norms, gate and head in BF16 as released.",
    "h": "Weights: the two absorbed halves of kv_b_proj are kept in BF16.",
    "i": "Weights: distinct experts are E(1-(1-k/E)^T), the report's E(1-exp(-Tk/E)) is a little "
    "less.",
    "j": "Weights: an embedding reads its tokens' rows, not the table; activations also hold the "
    "index.",
    "k": "Weights: trained weights are BF16 and are quantised in every step: read for the block "
    "maxima and again for the cast (kv_a_proj, whose 576 columns are 4.5 blocks, once and "
    "padded). Both passes read the FP8 copies, which are activations then.",
    "l": "Activations: products write BF16 and FP8 ones read their input quantised; the report has "
    "one byte an element, and takes half of them away in its efficient mode.",
    "m": "Activations, temporary: MLA's products move 181,312 elements a token and layer, the "
    "report's 5 H are 35,840; and reshapes, RoPE, norms and quantisation are kernels. What stays "
    "inside a module is temporary here, which is why the two columns shift.",
    "n": "Temporary: k copies of every token are gathered, quantised, multiplied and scattered, "
    "each a pass over memory.",
    "o": "Temporary: scores are written and read by scale, mask, softmax and both products in 2 or "
    "4 bytes, the report has two passes of one byte.",
    "p": "KV: the cache is BF16 here. Unfused decode reads the values a second time.",
    "q": "KV: training has no cache; the report writes it twice.",
    "r": "Training: what is saved for the backward, its products with their casts and transposes, "
    "and gradients are counted; the report multiplies prefill's bytes by 2.",
    "s": "Seconds: the report takes the larger of compute at a constant 0.96 or 0.92 of the peak "
    "(M/64 of it below 64 rows) and bytes at full bandwidth; here every kernel has a measured "
    "formula, launches and all. The report's total is the larger of two sums, so it is no sum.",
    "t": "Norms, residual stream, rotary tables and the loss; the report has no such line.",
    "u": "AdamW on FP32 master weights; the report has none.",
}


def reasons(point: Point, line: str) -> str:
    """Letters of `REASONS` that apply to a row."""
    efficient, phase = point.execution == "efficient", point.phase
    if line == traced.REST:
        return "t"
    if line == traced.OPTIMIZER:
        return "u"
    found = {ATTENTION: "", EMBEDDING: "dj", EXPERTS: "gln", FFN: "gl", HEAD: "gl"}[line]
    if line == ATTENTION:
        found = "cghmp" if phase == rules.DECODE else "agmp"
        found += "b" * (efficient and phase != rules.DECODE) + "o" * (not efficient)
    if phase == rules.DECODE and line == EXPERTS:
        found += "i"
    if phase == rules.TRAINING:
        found = found.replace("p", "q") + "r"
        if line in (ATTENTION, EXPERTS, FFN):
            found = found.replace("g", "") + "ek"
    return "".join(sorted(set(found + "f" * efficient + "s")))


def points() -> Iterator[Point]:
    """What is compared: the anchor in three phases and the long points, both executions."""
    for phase, batch, length in (*ANCHOR, *LONG):
        for x in reversed(rules.EXECUTIONS):
            yield Point(phase, batch, length, x.name)


def step_of(point: Point) -> rules.Step:
    """The report's own figures."""
    x = next(x for x in rules.EXECUTIONS if x.name == point.execution)
    return rules.PHASES[point.phase](point.batch, point.length, x)


def cell(theirs: float, ours: float, show: Callable[[float], str]) -> str:
    """`49.2 TF → 47.9 TF (0.974)`: the report's, the trace's, and the ratio where there is one."""
    if not theirs and not ours:
        return "-"
    left, right = (show(value) if value else "0" for value in (theirs, ours))
    return f"{left} → {right} ({ratio(ours / theirs)})" if theirs and ours else f"{left} → {right}"


def ratio(value: float) -> str:
    """Three places, fewer for large ones; three digits of small ones."""
    if value < 0.1:
        return f"{value:.3g}"
    return f"{value:,.{3 if value < 10 else 1 if value < 100 else 0}f}"


def flops(value: float) -> str:
    """49.17 TF."""
    return f"{text.si(value)}F"


SHOW: dict[str, Callable[[float], str]] = {
    "flops": flops, **dict.fromkeys(("weights", "activations", "kv", "temporary"), text.size)
}  # fmt: skip


def line_row(point: Point, name: str) -> list[str]:
    """One line of a step."""
    ours = traced.lines(point)[name]
    theirs = step_of(point).lines.get(name, Line(0, 0, 0))
    row = [name]
    for what, show in SHOW.items():
        row.append(cell(getattr(theirs, what), getattr(ours, what), show))
    if point.phase == rules.TRAINING:
        row.append(cell(0, ours.states, text.size))
    longer = max(theirs.compute_seconds, theirs.memory_seconds)
    return [*row, cell(longer, ours.seconds, text.seconds), " ".join(reasons(point, name))]


def total_row(point: Point) -> list[str]:
    """The step."""
    ours: list[TracedLine] = list(traced.lines(point).values())
    step = step_of(point)
    row = ["**step**"]
    for what, show in SHOW.items():
        row.append(cell(step.sum(what), sum(getattr(line, what) for line in ours), show))
    if point.phase == rules.TRAINING:
        row.append(cell(0, sum(line.states for line in ours), text.size))
    return [*row, cell(step.seconds, traced.times(point).step, text.seconds), ""]


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def compared(point: Point) -> list[str]:
    """A heading, the lines, and what both make of the whole."""
    headers = ["line", "FLOPs", "weights", "activations", "KV", "temporary"]
    headers += ["gradients, optimizer"] * (point.phase == rules.TRAINING) + ["seconds", "why"]
    step, times = step_of(point), traced.times(point)
    total = times.ledger.total()
    return [
        f"### {point.title[0].upper()}{point.title[1:]}",
        "",
        table(headers, [*(line_row(point, n) for n in traced.lines(point)), total_row(point)]),
        "",
        f"Bytes in all {text.size(step.sum('bytes_hbm'))} → {text.size(total.total_bytes)};"
        f" {step.intensity:,.3g} → {total.intensity:,.3g} FLOP/B; {step.regime} →"
        f" waits for {times.regime}; {step.tokens_per_s:,.0f} →"
        f" {step.tokens / times.step:,.0f} tokens/s if it fitted (ideal bound"
        f" {text.seconds(times.bound)}).",
        "",
    ]


def glance(everything: Sequence[Point]) -> str:
    """A row a point: FLOPs, bytes and seconds of the trace over the report's, and both regimes."""
    rows = []
    for point in everything:
        step, times = step_of(point), traced.times(point)
        total = times.ledger.total()
        rows.append([
            point.title, ratio(total.total_flops / step.sum("flops")),
            ratio(total.total_bytes / step.sum("bytes_hbm")),
            cell(step.seconds, times.step, text.seconds), step.regime, times.regime,
        ])  # fmt: skip
    headers = ["", "FLOPs", "bytes", "seconds", "the report's regime", "the trace waits for"]
    return table(headers, rows)


def claim_row(claim: Claim) -> list[str]:
    """One number of the review."""
    number = figure(claim.recomputed(), claim.stated)
    other = figure(claim.traced(), claim.stated) if claim.traced else "-"
    verdict = "confirmed" if claim.confirmed else "**not confirmed**"
    unit = f" {claim.unit}" if claim.unit else ""
    stated = f"{claim.stated}{unit}"
    return [claim.at, claim.says, stated, number, other, verdict, claim.remark]


def figure(value: float, like: str) -> str:
    """With one decimal more than `like` has, none if it is a whole number."""
    places = len(like.partition(".")[2]) + 1
    whole = abs(value - round(value)) < 1e-6 * value
    return f"{value:,.0f}" if whole else f"{value:,.{places}f}"


def ranking() -> str:
    """Section 7.1 by the report's rules."""
    rows = []
    for knob in studies.knob_ranking():
        medians = ", ".join(f"{value}: {1e3 * t:.2f}" for value, t in knob.medians.items())
        rows.append([knob.name, f"{knob.effect:.1%}", medians])
    return table(["knob", "effect", "median T_est by value, ms"], rows)


def page() -> str:
    """The whole of docs/seed_report.md."""
    checked = claims()
    wrong = [c for c in checked if not c.confirmed]
    everything = list(points())
    lines = [
        "# The seed report, term by term",
        "",
        "Written by `scripts/compare_seed.py`. The *seed report* is the analytic Model Report of"
        " DeepSeek-V3 on one H200 (2026-02-18) with which this project began. Its rules are"
        " restated in `tests/analytic/seed_report_rules.py` and give every cell of its numeric"
        " tables as printed. Here they stand beside a trace of the same model in the FP8 format"
        " of its release, on `h200_sxm`: *report → trace (trace / report)*.",
        "",
        "GB is 1e9 bytes; FLOPs are those of products; seconds of a line are the report's larger"
        " of T_comp and T_hbm, and the sum of kernels in the trace. No row fits on one chip.",
        "",
        "## At a glance",
        "",
        glance(everything),
        "",
        "## The anchor: B=8, S=L=255",
        "",
    ]
    for number, point in enumerate(everything):
        if number == 2 * len(ANCHOR):
            lines += ["## Long points", ""]
        lines += compared(point)
    lines += ["## Why", "", *(f"* **{k}** {v}" for k, v in REASONS.items()), ""]
    lines += [
        "## A review of the report, checked",
        "",
        f"{len(checked)} numbers of a review, worked out again from the rules or by arithmetic"
        " (*recomputed*), and from the trace where it has the same thing. Confirmed: the recomputed"
        f" number rounds to the stated one. Not confirmed: {len(wrong)}.",
        "",
        table(
            ["", "what", "stated", "recomputed", "traced", "verdict", "remark"],
            [claim_row(claim) for claim in checked],
        ),
        "",
        "## Its knob ranking",
        "",
        "By its rules, 216 efficient decode points at B=8. Every one waits for memory, and neither"
        " batch, expert parallelism nor the bytes of a weight is among the knobs.",
        "",
        ranking(),
        "",
        "## Its tables and ours",
        "",
        "All 23, in order. The last column says where a report shows the counterpart.",
        "",
        table(["§", "table", "our counterpart", "ours at the anchor", "shown in"], table_rows()),
        "",
    ]
    return "\n".join(lines)


def table_rows() -> list[list[str]]:
    """The 23 tables with what we have for each."""
    return [
        [entry.section, entry.title, entry.counterpart, entry.ours(), entry.shown or "-"]
        for entry in TABLES
    ]


def main() -> int:
    """Write or compare."""
    return write_or_check(PAGE, page, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
