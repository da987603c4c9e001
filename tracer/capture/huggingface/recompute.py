"""Transformers' own gradient checkpointing: what the backward computes again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ..modules import inside, running
from .config import quiet


def checkpoint_layers(model: Any, recompute: str) -> None:
    """Turn it on: "full" keeps a layer's input alone.

    "selective" keeps results of products, attention and collectives too. Routing runs again: models
    divide the chosen weights in place, and what is kept must not be written.
    """
    from tracer.models.recompute import selective

    kept = selective(again=("topk",)) if recompute == "selective" else _nothing
    options = {
        "use_reentrant": False, "preserve_rng_state": False, "context_fn": lambda: _contexts(kept)
    }  # fmt: skip
    with quiet():
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)


def _nothing() -> tuple[Any, Any]:
    return contextlib.nullcontext(), contextlib.nullcontext()


def _contexts(kept: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Around the forward, and around it when it runs again, which is not a call of the layer."""
    forward, again = kept()
    return forward, _as_call(running(), again)


@contextlib.contextmanager
def _as_call(layer: Any, again: Any) -> Iterator[None]:
    with inside(layer), again:
        yield
