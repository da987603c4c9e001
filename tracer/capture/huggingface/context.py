"""Context parallelism of a transformers model: its own layers over two chunks of every sequence.

Position ids say where a rank's tokens are; keys and values of all ranks are gathered in the
attention function, one message a layer. Only attention may look at other tokens, and only as plain
causality: windows, recurrent states and biases would see the tokens of this rank as neighbours, so
models that have them are refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ..inputspec import InputSpec
from . import cache as caches

_thread = threading.local()  # .group, .calls: the group in force and attention calls in it


class Positions(InputSpec):
    """The `position_ids` of this rank's tokens."""

    def tensor(self, batch: int, seq: int, context: int, device: str) -> Tensor:
        """INT64 [B, S / CP]."""
        from tracer.models.context_parallel import positions

        found: Tensor = positions(seq, group_in_force(), dtype=torch.long, device=device)
        return found.expand(batch, -1)


POSITIONS = Positions("position_ids", "position_ids", torch.int64, ("B", "S"))


@contextlib.contextmanager
def spread_over(group: Any) -> Iterator[None]:
    """Attention of this thread looks at the tokens of all ranks of `group`."""
    _thread.group, _thread.calls = group, 0
    try:
        yield
    finally:
        del _thread.group


def group_in_force() -> Any:
    """The ranks that share sequences; None outside of `spread_over`."""
    return getattr(_thread, "group", None)


def attention_calls() -> int:
    """How often attention gathered keys since `spread_over` began."""
    calls: int = _thread.calls
    return calls


def refuse(program: Any, parameters: Any, seq: int, cp: int) -> None:
    """Refuse a model in which anything but plain causal attention looks at other tokens.

    Raises:
        UserError: says what it is.
    """
    start = f"{program.name}: cp={cp}: "
    if not program.layers:
        raise UserError(start + "only a causal language model of like layers is cut by sequences")
    cache = caches.in_place_cache(program.config, seq, 0)
    layers = getattr(cache, "layers", ())
    plain = [type(x) is caches.InPlaceLayer and not x.is_sliding for x in layers]
    if not plain or not all(plain):
        raise UserError(
            start + "layers with windows, recurrent states or caches of their own are not traced"
        )
    if "position_ids" not in parameters:
        raise UserError(start + "the model takes no position_ids, so it cannot be told its tokens")
    if program.longest is not None and seq > program.longest:
        raise UserError(f"{program.name} has learned positions for {program.longest} tokens")


def attention_across(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, *, plain: bool
) -> Tensor:
    """[B, H, s, D] of this rank over the keys of all ranks, [B, s, H, Dv].

    `plain`: nothing but causality was asked for.

    Raises:
        UserError: it is not so.
    """
    from tracer.models.context_parallel import all_tokens, causal_attention

    group = group_in_force()
    if not plain or query.shape[2] != key.shape[2]:
        raise UserError(
            f"cp={group.size}: this model's attention has a mask, a window, a bias or dropout; "
            "plain causal attention is traced"
        )
    _thread.calls += 1
    both = torch.cat((key, value), dim=-1).transpose(1, 2)
    keys, values = (
        x.transpose(1, 2)
        for x in all_tokens(both, group).split([key.shape[-1], value.shape[-1]], dim=-1)
    )
    out: Tensor = causal_attention(query, keys, values, scale, group)
    return out.transpose(1, 2).contiguous()
