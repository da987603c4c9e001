"""What a mask lets a query see, as a pattern that a fused kernel knows, instead of a matrix.

transformers describes a mask as a function of indices and builds a [B, 1, Q, K] matrix from it.
Fused kernels take causality and windows as arguments. Our mask function recognises these cases by
the functions that transformers composed, and hands the model a stand-in of the same shape, one
element of memory, whose pattern the attention function finds again. Masks of any other make are
built as transformers' own `sdpa` would.

Padding is not modelled: programs make inputs without any, so the 2-D mask is all ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from transformers.masking_utils import sdpa_mask


class Pattern(NamedTuple):
    """Keys that the query at position p sees, of those there are.

    Attributes:
        left: keys before p; None is all.
        right: keys after p; None is all.
        chunk: only keys of the same chunk of so many; None is no chunks.
    """

    left: int | None = None
    right: int | None = None
    chunk: int | None = None


CAUSAL = Pattern(right=0)
FULL = Pattern()

_patterns: Any = WeakIdKeyDictionary()  # untyped storage of a stand-in -> Pattern


def pattern_of(mask: Tensor) -> Pattern | None:
    """The pattern of a stand-in or of a slice of one; None for a real mask."""
    found: Pattern | None = _patterns.get(mask.untyped_storage())
    return found


def tracer_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: Any = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """Transformers' mask interface: None where the attention's own causality is enough.

    A stand-in where a kernel has an argument for the pattern; else the boolean [B, 1, Q, K] mask.
    """
    pattern = read_pattern(mask_function)
    skip = (pattern == CAUSAL and allow_is_causal_skip) or (
        pattern == FULL and allow_is_bidirectional_skip
    )
    if pattern is not None and pattern not in (CAUSAL, FULL):
        reach = pattern.chunk if pattern.chunk is not None else (pattern.left or 0) + 1
        if kv_length <= reach or q_length == 1:
            # The window holds everything; of a ring buffer, a new token sees all there is.
            skip = allow_is_causal_skip or allow_is_bidirectional_skip
    if skip:
        return None
    if pattern is None or pattern in (CAUSAL, FULL):
        mask: Tensor | None = sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, None, local_size,
            allow_is_causal_skip=False, allow_is_bidirectional_skip=False, use_vmap=use_vmap,
            device=device,
        )  # fmt: skip
        return mask
    stand_in = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=device)
    _patterns[stand_in.untyped_storage()] = pattern
    return stand_in.expand(batch_size, 1, q_length, kv_length)


def read_pattern(mask_function: Any) -> Pattern | None:
    """The pattern of a function that `transformers.masking_utils` composed; None if unknown."""
    left: int | None = None
    right: int | None = None
    chunk: int | None = None
    for part in _parts(mask_function):
        kind = part.__qualname__.split(".")[0]
        held = _closure(part)
        if kind == "causal_mask_function":
            right = 0
        elif kind == "sliding_window_overlay":
            left = held["sliding_window"] - 1
        elif kind == "sliding_window_bidirectional_overlay":
            left = right = held["sliding_window"]
        elif kind == "chunked_overlay":
            chunk = held["chunk_size"]
        elif kind != "bidirectional_mask_function":
            return None
    return Pattern(left, right, chunk)


def _parts(function: Any) -> Iterator[Callable[..., Any]]:
    """The functions whose intersection this is."""
    if function.__qualname__.split(".")[0] == "and_masks":
        for part in _closure(function)["mask_functions"]:
            yield from _parts(part)
    else:
        yield function


def _closure(function: Any) -> dict[str, Any]:
    names = function.__code__.co_freevars
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return dict(zip(names, cells, strict=True))
