"""What of a chip and of the assumptions can be a number of its own at every point of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tracer.hardware import Chip

from .calibration import calibration_of, rates
from .roofline import PEAK, VECTOR, matrix_unit
from .tables import Derived
from .timing import Timing

ASSUMED = ("launch", "matmul_efficiency", "memory_efficiency", "host", "clock", "reserved_sms")
# Bytes an element against those that were traced, by role; 0.5 halves the dtype.
BYTES = {"weights": "bytes.weights", "kv": "bytes.kv", "activations": "bytes.activations",
         "temporary": "bytes.activations"}  # fmt: skip
INVERSE_MEMORY, INVERSE_VECTOR, ISSUE = "1/memory", "1/vector", "1/issue"
INVERSE_NETWORK, EXCHANGE = "1/network", "exchange/network"
RANKS = "EP"  # the symbol whose size decides over which wires


def defaults_of(chip: Chip, timing: Timing) -> dict[str, float]:
    """Every knob of `chip` and `timing` with its value; what a chip lacks is no knob of it."""
    found = {f"peak.{precision}": rate for precision, rate in chip.peak.items()}
    for name, value in (
        ("vector", chip.vector.get("fp32")), ("bandwidth", chip.memory_bandwidth),
        ("capacity", chip.memory_capacity), ("sms", chip.sm_count), ("frequency", chip.clock),
        ("link", chip.link_bandwidth), ("nic", chip.nic_bandwidth),
    ):  # fmt: skip
        if value is not None:
            found[name] = float(value)
    found |= {name: float(getattr(timing, name)) for name in ASSUMED}
    found["exchange"] = float(calibration_of(chip)["collective"].launch)
    return found | dict.fromkeys(BYTES.values(), 1.0)


def chip_at(chip: Chip, values: Mapping[str, Any]) -> Chip:
    """`chip` with the figures of `values`, numbers or arrays."""
    vector = dict(chip.vector)
    if "vector" in values:
        vector["fp32"] = values["vector"]
    return replace(
        chip,
        peak={precision: values[f"peak.{precision}"] for precision in chip.peak},
        vector=vector,
        memory_bandwidth=values["bandwidth"],
        sm_count=values.get("sms"),
        clock=values.get("frequency"),
    )


def derived_of(chip: Chip, timing: Timing, precisions: frozenset[str]) -> dict[str, Derived]:
    """Seconds a FLOP by precision, a vector FLOP, a byte, and an instruction of one SM.

    Raises:
        UserError: a precision that the chip has no rate for.
    """
    found = {
        INVERSE_MEMORY: Derived(
            frozenset(("bandwidth", "memory_efficiency")),
            lambda v: 1 / (v["bandwidth"] * v["memory_efficiency"]),
        ),
        ISSUE: Derived(
            # A chip without SMs on its datasheet is divided into them by its BF16 rate.
            frozenset(("sms", "frequency", "clock", "reserved_sms", "vector"))
            | ({"peak.bf16"} if chip.sm_count is None else set()),
            lambda v: 1 / _issue(chip, v),
        ),
    }
    found[INVERSE_NETWORK] = Derived(
        frozenset(("link", "nic", RANKS)), lambda v: 1 / _wire(chip, v)
    )
    found[EXCHANGE] = Derived(
        frozenset(("exchange", RANKS)), lambda v: np.where(v[RANKS] > 1, v["exchange"], 0.0)
    )
    if "fp32" in chip.vector:
        names = frozenset(("vector", "clock"))
        found[INVERSE_VECTOR] = Derived(names, lambda v: 1 / (v["vector"] * v["clock"]))
    else:  # as in the roofline: another vector rate, or none at all
        rate = max(chip.vector.values(), default=float("inf"))
        found[INVERSE_VECTOR] = Derived(frozenset(("clock",)), lambda v: 1 / (rate * v["clock"]))
    for precision in precisions:
        found[inverse_matrix(precision)] = _matrix(chip, precision, timing)
    return found


_NO_WIRE = 1e-30  # B/s of a chip without a network: no plan over it is ever the best


def inverse_matrix(precision: str) -> str:
    """The atom of seconds a FLOP of products in `precision`."""
    return f"1/matrix.{precision}"


def _wire(chip: Chip, values: Mapping[str, Any]) -> Any:
    """One-way bytes a second of one chip among `RANKS`; what is missing carries nothing."""
    outside = values.get("nic", _NO_WIRE)
    inside = values.get("link", outside)
    return np.where(values[RANKS] <= (chip.link_domain or 1), inside, outside)


def _issue(chip: Chip, values: Mapping[str, Any]) -> Any:
    conditions = {"clock": values["clock"], "reserved_sms": values["reserved_sms"]}
    return rates(chip_at(chip, values), "bf16", **conditions).issue


def _matrix(chip: Chip, precision: str, timing: Timing) -> Derived:
    unit, runs = matrix_unit(chip, precision, timing)
    if unit == VECTOR and runs == "fp32":
        return Derived(frozenset(("vector", "clock")), lambda v: 1 / (v["vector"] * v["clock"]))
    if unit == VECTOR:
        rate = chip.vector[runs]
        return Derived(frozenset(("clock",)), lambda v: 1 / (rate * v["clock"]))
    peak = f"{PEAK}.{runs}"
    return Derived(
        frozenset((peak, "matmul_efficiency", "clock")),
        lambda v: 1 / (v[peak] * v["matmul_efficiency"] * v["clock"]),
    )
