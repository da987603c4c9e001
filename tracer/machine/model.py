"""A ledger's kernels through the families' formulas, one array a family.

A `Plan` holds the shapes; evaluating it under other constants, another clock or another chip costs
no second look at the trace, which is what intervals and sweeps need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cost import Ledger
from .calibration import Calibration
from .kernels import (
    CLASSES,
    CONTIGUOUS,
    GATHER,
    Cached,
    Estimate,
    Prompt,
    Rates,
    decode,
    elementwise,
    gemm,
    gemm_fp8,
    prefill,
    product,
)
from .measured import Array
from .shapes import OTHER, shape_of


@dataclass(frozen=True)
class Conditions:
    """What the chip does while it runs: shares of its datasheet, and SMs given away."""

    clock: float = 1.0  # share of the quoted clock that is sustained
    reserved_sms: float = 0.0  # SMs that communication kernels hold
    matrix: float = 1.0  # further share of the matrix peak
    memory: float = 1.0  # further share of the memory bandwidth
    portable: bool = False  # attention kernels in an older generation's instructions
    fp32_as: str = "fp32"  # precision that FP32 products run at
    vector_rows: bool = False  # gathers stream whole rows
    sustained: bool = False  # matrix kernels run at the clock that a long load settles at


@dataclass(frozen=True)
class Group:
    """Kernels of one family and precision: `kernels` are their numbers in the ledger."""

    family: str
    precision: str
    kernels: tuple[int, ...]
    columns: Mapping[str, Array]
    measured: bool = True  # such kernels were, on some chip


@dataclass(frozen=True)
class Plan:
    """All kernels of a ledger, by family; `launches` and the floor are per kernel."""

    groups: tuple[Group, ...]
    launches: Array
    floor: Array  # s a launch that the datasheet's peaks need; no estimate is below it
    conditions: Conditions


def plan_of(ledger: Ledger, floor: Sequence[float], conditions: Conditions) -> Plan:
    """Shapes of every kernel; `floor` is the roofline's seconds of one launch of each."""
    found: dict[tuple[str, str, bool], tuple[list[int], list[Mapping[str, Any]]]] = {}
    for number, kernel in enumerate(ledger.kernels):
        shape = shape_of(ledger, kernel)
        key = (shape.family, shape.precision, shape.measured)
        numbers, values = found.setdefault(key, ([], []))
        numbers.append(number)
        values.append(shape.values)
    groups = []
    for (family, precision, measured), (numbers, values) in found.items():
        columns = {
            name: np.array([row[name] for row in values], dtype=np.float64) for name in values[0]
        }
        groups.append(Group(family, precision, tuple(numbers), columns, measured))
    launches = np.array([max(k.launches, 1) for k in ledger.kernels], dtype=np.float64)
    return Plan(tuple(groups), launches, np.array(floor, dtype=np.float64), conditions)


def evaluate(plan: Plan, cal: Calibration) -> Estimate:
    """Seconds of one launch of every kernel, and what they wait for."""
    size = len(plan.launches)
    parts = [np.zeros(size) for _ in range(4)]
    for group in plan.groups:
        index = list(group.kernels)
        for whole, part in zip(parts, group_seconds(group, cal, plan.conditions), strict=True):
            whole[index] = part
    return Estimate(np.maximum(parts[0], plan.floor), *parts[1:])


def group_seconds(group: Group, cal: Calibration, conditions: Conditions) -> Estimate:
    """Seconds of one launch of each kernel of `group`."""
    precision = group.precision
    if precision == "fp32" and conditions.fp32_as in cal.chip.peak:
        precision = conditions.fp32_as
    if conditions.sustained:
        cal = cal.with_value("power", "settle", _AT_ONCE)
    r = cal.rates(precision, clock=conditions.clock, reserved_sms=conditions.reserved_sms)
    r = r._replace(matrix=r.matrix * conditions.matrix, memory=r.memory * conditions.memory)
    seconds: Estimate = _FAMILIES[group.family](group.columns, r, cal, conditions)
    return seconds


_AT_ONCE = 1e-12  # s: no kernel is as short


def families_of(group: Group) -> tuple[str, ...]:
    """Families whose constants the seconds of `group` depend on, its own first."""
    own = "gemm" if group.family == OTHER else group.family
    return (own, *_LEANS_ON.get(group.family, ()))


_LEANS_ON = {
    "gemm": ("power",), "gemm_fp8": ("gemm", "power"), "gemm_fp8_block": ("gemm", "power"),
    "attention_prefill": ("power",), "mla_prefill": ("power",), "attention_decode": ("power",),
    "mla_decode": ("power",), "grouped": ("gemm", "power"),
    OTHER: ("power",),
}  # fmt: skip

Columns = Mapping[str, Array]


def _gemm(x: Columns, r: Rates, cal: Calibration, _: Conditions) -> Estimate:
    more = {"batch": x["batch"], "moved": x["moved"]}
    return gemm(x["m"], x["n"], x["k"], r, cal["gemm"], cal["power"], **more)


def _fp8(x: Columns, r: Rates, cal: Calibration, _: Conditions) -> Estimate:
    return _small(x, r, cal, "gemm_fp8")


def _fp8_block(x: Columns, r: Rates, cal: Calibration, _: Conditions) -> Estimate:
    return _small(x, r, cal, "gemm_fp8_block")


def _small(x: Columns, r: Rates, cal: Calibration, family: str) -> Estimate:
    """An FP8 product alone: in a trace, the quantisation is a kernel of its own."""
    # The measured launch holds both kernels; what stays of it here is a BF16 product's.
    alone = cal[family]._replace(launch=cal["gemm"].launch)
    serial = cal["gemm"].serial
    return gemm_fp8(
        x["m"], x["n"], x["k"], r, alone, cal["power"], serial, batch=x["batch"],
        moved=x["moved"], block=family == "gemm_fp8_block",
    )  # fmt: skip


def _prefill(family: str) -> Any:
    def seconds(x: Columns, r: Rates, cal: Calibration, conditions: Conditions) -> Estimate:
        shape = Prompt(**x)
        return prefill(shape, r, cal[family], cal["power"], portable=conditions.portable)

    return seconds


def _decode(family: str) -> Any:
    def seconds(x: Columns, r: Rates, cal: Calibration, _: Conditions) -> Estimate:
        return decode(Cached(**x), r, cal[family])

    return seconds


def _grouped(x: Columns, r: Rates, cal: Calibration, _: Conditions) -> Estimate:
    shape = (x["rows"], x["active"], x["k"], x["n"])
    launch = cal["gemm"].launch
    return product(*shape, r, cal["grouped"], cal["power"], launch, moved=x["moved"])


def _elementwise(x: Columns, r: Rates, cal: Calibration, conditions: Conditions) -> Estimate:
    chip = cal.chip
    # Elementwise kernels compute in FP32 whatever they load.
    peak = chip.vector.get("fp32") or max(chip.vector.values(), default=float("inf"))
    vector = x["vector"] / (peak * conditions.clock)
    access = x["access"]
    if conditions.vector_rows:
        access = np.where(access == CLASSES.index(GATHER), CLASSES.index(CONTIGUOUS), access)
    return elementwise(x["moved"], x["elements"], access, r, cal["elementwise"], vector=vector)


def _other(x: Columns, r: Rates, cal: Calibration, _: Conditions) -> Estimate:
    """Matrix work of unknown shape: a large product of as many FLOPs and bytes."""
    c = cal["gemm"]
    compute, memory = x["flops"] / (r.matrix * c.matrix), x["moved"] / (r.memory * c.memory)
    return Estimate(c.launch + np.maximum(compute, memory), compute, memory, c.launch)


_FAMILIES: dict[str, Any] = {
    "gemm": _gemm,
    "gemm_fp8": _fp8,
    "gemm_fp8_block": _fp8_block,
    "attention_prefill": _prefill("attention_prefill"),
    "mla_prefill": _prefill("mla_prefill"),
    "attention_decode": _decode("attention_decode"),
    "mla_decode": _decode("mla_decode"),
    "grouped": _grouped,
    "elementwise": _elementwise,
    OTHER: _other,
}
