"""What can be done about an error that a transformers model raises while it is traced."""

from __future__ import annotations

from typing import NamedTuple

from .attention import NeedsMask
from .config import first_line

OURS = "tracer"  # of our attention and mask functions in transformers' registries


class Setup(NamedTuple):
    """How a model is built and called.

    Attributes:
        dtype: "bf16" or "fp32".
        attention: implementation, by transformers' name.
        experts: likewise.
        own_cache: whether it gets a cache of its own class and not one of ours.
        media: whether it is given images or audio beside text.
    """

    dtype: str
    attention: str
    experts: str
    own_cache: bool
    media: bool


class Cure(NamedTuple):
    """Another setup, what to say of it ("" for nothing), and whether the model is built again."""

    setup: Setup
    note: str
    rebuilds: bool = True


def cure_of(error: Exception, setup: Setup) -> Cure | None:
    """The most faithful change that may help; None if all were made."""
    text = str(error)
    if isinstance(error, NeedsMask):
        return Cure(setup._replace(attention="sdpa"), _SPARSE)
    if setup.dtype == "bf16" and any(words in text for words in _MIXED):
        return Cure(setup._replace(dtype="fp32"), _MIXED_NOTE)
    if "mat_a stride" in text and setup.experts == "grouped_mm":
        return Cure(setup._replace(experts="eager"), _ALIGN_NOTE)
    if not setup.own_cache and isinstance(error, IndexError):
        # More layers ask for a cache than the config has.
        return Cure(setup._replace(own_cache=True), "", rebuilds=False)
    if setup.media:
        note = f"text alone, without its images or audio ({first_line(error)})"
        return Cure(setup._replace(media=False), note, rebuilds=False)
    if setup.attention == OURS and isinstance(error, (AttributeError, TypeError)):
        return Cure(setup._replace(attention="sdpa"), _MASK_NOTE)
    return None


_MIXED = (
    "scalar type",
    "same dtype",
    "Unsupported dtype BFloat16",
)  # of torch's complaints about operands of two precisions
_MIXED_NOTE = "in fp32: the model mixes precisions when it is built in bf16"
_MASK_NOTE = "attention as transformers' sdpa: the model looks into its mask"
_ALIGN_NOTE = "experts one by one: their width is no multiple of 16 bytes, as grouped matmuls need"
_SPARSE = (
    "attention over chosen keys is computed over all of them and masked, as transformers' sdpa does"
)
