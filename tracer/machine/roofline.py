"""Seconds of every kernel on one chip, summed on one stream.

Two models. "kernels" takes each kernel's time from the formula of its family (`kernels`), whose
constants are measured. "roofline" is `launch + max(compute, memory)` at the datasheet's peaks, or
at a share of them that is given. `max` over summed totals is the ideal bound, in which everything
overlaps with everything: it is kept beside the sum and never shown as the estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

from tracer.hardware import Chip, ChipError

from ..cost import Kernel, Ledger
from ..cost.work import COLLECTIVE, Cost
from ..errors import UserError
from .calibration import Calibration, calibration_of
from .model import Conditions, Plan, evaluate, plan_of
from .uncertainty import Driver, drivers, interval

COMPUTE, MEMORY, NETWORK, LATENCY = "compute", "memory", "network", "latency"
KERNELS, ROOFLINE = "kernels", "roofline"
PEAK, VECTOR = "peak", "vector"  # tables of a chip's rates

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
