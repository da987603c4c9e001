"""Seconds of every kernel on one chip: `launch + max(compute, memory)`, summed on one stream.

`max` over summed totals is the ideal bound, in which everything overlaps with everything. It is
kept beside the sum and never shown as the estimate. Peaks are the datasheet's unless an efficiency
is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

from tracer.hardware import Chip, ChipError

from ..cost import Kernel, Ledger
from ..cost.work import Cost
from ..errors import UserError

COMPUTE, MEMORY, NETWORK, LATENCY = "compute", "memory", "network", "latency"


@dataclass(frozen=True, slots=True)
class Timing:
    """What is assumed of every chip, each a named input.

    Attributes:
        launch: seconds between kernels that nothing overlaps. The default is the floor of a GEMM
            node in a CUDA graph on Hopper (2.6 µs for 128×128×128 BF16 on an H200); eager mode adds
            4 to 10 µs a kernel on the host.
        matmul_efficiency: share of the matrix peak that kernels reach; 1 is the datasheet.
        memory_efficiency: share of the memory bandwidth that kernels reach; 1 is the datasheet.
        fp32_matmul: "fp32" runs FP32 products at the FP32 rate, "tf32" on the tensor cores.
    """

    launch: float = 2.6e-6
    matmul_efficiency: float = 1.0
    memory_efficiency: float = 1.0
    fp32_matmul: str = "fp32"

    def __post_init__(self) -> None:
        if not 0 <= self.launch < 1:
            raise UserError(f"launch={self.launch}: give seconds between 0 and 1, such as 2.6e-6")
        for name in ("matmul_efficiency", "memory_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)}: give a share in (0, 1]")
        if self.fp32_matmul not in ("fp32", "tf32"):
            raise UserError(f"fp32_matmul={self.fp32_matmul!r}: choose 'fp32' or 'tf32'")

    def notes(self) -> list[str]:
        """One line that says what the seconds assume."""
        peaks = (
            "datasheet peaks"
            if self.matmul_efficiency == self.memory_efficiency == 1
            else f"{self.matmul_efficiency:.0%} of the matrix peak and "
            f"{self.memory_efficiency:.0%} of the bandwidth"
        )
        lines = [
            f"seconds: sum over kernels of {self.launch * 1e6:g} us launch + max(compute, memory), "
            f"at {peaks}, one stream"
        ]
        if self.fp32_matmul == "tf32":
            lines.append("FP32 products run at the TF32 rate")
        return lines

    @classmethod
    def names(cls) -> list[str]:
        """The names that `--assume` accepts."""
        return [item.name for item in fields(cls)]


class KernelTime(NamedTuple):
    """Seconds of one kernel, all its launches together."""

    kernel: Kernel
    matrix: float
    vector: float
    memory: float
    launch: float

    @property
    def compute(self) -> float:
        """Matrix and vector units work side by side; the slower one counts."""
        return max(self.matrix, self.vector)

    @property
    def total(self) -> float:
        """Launch + max(compute, memory)."""
        return self.launch + max(self.compute, self.memory)

    def seconds_of(self, part: int) -> float:
        """The share of the time that op number `part` of a fused kernel brings, by its bytes."""
        parts = self.kernel.parts
        whole = self.kernel.cost.total_bytes
        share = parts[part].cost.total_bytes / whole if whole else 1 / len(parts)
        return share * self.total

    @property
    def bound(self) -> str:
        """What the kernel waits for."""
        if self.launch > max(self.compute, self.memory):
            return LATENCY
        return COMPUTE if self.compute >= self.memory else MEMORY


@dataclass(frozen=True)
class Times:
    """A ledger on a chip."""

    ledger: Ledger
    chip: Chip
    timing: Timing
    kernels: tuple[KernelTime, ...]
    network: float = 0.0  # seconds of collectives; a single chip has none

    @property
    def compute(self) -> float:
        """Seconds of all matrix work at its peak, or of all vector work if that is longer."""
        return max(sum(k.matrix for k in self.kernels), sum(k.vector for k in self.kernels))

    @property
    def memory(self) -> float:
        """Seconds to move all bytes at full bandwidth."""
        return sum(k.memory for k in self.kernels)

    @property
    def step(self) -> float:
        """The estimate: the sum over kernels, and the network."""
        return sum(k.total for k in self.kernels) + self.network

    @property
    def bound(self) -> float:
        """The ideal: everything overlaps, launches are free."""
        return max(self.compute, self.memory, self.network)

    def shares(self) -> dict[str, float]:
        """Share of the step that waits for each resource.

        A kernel's launch gap counts as latency, the rest as whatever bounds it.
        """
        seconds = dict.fromkeys((COMPUTE, MEMORY, NETWORK, LATENCY), 0.0)
        for k in self.kernels:
            seconds[LATENCY] += k.launch
            seconds[COMPUTE if k.compute >= k.memory else MEMORY] += k.total - k.launch
        seconds[NETWORK] += self.network
        whole = sum(seconds.values())
        return {name: value / whole if whole else 0.0 for name, value in seconds.items()}

    @property
    def regime(self) -> str:
        """The resource that the largest share of the step waits for."""
        shares = self.shares()
        return max(shares, key=lambda name: shares[name])

    def why(self) -> str:
        """One sentence: what the step waits for, and on what evidence."""
        shares = self.shares()
        regime = self.regime
        second = max((s for s in shares if s != regime), key=lambda name: shares[name])
        return (
            f"{shares[regime]:.0%} of the time waits for {regime} ({self._evidence(regime)}); "
            f"next: {second} {shares[second]:.0%}"
        )

    def _evidence(self, regime: str) -> str:
        cost = self.ledger.total()
        if regime == MEMORY:
            roles = cost.bytes_by_role
            role = max(roles, key=lambda name: roles[name])
            return f"{roles[role] / cost.total_bytes:.0%} of its bytes are {role}"
        if regime == COMPUTE and cost.flops:
            precision = max(cost.flops, key=lambda name: cost.flops[name])
            return f"{cost.intensity:,.0f} FLOP/B, its work mostly {precision}"
        if regime == COMPUTE:
            return "vector work alone"
        if regime == LATENCY:
            return f"{self.launches:,} launches"
        return "collectives"

    @property
    def launches(self) -> int:
        """Kernels launched, all layers counted."""
        return sum(k.kernel.launches for k in self.kernels)

    def by(self, key: Callable[[KernelTime, int], str]) -> dict[str, float]:
        """Seconds summed by what `key(kernel, part number)` says, largest first.

        A fused kernel's time is split among its ops by what each adds to it.
        """
        seconds: dict[str, float] = {}
        for k in self.kernels:
            for number in range(len(k.kernel.parts)):
                name = key(k, number)
                seconds[name] = seconds.get(name, 0.0) + k.seconds_of(number)
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def time_ledger(ledger: Ledger, chip: Chip, timing: Timing | None = None) -> Times:
    """Price the seconds of every kernel of `ledger` on `chip`.

    Raises:
        UserError: a matmul in a precision that the chip has no rate for; says which it has.
    """
    timing = timing or Timing()
    rates: dict[str, float] = {}
    for kernel in ledger.kernels:
        for table in (kernel.cost.flops, kernel.cost.recompute_flops):
            for precision in table:
                if precision not in rates:
                    rates[precision] = matrix_rate(chip, precision, timing)
    # Elementwise kernels compute in FP32 whatever they load; a chip that publishes no vector rate
    # is taken to be limited by its memory there.
    vector_rate = chip.vector.get("fp32") or max(chip.vector.values(), default=float("inf"))
    bandwidth = chip.memory_bandwidth * timing.memory_efficiency
    kernels = []
    for kernel in ledger.kernels:
        cost = kernel.cost
        kernels.append(
            KernelTime(
                kernel,
                matrix_seconds(cost, rates),
                cost.vector_flops / vector_rate,
                cost.total_bytes / bandwidth,
                timing.launch * kernel.launches,
            )
        )
    return Times(ledger, chip, timing, tuple(kernels))


def matrix_seconds(cost: Cost, rates: dict[str, float]) -> float:
    """Matrix FLOPs, repeated ones included, each at the rate of its precision."""
    seconds = 0.0
    for table in (cost.flops, cost.recompute_flops):
        for precision, flops in table.items():
            seconds += flops / rates[precision]
    return seconds


def matrix_rate(chip: Chip, precision: str, timing: Timing) -> float:
    """FLOP/s of products in `precision`; FP32 falls back to the vector units that do it.

    Raises:
        UserError: the chip has no rate for it.
    """
    if precision == "fp32" and timing.fp32_matmul == "tf32" and "tf32" in chip.peak:
        precision = "tf32"
    if precision in ("fp32", "fp64") and precision not in chip.peak and precision in chip.vector:
        return float(chip.vector[precision])
    try:
        return float(chip.peak_for(precision)) * timing.matmul_efficiency
    except ChipError as error:
        raise UserError(str(error)) from error
