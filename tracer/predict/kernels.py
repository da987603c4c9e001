"""What is assumed of the kernels that a plan's ranks run."""

from __future__ import annotations

from dataclasses import dataclass, field

from tracer.hardware import Chip

from ..capture.records import Trace
from ..cost import Conventions, Ledger, price
from ..cost.exchanged import in_tokens
from ..cost.joined import joined as joined_products
from ..cost.onepass import one_pass
from ..cost.routed import served
from ..errors import UserError
from ..machine import Timing
from ..machine.calibration import FOREIGN, calibration_of
from ..machine.timing import KERNELS


@dataclass(frozen=True)
class Kernels:
    """What is assumed of the kernels of a plan, each a named input.

    Attributes:
        timing: of the chip. Rows found by index move with vector loads by default, as in the
            permutations that expert-parallel systems use.
        casts: "one_pass", FP8 casts read their source once (see `cost.onepass`), or "traced".
        conventions: how FLOPs and bytes are counted.
        served: as serving engines run a forward, around an exchange of experts ("normal",
            "low_latency", "nccl"): see `cost.joined` and `cost.routed`. None: as traced.
        exchanged: rows around an exchange of experts are left to DeepEP's normal kernels, in all
            passes: see `cost.exchanged`.
    """

    timing: Timing = field(default_factory=lambda: Timing(rows="vector"))
    casts: str = "one_pass"
    conventions: Conventions = field(default_factory=Conventions)
    served: str | None = None
    exchanged: bool = False

    def __post_init__(self) -> None:
        if self.casts not in ("one_pass", "traced"):
            raise UserError(f"casts={self.casts!r}: choose one_pass or traced")

    def ledger(self, trace: Trace) -> Ledger:
        """The ledger of a trace under these assumptions."""
        ledger = price(trace, self.conventions)
        ledger = one_pass(ledger) if self.casts == "one_pass" else ledger
        if self.served is not None:
            ledger = served(joined_products(ledger), self.served)
        return in_tokens(ledger) if self.exchanged else ledger

    def notes(self, chip: Chip) -> list[str]:
        """A line each; one of them where nobody measured kernels on a chip of the kind."""
        lines = self.timing.notes()
        if self.timing.model == KERNELS and calibration_of(chip).status() == FOREIGN:
            lines.append(calibration_of(chip).note())
        if self.casts == "one_pass":
            lines.append("FP8 casts read their source once, transposed or not")
        if self.served is not None:
            lines.append(
                "products of one tensor are one, a router behind its product is one kernel"
            )
        if self.served == "low_latency":
            lines.append("DeepEP's low-latency kernels round, sort and sum rows themselves")
        if self.served == "normal" or self.exchanged:
            lines.append("DeepEP's normal kernels gather and sum rows themselves")
        return lines
