"""Reads `chips/<id>.toml` strictly: a mistyped or unsourced figure is an error, not a guess."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracer.errors import UserError

from .tables import Format, choose, read_all

CHIPS = Path(__file__).parent / "chips"

PRECISIONS = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp6", "fp4", "int8", "int4")


class ChipError(UserError):
    """A chip file that does not hold together, or a question that its chip cannot answer."""


# Counts and watts are small by nature; every other figure is in bytes, B/s, FLOP/s or Hz. No chip
# here has a rate or a size under a million SI units, so a smaller one is 989 for 989e12: the
# likeliest slip in a file written by hand, and one that would be wrong by a factor of 1e12.
FORMAT = Format(
    error=ChipError,
    texts=(("name", "vendor", "generation"), ("note",)),
    sections={
        "peak": ((), PRECISIONS),
        "vector": ((), PRECISIONS),
        "memory": (("capacity", "bandwidth"), ("usable",)),
        "cache": (("l2",), ()),
        "link": (("bandwidth", "domain"), ()),
        "nic": (("bandwidth",), ()),
        "sm": (("count",), ("clock",)),
        "power": (("tdp",), ()),
    },
    required=("peak", "memory"),
    others=("aliases", "calibration"),
    counts=("link.domain", "sm.count"),
    ranges=dict.fromkeys(("link.domain", "sm.count", "power.tdp"), (0.0, math.inf, "")),
    floor=(1e6, "write FLOP/s, bytes, B/s or Hz (989e12, not 989)"),
)


@dataclass(frozen=True)
class Constant:
    """A fitted constant of the kernel time model.

    `spread` is its relative standard deviation, `source` the data and the date it comes from.
    """

    value: float
    spread: float
    source: str


@dataclass(frozen=True)
class Chip:
    """One accelerator. SI base units: FLOP/s (OP/s for int*), bytes, B/s, Hz, W.

    `peak` has dense matrix rates and `vector` the non-matrix ones, by precision. `link_bandwidth`
    and `nic_bandwidth` count one direction. What a file leaves out is None (`vector`: empty).
    `memory_capacity` is the datasheet's, `memory_usable` what programs on the chip are given.
    `sources` maps the dotted key of every number in the file to where that number is from.
    `calibration` holds fitted constants by kernel family; a chip may have none.
    """

    id: str
    name: str
    vendor: str
    generation: str
    peak: Mapping[str, float] = field(hash=False)
    memory_capacity: float
    memory_bandwidth: float
    memory_usable: float | None = None
    vector: Mapping[str, float] = field(default_factory=dict, hash=False)
    l2: float | None = None
    link_bandwidth: float | None = None
    link_domain: int | None = None
    nic_bandwidth: float | None = None
    sm_count: int | None = None
    clock: float | None = None
    tdp: float | None = None
    note: str = ""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    aliases: tuple[str, ...] = ()
    calibration: Mapping[str, Mapping[str, Constant]] = field(default_factory=dict, hash=False)

    def peak_for(self, precision: str) -> float:
        """Dense matrix peak in FLOP/s (OP/s for int*).

        Never the vector rate: whether a matmul without a matrix unit falls back to the vector
        units depends on the software, so the caller must ask `vector` for it by name.

        Raises:
            ChipError: the chip has no matrix unit for `precision`; the line says which it has.
        """
        if precision in self.peak:
            return self.peak[precision]
        text = f"{self.name} ({self.id}) has no {precision} matrix peak; it has "
        text += ", ".join(self.peak)
        if precision in self.vector:
            text += f" (vector units alone: {precision})"
        raise ChipError(text)

    @property
    def memory_given(self) -> float:
        """Bytes that all of a chip's programs have, their contexts included.

        What the runtime calls its total (cudaMemGetInfo) where a source says so, else the
        datasheet's. An "80 GB" GPU has 80 GiB of HBM, of which the driver keeps about 1 %.
        """
        return self.memory_capacity if self.memory_usable is None else self.memory_usable

    def ridge(self, precision: str) -> float:
        """Arithmetic intensity where the memory roof meets the compute roof, in FLOP/byte.

        Raises:
            ChipError: as `peak_for`.
        """
        return self.peak_for(precision) / self.memory_bandwidth


def chip_ids() -> list[str]:
    """The ids of the bundled chips, sorted. Lists file names only: nothing is parsed."""
    return sorted(path.stem for path in CHIPS.glob("*.toml"))


def load_chip(id_or_path: str | os.PathLike[str]) -> Chip:
    """A bundled chip by id or alias, or a chip of your own by the path of its .toml file.

    Names match whatever their case and separators: `H200-SXM` is `h200_sxm`. A string that ends in
    .toml, and any path object, is a path.

    Raises:
        ChipError: no such chip, or a file that is missing, malformed, incomplete or unsourced.
    """
    if not isinstance(id_or_path, str) or id_or_path.lower().endswith(".toml"):
        return read_chip(Path(id_or_path))
    chip: Chip = choose(id_or_path, load_directory(CHIPS), ChipError, "chip")
    return chip


@functools.cache
def load_directory(directory: Path) -> dict[str, Chip]:
    """Every chip of a folder by id, its ids and aliases checked against one another.

    Raises:
        ChipError: as `read_chip`, or two files that claim one name.
    """
    return read_all(directory, read_chip, ChipError)


def read_chip(path: Path) -> Chip:
    """One chip file, checked in full; its id is the file's name without .toml.

    Raises:
        ChipError: one line with the file and the key at fault.
    """
    return _build(path, FORMAT.parse(path))


def _build(path: Path, data: Mapping[str, Any]) -> Chip:
    text = FORMAT.all_texts(path, data)
    figures, sources = FORMAT.figures(path, data)

    def figure(section: str, key: str) -> float | None:
        return figures.get(section, {}).get(key)

    def count(section: str, key: str) -> int | None:
        value = figure(section, key)
        return None if value is None else int(value)

    return Chip(
        id=path.stem,
        name=text["name"],
        vendor=text["vendor"],
        generation=text["generation"],
        peak=figures["peak"],
        vector=figures.get("vector", {}),
        memory_capacity=figures["memory"]["capacity"],
        memory_bandwidth=figures["memory"]["bandwidth"],
        memory_usable=figure("memory", "usable"),
        l2=figure("cache", "l2"),
        link_bandwidth=figure("link", "bandwidth"),
        link_domain=count("link", "domain"),
        nic_bandwidth=figure("nic", "bandwidth"),
        sm_count=count("sm", "count"),
        clock=figure("sm", "clock"),
        tdp=figure("power", "tdp"),
        note=text.get("note", ""),
        sources=sources,
        aliases=FORMAT.aliases(path, data),
        calibration=_calibration(path, data.get("calibration", {}), sources),
    )


def _calibration(path: Path, table: Any, sources: dict[str, str]) -> dict[str, dict[str, Constant]]:
    """`[calibration]`: the `data` and `date` of the fit, and a table of constants a family.

    Which constants a family has is the time model's to say; here only their form is checked.
    """
    if not isinstance(table, dict):
        raise FORMAT.fault(path, "calibration", "a table is needed")
    for key in ("data", "date") if table else ():
        if key not in table:
            raise FORMAT.fault(path, f"calibration.{key}", "missing")
        FORMAT.text(path, f"calibration.{key}", table[key])
    return {
        family: _constants(path, f"calibration.{family}", constants, sources)
        for family, constants in table.items()
        if family not in ("data", "date")
    }


def _constants(path: Path, key: str, table: Any, sources: dict[str, str]) -> dict[str, Constant]:
    if not isinstance(table, dict):
        raise FORMAT.fault(path, key, "a table is needed")
    found = {}
    for name, entry in table.items():
        dotted = f"{key}.{name}"
        if not isinstance(entry, dict):
            what = 'write it as { value = ..., spread = ..., source = "..." }'
            raise FORMAT.fault(path, dotted, what)
        for part in ("value", "spread", "source"):
            if part not in entry:
                raise FORMAT.fault(path, f"{dotted}.{part}", "missing")
        for part in entry:
            if part not in ("value", "spread", "source"):
                known = "known: source, spread, value"
                raise FORMAT.fault(path, f"{dotted}.{part}", f"unknown key; {known}")
        for part in ("value", "spread"):
            number = entry[part]
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise FORMAT.fault(path, f"{dotted}.{part}", f"a number is needed, not {number!r}")
            if not math.isfinite(number) or number < 0:
                raise FORMAT.fault(
                    path, f"{dotted}.{part}", f"at least 0 is needed, not {number!r}"
                )
        sources[dotted] = FORMAT.text(path, f"{dotted}.source", entry["source"])
        found[name] = Constant(float(entry["value"]), float(entry["spread"]), sources[dotted])
    return found
