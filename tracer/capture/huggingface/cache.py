"""KV caches that are written in place, as servers' caches are.

Transformers' own layers concatenate: every step would copy the whole cache. The layers here hold
`capacity` tokens; `filled` of them count as computed before. Recurrent states of linear attention
are transformers' own, which are updated in place already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)


class InPlaceLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """Keys and values of one layer in tensors of `capacity` tokens, allocated on first use.

    `filled` tokens count as computed before; they are what a decode step attends. A sliding layer
    is a ring: when it is full, new tokens replace the oldest.
    """

    is_sliding = False
    is_compileable = False

    def __init__(self, capacity: int, filled: int, sliding: bool = False) -> None:
        super().__init__()
        self.capacity = capacity
        self.fill(filled)
        self.is_sliding = sliding

    def fill(self, tokens: int) -> None:
        """Say that so many tokens were computed before."""
        self.length = tokens
        self.place = tokens  # where the next one goes, modulo the capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate [B, H, capacity, D] for keys and for values."""
        if not self.is_sliding:  # models that put a prefix before the text write more than asked
            self.capacity = max(self.capacity, self.length + key_states.shape[2])
        self.dtype, self.device = key_states.dtype, key_states.device
        for name, states in (("keys", key_states), ("values", value_states)):
            batch, heads, _, size = states.shape
            setattr(self, name, states.new_empty(batch, heads, self.capacity, size))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens and return what they may attend."""
        if not self.is_initialized:
            InPlaceLayer.lazy_initialization(self, key_states, value_states)
        new = key_states.shape[2]
        before, self.length = self.length, self.length + new
        kept = min(new, self.capacity)
        start = self.place % self.capacity
        first = min(kept, self.capacity - start)  # what is left goes to the ring's beginning
        self.place = start + kept
        assert self.keys is not None and self.values is not None
        last = key_states[:, :, new - kept :], value_states[:, :, new - kept :]
        for held, states in zip((self.keys, self.values), last, strict=True):
            held[:, :, start : start + first] = states[:, :, :first]
            if first < kept:
                held[:, :, : kept - first] = states[:, :, first:]
        if self.is_sliding and before == 0:
            return key_states, value_states  # a prefill longer than the window sees all of itself
        visible = min(self.length, self.capacity)
        return self.keys[:, :, :visible], self.values[:, :, :visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset that a mask would have: what `update` returns for so many queries."""
        if self.is_sliding and self.length > 0:
            return min(self.length + query_length, self.capacity), 0
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.length

    def get_max_length(self) -> int:
        """Tokens that fit."""
        return self.capacity


class InPlaceHybrid(LinearAttentionLayer, InPlaceLayer):  # type: ignore[misc]
    """A layer with attention beside a recurrence: its keys in place, its states transformers'."""

    def __init__(self, capacity: int, filled: int, sliding: bool, states: int) -> None:
        InPlaceLayer.__init__(self, capacity, filled, sliding)
        LinearAttentionLayer.__init__(self, number_of_states=states)


def in_place_cache(config: Any, capacity: int, filled: int) -> Any:
    """A cache for `config`'s decoder; layers of kinds unknown here stay transformers' own.

    None where transformers itself can make no cache from the config.
    """
    try:
        cache = DynamicCache(config=config)
    except (AttributeError, ValueError, TypeError, KeyError):
        return None
    for index, layer in enumerate(cache.layers):
        kind = type(layer)
        if kind is DynamicLayer:
            cache.layers[index] = InPlaceLayer(capacity, filled)
        elif kind is DynamicSlidingWindowLayer:
            window = min(capacity, layer.sliding_window)
            cache.layers[index] = InPlaceLayer(window, filled, sliding=True)
        elif kind is LinearAttentionAndFullAttentionLayer:
            states = layer.number_of_states
            cache.layers[index] = InPlaceHybrid(capacity, filled, False, states)
        elif kind is LinearAttentionAndSlidingWindowAttentionLayer:
            window = min(capacity, layer.sliding_window)
            cache.layers[index] = InPlaceHybrid(window, filled, True, layer.number_of_states)
    return cache


def encoder_decoder_cache(config: Any, capacity: int, filled: int) -> Any:
    """Self-attention in place; cross-attention keys are written once, by the first call."""
    own = in_place_cache(config, capacity, filled) or DynamicCache()
    return EncoderDecoderCache(own, DynamicCache())


def needs_warming(cache: Any) -> str:
    """What must run before a decode step: "" nothing, "short" a few tokens, "full" the context.

    States of a recurrence have to exist, and their size does not depend on how many tokens made
    them. Layers of a kind unknown here may hold something for every token.
    """
    need = ""
    for layer in getattr(cache, "layers", ()):
        if isinstance(layer, LinearAttentionLayer):
            need = need or "short"
        elif not isinstance(layer, InPlaceLayer) and type(layer).__name__ != "DummyLayer":
            return "full"
    return need


def set_filled(cache: Any, filled: int) -> None:
    """Say that the layers written in place hold `filled` tokens."""
    for layer in getattr(getattr(cache, "self_attention_cache", cache), "layers", ()):
        if isinstance(layer, InPlaceLayer):
            layer.fill(filled)


def tensors_of(tree: Any, _seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor that a cache holds now, whatever its class."""
    seen = set() if _seen is None else _seen
    if id(tree) in seen or tree is None:
        return
    seen.add(id(tree))
    if isinstance(tree, Tensor):
        if tree.numel():
            yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_of(value, seen)
    elif isinstance(tree, (list, tuple)):
        yield from _each(tree, seen)
    elif type(tree).__module__.startswith(("transformers", __package__)) and vars(tree):
        yield from _each(vars(tree).values(), seen)


def _each(items: Iterable[Any], seen: set[int]) -> Iterator[Tensor]:
    for item in items:
        yield from tensors_of(item, seen)


def cache_of(out: Any) -> Any:
    """The cache in a model's output, whatever it is called."""
    for name in ("past_key_values", "cache_params", "state", "mems"):
        found = getattr(out, name, None)
        if found is not None:
            return found
    return None
