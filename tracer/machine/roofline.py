"""Seconds of every kernel on one chip, summed on one stream.

Two models. "kernels" takes each kernel's time from the formula of its family (`kernels`), whose
constants are measured. "roofline" is `launch + max(compute, memory)` at the datasheet's peaks, or
at a share of them that is given. `max` over summed totals is the ideal bound, in which everything
overlaps with everything: it is kept beside the sum and never shown as the estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tracer.hardware import Chip, ChipError

from ..cost import Kernel, Ledger
from ..cost.work import COLLECTIVE, Cost
from ..errors import UserError
from .calibration import Calibration, calibration_of
from .model import Plan, evaluate, plan_of
from .timing import ROOFLINE, Timing
from .uncertainty import Driver, drivers, interval

COMPUTE, MEMORY, NETWORK, LATENCY = "compute", "memory", "network", "latency"
PEAK, VECTOR = "peak", "vector"  # tables of a chip's rates


class KernelTime(NamedTuple):
    """Seconds of one kernel, all its launches together.

    `matrix`, `vector` and `memory` are those of the datasheet (or the shares of it that are given).
    `seconds` is the kernel model's estimate, and `busy` and `traffic` the compute and memory time
    within it; all three are None in the roofline.
    """

    kernel: Kernel
    matrix: float
    vector: float
    memory: float
    launch: float
    seconds: float | None = None
    busy: float | None = None
    traffic: float | None = None

    @property
    def compute(self) -> float:
        """Matrix and vector units work side by side; the slower one counts."""
        return max(self.matrix, self.vector)

    @property
    def total(self) -> float:
        """The estimate: the kernel model's, or launch + max(compute, memory)."""
        if self.seconds is not None:
            return self.seconds
        return self.launch + max(self.compute, self.memory)

    def seconds_of(self, part: int) -> float:
        """The share of the time that op number `part` of a fused kernel brings, by its bytes."""
        parts = self.kernel.parts
        whole = self.kernel.cost.total_bytes
        share = parts[part].cost.total_bytes / whole if whole else 1 / len(parts)
        return share * self.total

    @property
    def works(self) -> str:
        """What the kernel waits for once it has started: compute or memory."""
        compute, memory = self.compute, self.memory
        if self.busy is not None and self.traffic is not None:
            compute, memory = self.busy, self.traffic
        return COMPUTE if compute >= memory else MEMORY

    @property
    def bound(self) -> str:
        """What the kernel waits for."""
        return LATENCY if self.launch > self.total - self.launch else self.works


@dataclass(frozen=True)
class Times:
    """A ledger on a chip."""

    ledger: Ledger
    chip: Chip
    timing: Timing
    kernels: tuple[KernelTime, ...]
    network: float = 0.0  # seconds of collectives; a single chip has none
    plan: Plan | None = field(default=None, repr=False, compare=False)
    calibration: Calibration | None = field(default=None, repr=False, compare=False)

    @property
    def compute(self) -> float:
        """Seconds of all matrix work at its peak, or of all vector work if that is longer."""
        return max(sum(k.matrix for k in self.kernels), sum(k.vector for k in self.kernels))

    @property
    def memory(self) -> float:
        """Seconds to move all bytes at full bandwidth."""
        return sum(k.memory for k in self.kernels)

    @property
    def device(self) -> float:
        """Seconds that the chip is busy: the sum over kernels."""
        return sum(k.total for k in self.kernels)

    @property
    def host(self) -> float:
        """Seconds that the CPU takes to launch all kernels one by one; 0 in a CUDA graph."""
        return self.timing.host * self.launches

    @property
    def step(self) -> float:
        """The estimate: the larger of device and host time, and the network."""
        return max(self.device, self.host) + self.network

    @property
    def bound(self) -> float:
        """The ideal: everything overlaps, launches are free."""
        return max(self.compute, self.memory, self.network)

    def shares(self) -> dict[str, float]:
        """Share of the step that waits for each resource.

        A kernel's launch gap counts as latency, the rest as whatever bounds it; so does the time
        that the chip waits for the host.
        """
        seconds = dict.fromkeys((COMPUTE, MEMORY, NETWORK, LATENCY), 0.0)
        for k in self.kernels:
            seconds[LATENCY] += k.launch
            seconds[k.works] += k.total - k.launch
        seconds[LATENCY] += max(self.host - self.device, 0.0)
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

    def interval(self) -> tuple[float, float] | None:
        """P10 and P90 of the step; None in the roofline, which knows no spread."""
        if self.plan is None or self.calibration is None:
            return None
        return interval(self.tornado(), self.step)

    def tornado(self) -> list[Driver]:
        """What drives the interval, largest swing first; empty in the roofline."""
        if self.plan is None or self.calibration is None:
            return []
        return drivers(self.plan, self.calibration, self.step - self.device)

    def notes(self) -> list[str]:
        """What the seconds of this chip rest on: whose measurements, and how sure."""
        lines = [] if self.calibration is None else [self.calibration.note()]
        if not self.network and any(k.kind == COLLECTIVE for k in self.ledger.kernels):
            lines.append("collectives take no time here: no network was given")
        return lines

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


def time_ledger(
    ledger: Ledger, chip: Chip, timing: Timing | None = None,
    network: Callable[[Kernel], float] | None = None,
) -> Times:  # fmt: skip
    """Price the seconds of every kernel of `ledger` on `chip`.

    Args:
        ledger: what runs.
        chip: where.
        timing: what is assumed of the chip.
        network: seconds of a collective, all its launches together. Collectives take no time of
            the device's; their sum becomes `Times.network`, which nothing overlaps.

    Raises:
        UserError: a matmul in a precision that the chip has no rate for; says which it has.
    """
    timing = timing or Timing()
    collectives = [kernel for kernel in ledger.kernels if kernel.kind == COLLECTIVE]
    seconds_of_network = sum(map(network, collectives)) if network is not None else 0.0
    working = ledger
    if collectives:
        working = replace(ledger, kernels=tuple(k for k in ledger.kernels if k.kind != COLLECTIVE))
    rates: dict[str, float] = {}
    for kernel in working.kernels:
        for table in (kernel.cost.flops, kernel.cost.recompute_flops):
            for precision in table:
                if precision not in rates:
                    rates[precision] = matrix_rate(chip, precision, timing)
    # Elementwise kernels compute in FP32 whatever they load; a chip that publishes no vector rate
    # is taken to be limited by its memory there.
    vector_rate = chip.vector.get("fp32") or max(chip.vector.values(), default=float("inf"))
    vector_rate *= timing.clock
    bandwidth = chip.memory_bandwidth * timing.memory_efficiency
    kernels = []
    for kernel in working.kernels:
        cost = kernel.cost
        kernels.append(
            KernelTime(
                kernel,
                matrix_seconds(cost, rates) / timing.clock,
                cost.vector_flops / vector_rate,
                cost.total_bytes / bandwidth,
                timing.launch * kernel.launches,
            )
        )
    if timing.model == ROOFLINE:
        return Times(ledger, chip, timing, tuple(kernels), seconds_of_network)
    calibration = calibration_of(chip)
    floor = [max(k.compute, k.memory) / max(k.kernel.launches, 1) for k in kernels]
    plan = plan_of(working, floor, timing.conditions())
    columns = [column * plan.launches for column in evaluate(plan, calibration)]
    timed = [
        k._replace(seconds=seconds, busy=busy, traffic=traffic, launch=launch)
        for k, seconds, busy, traffic, launch in zip(
            kernels, *(column.tolist() for column in columns), strict=True
        )
    ]
    return Times(
        ledger, chip, timing, tuple(timed), seconds_of_network, plan=plan, calibration=calibration
    )


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
    unit, precision = matrix_unit(chip, precision, timing)
    if unit == VECTOR:
        return float(chip.vector[precision])
    return float(chip.peak[precision]) * timing.matmul_efficiency


def matrix_unit(chip: Chip, precision: str, timing: Timing) -> tuple[str, str]:
    """The table of the chip ("peak" or "vector") and the precision in which a product runs.

    Raises:
        UserError: the chip has no rate for it.
    """
    if precision == "fp32" and timing.fp32_matmul == "tf32" and "tf32" in chip.peak:
        precision = "tf32"
    if precision in ("fp32", "fp64") and precision not in chip.peak and precision in chip.vector:
        return VECTOR, precision
    try:
        chip.peak_for(precision)
    except ChipError as error:
        raise UserError(str(error)) from error
    return PEAK, precision
