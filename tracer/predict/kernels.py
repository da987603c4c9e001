"""What is assumed of the kernels that a plan's ranks run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..capture.records import Trace
from ..cost import Conventions, Ledger, price
from ..cost.onepass import one_pass
from ..errors import UserError
from ..machine import Timing


@dataclass(frozen=True)
class Kernels:
    """What is assumed of the kernels of a plan, each a named input.

    Attributes:
        timing: of the chip. Rows found by index move with vector loads by default, as in the
            permutations that expert-parallel systems use.
        casts: "one_pass", FP8 casts read their source once (see `cost.onepass`), or "traced".
        conventions: how FLOPs and bytes are counted.
    """

    timing: Timing = field(default_factory=lambda: Timing(rows="vector"))
    casts: str = "one_pass"
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        if self.casts not in ("one_pass", "traced"):
            raise UserError(f"casts={self.casts!r}: choose one_pass or traced")

    def ledger(self, trace: Trace) -> Ledger:
        """The ledger of a trace under these assumptions."""
        ledger = price(trace, self.conventions)
        return one_pass(ledger) if self.casts == "one_pass" else ledger

    def notes(self) -> list[str]:
        """A line each."""
        lines = self.timing.notes()
        if self.casts == "one_pass":
            lines.append("FP8 casts read their source once, transposed or not")
        return lines
