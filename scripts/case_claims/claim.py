"""What a claim is, the three verdicts, and the rule that a verdict has to keep to.

A chapter is one file. Each claim in it is a function from a `Case` to an `Answer`, registered with
the line of the seed that makes it, the sentence, and the figure as the seed prints it:

    section = Section("The DeepSeek-V3 Specification")

    @section.claim(52, "| Total parameters | 671B |", "671", "B")
    def parameters(case: Case) -> Answer:
        "Parameters of a traced prefill."
        return holds(case.inventory().parameters / 1e9)

The docstring says how ours was found and stands on the page. A function may answer several
sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .case import Case

HOLDS, ASSUMING, WRONG = "holds", "holds under an assumption", "wrong"
VERDICTS = (HOLDS, ASSUMING, WRONG)
NEAR = 0.05  # a figure holds within 5 % or within the rounding that the seed printed

Figure = float | str


@dataclass(frozen=True)
class Answer:
    """What the library says to a claim.

    Attributes:
        ours: the figure, or in words what happens.
        verdict: one of `VERDICTS`.
        because: what is wrong, or which assumption; for a claim without a figure, why it holds.
        under: of a claim that holds under an assumption: the figure under it.
        seed: the seed's figure where its code or formula has to be worked out to get it.
    """

    ours: Figure
    verdict: str
    because: str = ""
    under: float | None = None
    seed: float | None = None


def holds(ours: Figure, because: str = "", seed: float | None = None) -> Answer:
    """The seed is right."""
    return Answer(ours, HOLDS, because, None, seed)


def assuming(
    ours: Figure, because: str, under: float | None = None, seed: float | None = None
) -> Answer:
    """The seed is right if `because` is granted, with the figure `under` it."""
    return Answer(ours, ASSUMING, because, under, seed)


def wrong(ours: Figure, because: str, seed: float | None = None) -> Answer:
    """The seed is wrong, and why."""
    return Answer(ours, WRONG, because, None, seed)


@dataclass(frozen=True)
class Claim:
    """A sentence of the seed with a figure or a statement that can be worked out.

    Attributes:
        line: where in the seed it stands.
        section: under which heading.
        quote: the words, a part of that line.
        printed: the figure as printed in them, if there is one.
        unit: of the printed figure and of ours.
        exact: a count: right or wrong, not nearly right.
        measure: works ours out.
    """

    line: int
    section: str
    quote: str
    printed: str | None
    unit: str
    exact: bool
    measure: Callable[[Case], Answer]

    @property
    def how(self) -> str:
        """How ours is found."""
        return " ".join((self.measure.__doc__ or "").split())


@dataclass(frozen=True)
class Row:
    """A claim and its answer."""

    claim: Claim
    answer: Answer

    @property
    def stated(self) -> float | None:
        """The seed's figure."""
        if self.claim.printed is not None:
            return float(self.claim.printed.replace(",", ""))
        return self.answer.seed

    @property
    def difference(self) -> float | None:
        """Ours against the seed's, relative; None without two figures."""
        stated, ours = self.stated, self.answer.ours
        return None if isinstance(ours, str) or not stated else ours / stated - 1

    def agrees(self, figure: float) -> bool:
        """Whether `figure` is the seed's, within 5 % or the printed rounding."""
        stated, printed = self.stated, self.claim.printed
        assert stated is not None
        if self.claim.exact:
            return figure == stated
        last = 0.0
        if printed is not None:
            last = 0.5 * 10.0 ** -len(printed.partition(".")[2])
        return abs(figure - stated) <= max(NEAR * abs(stated), last * (1 + 1e-9))

    def problem(self) -> str | None:
        """What is inconsistent in the verdict, if anything."""
        answer = self.answer
        if answer.verdict not in VERDICTS:
            return f"verdict {answer.verdict!r}: choose one of {', '.join(VERDICTS)}"
        compared = self.stated is not None and not isinstance(answer.ours, str)
        if answer.verdict != HOLDS and not answer.because:
            return f"{answer.verdict} without a reason"
        if not compared:
            return None if answer.because else "nothing to compare and no reason"
        near = self.agrees(float(answer.ours))
        if near != (answer.verdict == HOLDS):
            return f"{answer.verdict}, but {answer.ours:g} against {self.stated:g}"
        if answer.verdict != ASSUMING:
            return None
        if answer.under is None or not self.agrees(answer.under):
            return f"{answer.under} under the assumption is not {self.stated:g} either"
        return None


class Section:
    """The claims under one heading of the seed."""

    registered: list[Claim] = []  # noqa: RUF012 - filled while the chapters are imported

    def __init__(self, heading: str) -> None:
        self.heading = heading

    def claim(
        self,
        line: int,
        quote: str,
        printed: str | None = None,
        unit: str = "",
        *,
        exact: bool = False,
    ) -> Callable[[Callable[[Case], Answer]], Callable[[Case], Answer]]:
        """Register a function as the answer to `quote`."""

        def register(measure: Callable[[Case], Answer]) -> Callable[[Case], Answer]:
            found = Claim(line, self.heading, quote, printed, unit, exact, measure)
            Section.registered.append(found)
            return measure

        return register


def in_order() -> Iterator[Claim]:
    """All registered claims as they follow in the seed."""
    yield from sorted(Section.registered, key=lambda claim: claim.line)
