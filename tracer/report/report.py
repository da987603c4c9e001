"""What the writers turn into files: one record, whatever the report is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .blocks import Section


@dataclass(frozen=True)
class Report:
    """A titled document with its data twins; text has the marks of `blocks.Text`.

    Attributes:
        title: above it.
        lead: one line on what it is about.
        command: that made it.
        sections: in order of reading.
        document: `report.json`, beside its tables.
        files: further files by name, each with a function that makes its text.
        explorer: makes the data of the page's explorer; None: the page has none.
    """

    title: str
    lead: str
    command: str
    sections: tuple[Section, ...]
    document: Mapping[str, Any]
    files: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    explorer: Callable[[], Mapping[str, Any]] | None = None
