"""Python's garbage collector, away or told to come seldom while many small objects are made."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_SELDOM = (50_000, 20, 50)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """None of what this block makes is garbage, so nobody needs to look; not for long blocks."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def seldom() -> Iterator[None]:
    """A block that makes many small records which live on and refer to nothing in circles.

    The collector's defaults walk them again after every few hundred new ones, which took a fifth
    of a whole report's CPU time. What circles there are, it still finds, later.
    """
    before = gc.get_threshold()
    gc.set_threshold(*_SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
