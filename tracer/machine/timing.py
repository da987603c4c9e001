"""What is assumed of every chip when a ledger gets its seconds."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import UserError
from .model import Conditions

KERNELS, ROOFLINE = "kernels", "roofline"

_CHOICES = {
    "model": (KERNELS, ROOFLINE),
    "fp32_matmul": ("fp32", "tf32"),
    "attention": ("best", "portable"),
    "rows": ("torch", "vector"),
    "load": ("kernel", "sustained"),
}


@dataclass(frozen=True, slots=True)
class Timing:
    """What is assumed of every chip, each a named input.

    Attributes:
        model: "kernels" (a formula a family, with measured constants) or "roofline".
        launch: in the roofline, seconds between kernels that nothing overlaps. The default is the
            floor of a GEMM node in a CUDA graph on Hopper (2.6 µs for 128×128×128 BF16 on an H200).
            The kernel model has launches of its own, by family.
        matmul_efficiency: share of the matrix peak that is there; 1 is the datasheet. In the
            kernel model it comes on top of what kernels reach.
        memory_efficiency: the same of the memory bandwidth.
        fp32_matmul: "fp32" runs FP32 products at the FP32 rate, "tf32" on the tensor cores.
        host: seconds of the CPU a kernel in eager mode (4e-6 to 10e-6 for torch); the step is the
            larger of host and device time. 0 is a CUDA graph.
        clock: share of the datasheet's clock that is sustained.
        reserved_sms: SMs that communication kernels keep from all others.
        attention: "best" kernels for the chip, or "portable" ones in an older generation's
            instructions (FlashAttention-2, torch's own flash op, on Hopper).
        rows: rows found by index move as torch's `index_select` does it ("torch", measured), or in
            kernels that copy whole rows with vector loads ("vector", at the speed of a stream), as
            the permutations of Transformer Engine and DeepEP do.
        load: "kernel", matrix kernels slow down with their own length, as they were measured: some
            45 launches in a row of one alone, so that a short one ends before the chip's power
            controller steps in. "sustained": it has, as after seconds of training, and all run at
            the clock that it leaves (`Power.sag`).
    """

    model: str = "kernels"

    launch: float = 2.6e-6
    matmul_efficiency: float = 1.0
    memory_efficiency: float = 1.0
    fp32_matmul: str = "fp32"
    host: float = 0.0
    clock: float = 1.0
    reserved_sms: float = 0.0
    attention: str = "best"
    rows: str = "torch"
    load: str = "kernel"

    def __post_init__(self) -> None:
        for name in ("launch", "host"):
            if not 0 <= getattr(self, name) < 1:
                value = getattr(self, name)
                raise UserError(f"{name}={value}: give seconds between 0 and 1, such as 2.6e-6")
        for name in ("matmul_efficiency", "memory_efficiency", "clock"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)}: give a share in (0, 1]")
        if self.reserved_sms < 0:
            raise UserError(f"reserved_sms={self.reserved_sms}: give at least 0")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                text = " or ".join(repr(choice) for choice in choices)
                raise UserError(f"{name}={getattr(self, name)!r}: choose {text}")

    def notes(self) -> list[str]:
        """What the seconds assume, a line each."""
        if self.model == KERNELS:
            lines = ["seconds: sum over kernels of measured formulas by family, one stream"]
            if self.matmul_efficiency != 1 or self.memory_efficiency != 1:
                lines.append(f"on top of what kernels reach: {self._efficiencies()}")
        else:
            peaks = "datasheet peaks"
            if self.matmul_efficiency != 1 or self.memory_efficiency != 1:
                peaks = self._efficiencies()
            lines = [
                f"seconds: sum over kernels of {self.launch * 1e6:g} us launch + max(compute, "
                f"memory), at {peaks}, one stream"
            ]
        if self.fp32_matmul == "tf32":
            lines.append("FP32 products run at the TF32 rate")
        if self.host:
            lines.append(
                f"eager: {self.host * 1e6:g} us of host time a kernel; the step is the larger of "
                "host and device time"
            )
        if self.clock != 1:
            lines.append(f"clock sustained at {self.clock:.0%} of the datasheet's")
        if self.reserved_sms:
            lines.append(f"{self.reserved_sms:g} SMs reserved for communication")
        if self.attention == "portable":
            lines.append("attention kernels in an older generation's instructions")
        if self.rows == "vector":
            lines.append("rows found by index move with vector loads, at the speed of a stream")
        if self.load == "sustained" and self.model == KERNELS:
            lines.append("matrix kernels at the clock that a long load settles at")
        return lines

    def _efficiencies(self) -> str:
        return (
            f"{self.matmul_efficiency:.0%} of the matrix peak and "
            f"{self.memory_efficiency:.0%} of the bandwidth"
        )

    def conditions(self) -> Conditions:
        """The part of it that the kernel model takes."""
        return Conditions(
            self.clock, self.reserved_sms, self.matmul_efficiency, self.memory_efficiency,
            self.attention == "portable", self.fp32_matmul, self.rows == "vector",
            self.load == "sustained",
        )  # fmt: skip

    @classmethod
    def names(cls) -> list[str]:
        """The names that `--assume` accepts."""
        return [item.name for item in fields(cls)]
