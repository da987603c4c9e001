"""The page: counts, corrections, every claim by section, the exercises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from .case import Case
from .claim import ASSUMING, HOLDS, VERDICTS, WRONG, Figure, Row
from .exercises import EXERCISES

INTRODUCTION = """\
# A case study of DeepSeek-V3, claim by claim

Written by `scripts/case_study.py`. The *seed* is a teaching chapter on the training of DeepSeek-V3,
the second text with which this project began. Every figure, formula and piece of code in it that
can be worked out stands below, in its order, beside what the library says: traced FLOPs, parameters
and cache of the released config, simulated schedules, expected and drawn expert loads, measured
rounding errors, priced exchanges, sharded memory, and published figures from
`tests/published/training_runs.toml`. Nothing of ours is typed in: `scripts/case_claims/` has a
function for each claim, and what it does stands under *how*.

*holds*: within 5 % or the rounding that the seed printed; counts exactly. *holds under an
assumption*: not so, but the figure under the named assumption, which is worked out too (in
brackets), is. *wrong*: neither. The difference is ours against the seed's. A claim that comes again
is answered again, by the same function. GB is 1e9 bytes; one multiply-add is 2 FLOPs; causal
attention counts the pairs that a kernel computes.

MFU and cost rest on the published step and hours; a predicted step has one place to go in
(`efficiency.mfu`). Left out are sentences that nothing here can measure: why shared experts help
(lines 216 to 218), what is wrong with auxiliary losses (229 to 231), the class of models to which
V3 is equal in quality (1221, 1222), and that FP8 costs no quality (1250)."""

# The corrections that teach most, by line and the beginning of the quote.
TEACHING = (
    (55, "="),
    (102, "self.W_KR"),
    (168, "| Expert"),
    (207, "routing"),
    (387, "| H100"),
    (430, "def"),
    (472, "Dual"),
    (531, "experts"),
    (604, "1 *"),
    (619, "| KV"),
    (636, r"\approx"),
    (653, r"\approx"),
    (672, "="),
    (867, r"\boxed"),
    (915, "256"),
    (960, r"\text"),
    (1193, "| Hier"),
)


def figure(value: Figure | None, digits: int = 3) -> str:
    """With so many significant digits, whole numbers as they are."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{value:,.0f}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}" if 1e-3 <= abs(value) < 1e7 else f"{value:.2e}"


def difference(row: Row) -> str:
    """In per cent, or as a factor where it is more than threefold."""
    found = row.difference
    if found is None:
        return "-"
    if found > 2:
        return f"×{figure(found + 1)}"
    return "0" if abs(found) < 5e-4 else f"{100 * found:+.1f} %"


def capital(text: str) -> str:
    """As a sentence begins; signs and code stay as they are."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def quote(text: str) -> str:
    """As code, on one line of a table."""
    return "`" + text.strip("| ").replace(" | ", " : ").replace("|", r"\|") + "`"


def stated(row: Row) -> str:
    """As printed, else as worked out from the seed's formula."""
    return row.claim.printed or figure(row.stated)


def ours(row: Row) -> str:
    """With the unit, and the figure under the assumption in brackets."""
    under, printed = row.answer.under, row.claim.printed or ""
    digits = max(3, len(printed.replace(".", "").replace(",", "").lstrip("0")))
    text = f"{figure(row.answer.ours, digits)} {row.claim.unit}".strip()
    return text if under is None else f"{text} ({figure(under, digits)})"


def cells(row: Row) -> list[str]:
    """One line of a table."""
    answer = row.answer
    why = answer.because + (". " if answer.because else "")
    verdict = answer.verdict if answer.verdict == HOLDS else f"**{answer.verdict}**"
    found = [
        str(row.claim.line),
        quote(row.claim.quote),
        stated(row),
        ours(row),
        difference(row),
        verdict,
        f"{capital(why)}*{row.claim.how.rstrip('.')}*",
    ]
    return [*found[:1], found[1], *(cell.replace("|", r"\|") for cell in found[2:])]


HEAD = ("line", "the seed says", "its figure", "ours", "off by", "verdict", "why; *how*")


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Plain Markdown; no padding, as cells are long."""
    lines = [head, ["-"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def sections(rows: Sequence[Row]) -> Iterator[str]:
    """A heading and a table for every heading of the seed, in order."""
    part: list[Row] = []
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        part.append(row)
        if after is None or after.claim.section != row.claim.section:
            yield f"## {row.claim.section}\n\n{table(HEAD, [cells(r) for r in part])}"
            part = []


def at_a_glance(rows: Sequence[Row]) -> str:
    """How many of each verdict, by occurrence and by function."""
    every = Counter(row.answer.verdict for row in rows)
    once = Counter({row.claim.measure: row.answer.verdict for row in rows}.values())
    body = [[name, str(every[name]), str(once[name])] for name in VERDICTS]
    body.append(["all", str(sum(every.values())), str(sum(once.values()))])
    return "## At a glance\n\n" + table(("verdict", "claims", "without repetitions"), body)


def corrections(rows: Sequence[Row]) -> str:
    """The most instructive ones, a line each."""
    lines = []
    for line, start in TEACHING:
        row = next(r for r in rows if r.claim.line == line and r.claim.quote.startswith(start))
        if row.answer.verdict not in (ASSUMING, WRONG):
            raise ValueError(f"line {line} is no correction: {row.answer.verdict}")
        figures = f"{stated(row)} → {ours(row)}" if row.stated is not None else ours(row)
        why = capital(row.answer.because)
        lines.append(f"* line {line}, {quote(row.claim.quote)}: {figures}. {why}.")
    return "## The corrections that teach most\n\n" + "\n".join(lines)


def exercises(case: Case) -> str:
    """Worked answers."""
    parts = [f"**{i}.** *{e.asks}* {e.answer(case)}" for i, e in enumerate(EXERCISES, 1)]
    return "## The six exercises, worked\n\n" + "\n\n".join(parts)


def page(case: Case, rows: Sequence[Row]) -> str:
    """The whole page.

    Raises:
        ValueError: a verdict that its figures do not support.
    """
    problems = [f"line {r.claim.line}: {found}" for r in rows if (found := r.problem())]
    if problems:
        raise ValueError("; ".join(problems))
    parts = [INTRODUCTION, at_a_glance(rows), corrections(rows), exercises(case), *sections(rows)]
    return "\n\n".join(parts) + "\n"
