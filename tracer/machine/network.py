"""What a step sends between chips, in closed form: bytes one way, and how many exchanges."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..algebra import Value


class Network(NamedTuple):
    """Exchanges among `ranks` chips, one after another and hidden behind nothing.

    `moved` is what one chip sends in all of them; each waits `exchange` seconds besides. They go
    over the scale-up link while the ranks are in one domain, over the NIC beyond.
    """

    moved: Value
    exchanges: int
    ranks: Any
