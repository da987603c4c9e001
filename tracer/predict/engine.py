"""What serving engines ask of a model otherwise than the program as it is written."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..capture.program import Program


def as_served(program: Program, engine: str) -> Program:
    """The program that `Serving.engine` runs: of a prompt, only the last token has logits."""
    known: Any = program  # programs are hashable, which their protocol does not say
    return _with_last_logits(known) if engine == "fused" else program


@functools.lru_cache(maxsize=16)
def _with_last_logits(program: Any) -> Program:
    found: Program = program
    if hasattr(program, "last_logits"):  # a module of one's own returns what it returns
        twin: Any = copy.copy(program)
        twin.last_logits = True
        found = twin
    return found


def prompt_notes(program: Program, phase: str) -> list[str]:
    """A line for the report."""
    last = phase == "prefill" and getattr(program, "last_logits", False)
    return ["logits of the last token of every prompt alone, as engines make them"] if last else []
