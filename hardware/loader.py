"""Reads `chips/<id>.toml` strictly: a mistyped or unsourced figure is an error, not a guess."""

from __future__ import annotations

import functools
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracer.errors import UserError, did_you_mean

CHIPS = Path(__file__).parent / "chips"

PRECISIONS = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp6", "fp4", "int8", "int4")

_TEXT_REQUIRED = ("name", "vendor", "generation")
_TEXT = (*_TEXT_REQUIRED, "note")

# Section -> (required keys, optional keys). [memory] and [peak] must be there; any other section
# may be left out, but one that is there must be complete.
_SECTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "peak": ((), PRECISIONS),
    "vector": ((), PRECISIONS),
    "memory": (("capacity", "bandwidth"), ()),
    "cache": (("l2",), ()),
    "link": (("bandwidth", "domain"), ()),
    "nic": (("bandwidth",), ()),
    "sm": (("count",), ("clock",)),
    "power": (("tdp",), ()),
}
_SECTIONS_REQUIRED = ("peak", "memory")

# Counts and watts are small by nature; every other figure is in bytes, B/s, FLOP/s or Hz.
_COUNTS = ("link.domain", "sm.count")
_SMALL = (*_COUNTS, "power.tdp")
# No chip here has a rate or a size under a million SI units, so a smaller one is 989 for 989e12:
# the likeliest slip in a file written by hand, and one that would be wrong by a factor of 1e12.
_FLOOR = 1e6


class ChipError(UserError):
    """A chip file that does not hold together, or a question that its chip cannot answer."""


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
    chips = load_directory(CHIPS)
    names = _names(chips)
    chip_id = names.get(_fold(id_or_path))
    if chip_id is None:
        raise ChipError(f"no chip {id_or_path!r}; {did_you_mean(id_or_path, chips)}")
    return chips[chip_id]


@functools.cache
def load_directory(directory: Path) -> dict[str, Chip]:
    """Every chip of a folder by id, its ids and aliases checked against one another.

    Raises:
        ChipError: as `read_chip`, or two files that claim one name.
    """
    chips = {path.stem: read_chip(path) for path in sorted(directory.glob("*.toml"))}
    _names(chips)
    return chips


def read_chip(path: Path) -> Chip:
    """One chip file, checked in full; its id is the file's name without .toml.

    Raises:
        ChipError: one line with the file and the key at fault.
    """
    return _build(path, _parse(path))


def _fault(path: Path, key: str, what: str) -> ChipError:
    """The error for one key of one file, on one line whatever the file has in it."""
    return ChipError(" ".join(f"{path}: {key}: {what}".split()))


def _fold(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _names(chips: Mapping[str, Chip]) -> dict[str, str]:
    """Folded id or alias -> id."""
    owner: dict[str, str] = {}
    for chip in chips.values():
        for key, name in [("id", chip.id), *(("aliases", alias) for alias in chip.aliases)]:
            first = owner.setdefault(_fold(name), chip.id)
            if first != chip.id:
                raise ChipError(f"{chip.id}.toml: {key}: {name!r} is taken by {first}.toml")
    return owner


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ChipError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except UnicodeDecodeError:
        raise ChipError(f"{path}: not UTF-8 text") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # ValueError is tomllib's own error and Python's for an integer of thousands of digits.
        # tomllib gives the line of a key that is there twice, but not the key.
        found = re.search(r"at line (\d+)", str(error))
        line = text.splitlines()[int(found[1]) - 1] if found else ""
        key = line.split("=")[0].strip()
        raise _fault(path, key, str(error)) from None


def _build(path: Path, data: Mapping[str, Any]) -> Chip:
    for key in data:
        known = [*_TEXT, "aliases", *_SECTIONS, "calibration"]
        if key not in known:
            raise _fault(path, key, f"unknown key; {did_you_mean(key, known)}")
    for key in (*_TEXT_REQUIRED, *_SECTIONS_REQUIRED):
        if key not in data:
            raise _fault(path, key, "missing")
    text = {key: _text(path, key, data[key]) for key in _TEXT if key in data}
    aliases = data.get("aliases", [])
    if not isinstance(aliases, list):
        raise _fault(path, "aliases", "a list of names is needed")

    figures: dict[str, dict[str, float]] = {}
    sources: dict[str, str] = {}
    for section in _SECTIONS:
        if section in data:
            figures[section] = _section(path, section, data[section], sources)

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
        l2=figure("cache", "l2"),
        link_bandwidth=figure("link", "bandwidth"),
        link_domain=count("link", "domain"),
        nic_bandwidth=figure("nic", "bandwidth"),
        sm_count=count("sm", "count"),
        clock=figure("sm", "clock"),
        tdp=figure("power", "tdp"),
        note=text.get("note", ""),
        sources=sources,
        aliases=tuple(_text(path, "aliases", alias) for alias in aliases),
        calibration=_calibration(path, data.get("calibration", {}), sources),
    )


def _calibration(path: Path, table: Any, sources: dict[str, str]) -> dict[str, dict[str, Constant]]:
    """`[calibration]`: the `data` and `date` of the fit, and a table of constants a family.

    Which constants a family has is the time model's to say; here only their form is checked.
    """
    if not isinstance(table, dict):
        raise _fault(path, "calibration", "a table is needed")
    for key in ("data", "date") if table else ():
        if key not in table:
            raise _fault(path, f"calibration.{key}", "missing")
        _text(path, f"calibration.{key}", table[key])
    return {
        family: _constants(path, f"calibration.{family}", constants, sources)
        for family, constants in table.items()
        if family not in ("data", "date")
    }


def _constants(path: Path, key: str, table: Any, sources: dict[str, str]) -> dict[str, Constant]:
    if not isinstance(table, dict):
        raise _fault(path, key, "a table is needed")
    found = {}
    for name, entry in table.items():
        dotted = f"{key}.{name}"
        if not isinstance(entry, dict):
            what = 'write it as { value = ..., spread = ..., source = "..." }'
            raise _fault(path, dotted, what)
        for part in ("value", "spread", "source"):
            if part not in entry:
                raise _fault(path, f"{dotted}.{part}", "missing")
        for part in entry:
            if part not in ("value", "spread", "source"):
                known = "known: source, spread, value"
                raise _fault(path, f"{dotted}.{part}", f"unknown key; {known}")
        for part in ("value", "spread"):
            number = entry[part]
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise _fault(path, f"{dotted}.{part}", f"a number is needed, not {number!r}")
            if not math.isfinite(number) or number < 0:
                raise _fault(path, f"{dotted}.{part}", f"at least 0 is needed, not {number!r}")
        sources[dotted] = _text(path, f"{dotted}.source", entry["source"])
        found[name] = Constant(float(entry["value"]), float(entry["spread"]), sources[dotted])
    return found


def _section(path: Path, section: str, table: Any, sources: dict[str, str]) -> dict[str, float]:
    if not isinstance(table, dict):
        raise _fault(path, section, "a table is needed")
    required, optional = _SECTIONS[section]
    for key in table:
        if key not in (*required, *optional):
            known = did_you_mean(key, (*required, *optional))
            raise _fault(path, f"{section}.{key}", f"unknown key; {known}")
    for key in required:
        if key not in table:
            raise _fault(path, f"{section}.{key}", "missing")
    if not table:
        raise _fault(path, section, f"at least one of {', '.join(optional)} is needed")
    values = {}
    for key, entry in table.items():
        dotted = f"{section}.{key}"
        values[key], sources[dotted] = _figure(path, dotted, entry)
    return values


def _figure(path: Path, key: str, entry: Any) -> tuple[float, str]:
    """Value and source of `key = { value = ..., source = "..." }`."""
    if not isinstance(entry, dict):
        raise _fault(path, key, 'write it as { value = ..., source = "..." }')
    for part in entry:
        if part not in ("value", "source"):
            raise _fault(path, f"{key}.{part}", "unknown key; known: source, value")
    for part in ("value", "source"):
        if part not in entry:
            raise _fault(path, f"{key}.{part}", "missing")
    value, source = entry["value"], _text(path, f"{key}.source", entry["source"])
    # TOML's true is an int to Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _fault(path, f"{key}.value", f"a number is needed, not {value!r}")
    if key in _COUNTS and not isinstance(value, int):
        raise _fault(path, f"{key}.value", f"a whole number is needed, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number <= 0:
        raise _fault(path, f"{key}.value", f"a positive number is needed, not {value!r}")
    if key not in _SMALL and number < _FLOOR:
        small = f"{value!r} is too small; write FLOP/s, bytes, B/s or Hz (989e12, not 989)"
        raise _fault(path, f"{key}.value", small)
    return number, source


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _fault(path, key, f"text is needed, not {value!r}")
    return value
