"""Plans as words: "tp=4 ep=32 dp=8 sp zero=1", or "tp4,pp16,fsdp"."""

from __future__ import annotations

import re
from typing import Any

from ..errors import UserError, did_you_mean

_ALIASES = {
    "sp": "sequence_parallel", "adp": "attention_dp", "mbs": "micro_batch",
    "vpp": "chunks", "redundant": "redundant_experts",
}  # fmt: skip


def values_in(text: str, kinds: dict[str, type]) -> dict[str, Any]:
    """The values that `text` gives to names of these `kinds`; commas are spaces.

    Raises:
        UserError: a word is not understood, or a name is given twice.
    """
    values: dict[str, Any] = {}
    for word in text.replace(",", " ").split():
        name, value = _split(word.lower(), kinds)
        if name not in kinds:
            known = [*kinds, *_ALIASES, "fsdp"]
            raise UserError(f"plan {text!r}: {word!r}: {did_you_mean(name, known)}")
        if name in values:
            raise UserError(f"plan {text!r}: {name} is given twice")
        values[name] = _read(text, word, kinds[name], value)
    return values


def _split(word: str, kinds: dict[str, type]) -> tuple[str, str | None]:
    """`tp=4`, `tp4` and `sp` as name and value."""
    if word == "fsdp":
        return "zero", "3"
    name, equals, value = word.partition("=")
    name = _ALIASES.get(name, name)
    if equals:
        return name, value
    short = re.fullmatch(r"([a-z]+)(\d+)", word)
    if short and kinds.get(_ALIASES.get(short[1], short[1])) is int:
        return _ALIASES.get(short[1], short[1]), short[2]
    return name, None


def _read(text: str, word: str, kind: type, value: str | None) -> Any:
    if kind is bool:
        if value in (None, "1", "true", "yes", "on"):
            return True
        if value in ("0", "false", "no", "off"):
            return False
        raise UserError(f"plan {text!r}: {word!r}: say true or false")
    if not value:
        raise UserError(f"plan {text!r}: {word!r} has no value")
    if kind is int:
        if not re.fullmatch(r"\d+", value):
            raise UserError(f"plan {text!r}: {word!r}: give a whole number")
        return int(value)
    return value
