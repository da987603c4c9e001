"""Strict TOML of a fixed form: what chips and clusters share.

A file has texts at the top and sections of figures, each `{ value = ..., source = "..." }`. A
mistyped, unsourced or senseless figure is an error that names the file and the key, not a guess.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracer.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Format:
    """What one kind of file may hold.

    Attributes:
        error: raised for every fault.
        texts: required, then optional texts at the top.
        sections: section -> (required keys, optional keys). One that is there must be complete.
        required: sections that must be there.
        others: further keys at the top, which the caller reads itself.
        counts: dotted keys of whole numbers.
        ranges: dotted key -> (least, most, what to write instead); both ends allowed.
        floor: the same for every figure without a range of its own.
    """

    error: type[UserError]
    texts: tuple[tuple[str, ...], tuple[str, ...]]
    sections: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    required: tuple[str, ...]
    others: tuple[str, ...]
    counts: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float, str]]
    floor: tuple[float, str]

    def fault(self, path: Path, key: str, what: str) -> UserError:
        """The error for one key of one file, on one line whatever the file has in it."""
        return self.error(" ".join(f"{path}: {key}: {what}".split()))

    def parse(self, path: Path) -> dict[str, Any]:
        """The file's tables, their keys known and the required ones there."""
        data = self._load(path)
        known = [*self.texts[0], *self.texts[1], *self.others, *self.sections]
        for key in data:
            if key not in known:
                raise self.fault(path, key, f"unknown key; {did_you_mean(key, known)}")
        for key in (*self.texts[0], *self.required):
            if key not in data:
                raise self.fault(path, key, "missing")
        return data

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            text = path.read_bytes().decode()
        except OSError as error:
            raise self.error(f"{path}: {error.strerror or 'cannot be read'}") from None
        except UnicodeDecodeError:
            raise self.error(f"{path}: not UTF-8 text") from None
        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            # ValueError is tomllib's own error and Python's for an integer of thousands of digits.
            # tomllib gives the line of a key that is there twice, but not the key.
            found = re.search(r"at line (\d+)", str(error))
            line = text.splitlines()[int(found[1]) - 1] if found else ""
            key = line.split("=")[0].strip()
            raise self.fault(path, key, str(error)) from None

    def all_texts(self, path: Path, data: Mapping[str, Any]) -> dict[str, str]:
        """The texts that the file has."""
        names = (*self.texts[0], *self.texts[1])
        return {name: self.text(path, name, data[name]) for name in names if name in data}

    def aliases(self, path: Path, data: Mapping[str, Any]) -> tuple[str, ...]:
        """Further names of what the file describes."""
        given = data.get("aliases", [])
        if not isinstance(given, list):
            raise self.fault(path, "aliases", "a list of names is needed")
        return tuple(self.text(path, "aliases", alias) for alias in given)

    def figures(
        self, path: Path, data: Mapping[str, Any]
    ) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
        """Values by section and key, and sources by dotted key."""
        sources: dict[str, str] = {}
        values = {
            section: self._section(path, section, data[section], sources)
            for section in self.sections
            if section in data
        }
        return values, sources

    def _section(
        self, path: Path, section: str, table: Any, sources: dict[str, str]
    ) -> dict[str, float]:
        if not isinstance(table, dict):
            raise self.fault(path, section, "a table is needed")
        required, optional = self.sections[section]
        for key in table:
            if key not in (*required, *optional):
                known = did_you_mean(key, (*required, *optional))
                raise self.fault(path, f"{section}.{key}", f"unknown key; {known}")
        for key in required:
            if key not in table:
                raise self.fault(path, f"{section}.{key}", "missing")
        if not table:
            raise self.fault(path, section, f"at least one of {', '.join(optional)} is needed")
        values = {}
        for key, entry in table.items():
            dotted = f"{section}.{key}"
            values[key], sources[dotted] = self._figure(path, dotted, entry)
        return values

    def _figure(self, path: Path, key: str, entry: Any) -> tuple[float, str]:
        """Value and source of `key = { value = ..., source = "..." }`."""
        if not isinstance(entry, dict):
            raise self.fault(path, key, 'write it as { value = ..., source = "..." }')
        for part in entry:
            if part not in ("value", "source"):
                raise self.fault(path, f"{key}.{part}", "unknown key; known: source, value")
        for part in ("value", "source"):
            if part not in entry:
                raise self.fault(path, f"{key}.{part}", "missing")
        value, source = entry["value"], self.text(path, f"{key}.source", entry["source"])
        # TOML's true is an int to Python.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fault(path, f"{key}.value", f"a number is needed, not {value!r}")
        if key in self.counts and not isinstance(value, int):
            raise self.fault(path, f"{key}.value", f"a whole number is needed, not {value!r}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number <= 0:
            raise self.fault(path, f"{key}.value", f"a positive number is needed, not {value!r}")
        low, high, instead = self.ranges.get(key, (self.floor[0], math.inf, self.floor[1]))
        if not low <= number <= high:
            side = "small" if number < low else "large"
            raise self.fault(path, f"{key}.value", f"{value!r} is too {side}; {instead}")
        return number, source

    def text(self, path: Path, key: str, value: Any) -> str:
        """A text that says something."""
        if not isinstance(value, str) or not value.strip():
            raise self.fault(path, key, f"text is needed, not {value!r}")
        return value


def fold(name: str) -> str:
    """A name without case and separators."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def names(items: Mapping[str, Any], error: type[UserError]) -> dict[str, str]:
    """Folded id or alias -> id, of things with `id` and `aliases`.

    Raises:
        UserError: two files that claim one name, as `error`.
    """
    owner: dict[str, str] = {}
    for item in items.values():
        for key, name in [("id", item.id), *(("aliases", alias) for alias in item.aliases)]:
            first = owner.setdefault(fold(name), item.id)
            if first != item.id:
                raise error(f"{item.id}.toml: {key}: {name!r} is taken by {first}.toml")
    return owner


def read_all(
    directory: Path, read: Callable[[Path], Any], error: type[UserError]
) -> dict[str, Any]:
    """Every .toml file of a folder by id, their ids and aliases checked against one another.

    Raises:
        UserError: as `read`, or two files that claim one name, as `error`.
    """
    items = {path.stem: read(path) for path in sorted(directory.glob("*.toml"))}
    names(items, error)
    return items


def choose(given: str, items: Mapping[str, Any], error: type[UserError], kind: str) -> Any:
    """The item that goes by `given`; names match whatever their case and separators.

    Raises:
        UserError: no such name, as `error`, with the nearest ones.
    """
    found = names(items, error).get(fold(given))
    if found is None:
        raise error(f"no {kind} {given!r}; {did_you_mean(given, items)}")
    return items[found]
