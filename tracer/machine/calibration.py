"""The constants of a chip by family, and where each comes from.

A chip file may hold tables `[calibration.<family>]`. A constant that a chip lacks is taken from a
chip of the same generation, else from Hopper's H200, whose constants are mostly dimensionless;
either way the chip's own datasheet stays, and `origin` says whose constants were used.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tracer.hardware import Chip, Constant, chip_ids, load_chip

from ..errors import UserError
from .kernels import FAMILIES, NETWORK, Rates

REFERENCE = "h200_sxm"

EXTRA = {"misfit", "backend"}  # in a family's table beside its constants

OWN, SIBLING, FOREIGN = "calibrated", "same generation", "uncalibrated"

# What stands in for figures that a chip does not publish: Hopper's.
_SM_FLOPS = 989.4e12 / 132  # BF16 FLOP/s of one SM
_CLOCK = 1.83e9
_FP32_A_CYCLE = 256  # FP32 FLOP a cycle and SM on NVIDIA since Ampere
_MMA_ROWS = {"blackwell": 128.0}  # tcgen05; wgmma and flash tiles of others have 64
_SWITCHES = {"hopper", "blackwell"}  # NVSwitch adds up from its third generation on
_ALIKE = 1.25  # ratio of matrix peaks of one SM, up to which two chips run in one regime


@dataclass(frozen=True)
class Calibration:
    """Constants by family with their spreads.

    Attributes:
        chip: the chip that is priced.
        families: constants as the family's named tuple.
        spreads: relative standard deviation of each constant, same keys.
        misfit: relative standard deviation of one prediction, by family.
        backend: how much longer the second best backend takes, a share of the best one's time.
        origin: id of the chip whose measurements each family comes from.
        base_reach: `power.reach` of the chip that the matrix shares were fitted on.
    """

    chip: Chip
    families: Mapping[str, Any]
    spreads: Mapping[str, Mapping[str, float]]
    misfit: Mapping[str, float]
    backend: Mapping[str, float]
    origin: Mapping[str, str]
    base_reach: float

    def __getitem__(self, family: str) -> Any:
        return self.families[family]

    def rates(self, precision: str, **conditions: float) -> Rates:
        """The chip's figures, its matrix peak as far as large products are known to reach it.

        Shares of the matrix peak may be those of another chip; where the best measured product of
        this one gets nearer to its peak or less near, so do all kernels.
        """
        found = rates(self.chip, precision, **conditions)
        return found._replace(matrix=found.matrix * self["power"].reach / self.base_reach)

    def status(self) -> str:
        """How far the chip's own measurements are behind its constants: the weakest family.

        A chip whose SMs are capped far below their siblings' (H20) is not in their power regime.
        """
        sources = [load_chip(chip) for chip in set(self.origin.values()) - {self.chip.id}]
        if not sources:
            return OWN
        alike = all(
            source.generation == self.chip.generation
            and 1 / _ALIKE < _sm_peak(source) / _sm_peak(self.chip) < _ALIKE
            for source in sources
        )
        return SIBLING if alike else FOREIGN

    def note(self) -> str:
        """One line that says whose constants the seconds rest on."""
        by_chip: dict[str, list[str]] = {}
        for family, chip in self.origin.items():
            by_chip.setdefault(chip, []).append(family)
        owner = max(by_chip, key=lambda chip: len(by_chip[chip]))
        rest = [f"{', '.join(names)}: {chip}" for chip, names in by_chip.items() if chip != owner]
        others = f" ({'; '.join(rest)})" if rest else ""
        status = self.status()
        if status == FOREIGN:
            return (
                f"{self.chip.name}: UNCALIBRATED: kernel constants measured on {owner}{others}, "
                "another kind of chip, with this one's datasheet"
            )
        if status == SIBLING:
            return f"{self.chip.name}: kernel constants measured on {owner}{others}"
        return f"{self.chip.name}: kernel constants measured on it"

    def with_value(self, family: str, name: str, value: Any) -> Calibration:
        """The same with one constant replaced."""
        changed = self.families[family]._replace(**{name: value})
        return replace(self, families={**self.families, family: changed})


def calibration_of(chip: Chip) -> Calibration:
    """The constants to price `chip` with.

    Raises:
        UserError: a calibration table that lacks a constant or has one too many.
    """
    families: dict[str, Any] = {}
    spreads: dict[str, dict[str, float]] = {}
    misfit: dict[str, float] = {}
    backend: dict[str, float] = {}
    origin: dict[str, str] = {}
    base = chip
    for family, kind in FAMILIES.items():
        own = chip.calibration.get(family, {})
        source = chip if _complete(kind, own) else _nearest(family, chip.generation)
        base = source if family == "power" else base
        table = {**source.calibration[family], **own}
        families[family] = constants(family, table, chip.id)
        spreads[family] = {name: item.spread for name, item in table.items() if name not in EXTRA}
        for name, values in (("misfit", misfit), ("backend", backend)):
            values[family] = table[name].value if name in table else 0.0
        origin[family] = source.id
    reach = base.calibration["power"]["reach"].value
    return Calibration(chip, families, spreads, misfit, backend, origin, reach)


def network_constants(chip: Chip, family: str) -> tuple[Any, str]:
    """Constants of a family that only plans over many chips use, and the chip they come from.

    Raises:
        UserError: as `calibration_of`.
    """
    own = chip.calibration.get(family, {})
    source = chip if _complete(_kind(family), own) else _nearest(family, chip.generation)
    return constants(family, {**source.calibration[family], **own}, chip.id), source.id


def _kind(family: str) -> Any:
    return {**FAMILIES, **NETWORK}[family]


def _complete(kind: Any, table: Mapping[str, Constant]) -> bool:
    return set(kind._fields) <= set(table)


def constants(family: str, table: Mapping[str, Constant], chip: str) -> Any:
    """A table of a chip file as the family's named tuple."""
    kind = _kind(family)
    names = set(kind._fields)
    for name in sorted(names ^ (set(table) - EXTRA)):
        fault = "is missing" if name in names else f"is unknown; known: {', '.join(kind._fields)}"
        raise UserError(f"{chip}.toml: calibration.{family}.{name} {fault}")
    return kind(**{name: table[name].value for name in kind._fields})


@functools.cache
def _nearest(family: str, generation: str) -> Chip:
    found = None
    for chip_id in chip_ids():
        chip = load_chip(chip_id)
        if _complete(_kind(family), chip.calibration.get(family, {})):
            if chip.generation == generation:
                return chip
            if found is None or chip_id == REFERENCE:
                found = chip
    if found is None:
        raise UserError(f"no chip file has a table [calibration.{family}]")
    return found


def _sm_peak(chip: Chip) -> float:
    """Matrix FLOP/s of one SM in the precision that most chips have."""
    peak = chip.peak.get("bf16") or max(chip.peak.values())
    return float(peak / (chip.sm_count or 1))


def rates(chip: Chip, precision: str, *, clock: float = 1.0, reserved_sms: float = 0.0) -> Rates:
    """Datasheet figures for a precision; `clock` is the share of the quoted clock that holds.

    A chip without SMs or clock on its datasheet is divided into SMs of Hopper's BF16 rate. Any
    figure may be an array of one number a point of a sweep.
    """
    peak = chip.peak.get(precision, chip.vector.get(precision))
    peak = max(chip.peak.values()) if peak is None else peak
    sms = chip.sm_count
    if sms is None:
        sms = np.maximum(1.0, chip.peak.get("bf16", peak) / _SM_FLOPS)
    frequency = chip.clock
    if frequency is None:
        fp32 = chip.vector.get("fp32")
        implied = fp32 is not None and chip.vendor == "NVIDIA"
        frequency = fp32 / (_FP32_A_CYCLE * sms) if implied else _CLOCK
    share = (sms - reserved_sms) / sms
    return Rates(
        peak * clock * share,
        chip.memory_bandwidth,
        sms * share,
        frequency * clock,
        chip.link_bandwidth or chip.nic_bandwidth or 0.0,
        _MMA_ROWS.get(chip.generation, 64.0),
        chip.generation in _SWITCHES,
    )
