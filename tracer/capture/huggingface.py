"""Any Hugging Face causal language model as a program, on plain meta.

transformers builds masks by looking at data, which meta tensors do not have, and repeats K/V to
all heads when it sees a tracer. Both hide what a GPU runs. So an attention and a mask function of
our own are registered through transformers' interfaces: no mask is built, and causality, GQA and
scale reach one `scaled_dot_product_attention` call, which the capture sends to a fused op.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
)
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from ..errors import UserError
from .attention import windowed_attention
from .program import DECODE, PREFILL, TRAINING, unknown_model

_NAME = "tracer"  # of our attention and mask functions in transformers' registries


class HuggingFaceProgram:
    """`AutoModelForCausalLM.from_config` on meta in BF16 under the `Program` protocol.

    Raises:
        UserError: no config under this name, a class that does not build on meta, or `dtype` other
            than "bf16" (`from_config` ignores a checkpoint's quantisation).
    """

    phases = (TRAINING, PREFILL, DECODE)

    def __init__(
        self, name: str, dtype: str = "bf16", layers: int | None = None, remote_code: bool = False
    ) -> None:
        if dtype != "bf16":
            raise UserError(
                f"--dtype {dtype}: {name} is not of the bundled DeepSeek family, "
                "and transformers builds it from its config in bf16 only"
            )
        self.name = name
        with _quiet():
            config = _read_config(name, remote_code)
            if layers is not None:
                config.num_hidden_layers = layers
            self.config = config
            self._model: Any = _build(name, config, remote_code)
        self.source = f"transformers {type(self._model).__name__}"
        self.vocabulary = self.config.get_text_config().vocab_size
        self.layers = self.config.get_text_config().num_hidden_layers

    def module(self, phase: str) -> nn.Module:
        """One module for all phases."""
        model: nn.Module = self._model
        return model

    def new_cache(self, phase: str, batch: int, capacity: int, filled: int) -> Any:
        """Transformers' cache with layers that are written in place, as servers' caches are.

        Its own layers concatenate: every step would copy the whole cache.
        """
        cache = DynamicCache(config=self.config)
        for index, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer:
                cache.layers[index] = _InPlaceLayer(capacity, filled)
            elif type(layer) is DynamicSlidingWindowLayer:
                window = min(capacity, layer.sliding_window)
                cache.layers[index] = _InPlaceLayer(window, filled, sliding=True)
        return cache

    def cache_tensors(self, cache: Any) -> Iterable[Tensor]:
        """Keys and values (or states) that the cache's layers hold now."""
        for layer in getattr(cache, "layers", ()):
            for value in vars(layer).values():
                if isinstance(value, Tensor) and value.numel():
                    yield value

    def logits(self, phase: str, ids: Tensor, cache: Any) -> Tensor:
        """[B, S] token ids to [B, S, V] logits."""
        with _quiet():
            output = self._call(ids, cache)
        logits: Tensor = output.logits
        return logits

    def _call(self, ids: Tensor, cache: Any) -> Any:
        # An all-ones mask keeps transformers from looking for packed sequences in the data.
        length = ids.shape[1] + (cache.get_seq_length() if cache is not None else 0)
        mask = torch.ones(ids.shape[0], length, dtype=torch.long, device="meta")
        return self._model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None
        )


def _read_config(name: str, remote_code: bool) -> Any:
    offline = not (Path(name).exists() or _hub_answers())
    try:
        return AutoConfig.from_pretrained(
            name, trust_remote_code=remote_code, local_files_only=offline
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, hub errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "no hub can be reached, and it is not in the local cache" if offline else reason
        raise unknown_model(name, f"transformers cannot read a config for it ({where})") from error


def _hub_answers() -> bool:
    """Whether a connection to the hub can be opened; its client would retry for half a minute."""
    if HF_HUB_OFFLINE:
        return False
    url = urlsplit(ENDPOINT)
    if getproxies().get(url.scheme):
        return True
    try:
        with socket.create_connection((url.hostname, url.port or 443), timeout=5):
            return True
    except OSError:
        return False


def _build(name: str, config: Any, remote_code: bool) -> nn.Module:
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config,
                attn_implementation=_NAME,
                dtype=torch.bfloat16,
                trust_remote_code=remote_code,
            )
    except Exception as error:
        raise UserError(
            f"{name}: transformers cannot build a causal language model from its config "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]})"
        ) from error
    if getattr(type(model), "_can_set_experts_implementation", lambda: False)():
        model.set_experts_implementation("grouped_mm")
    built: nn.Module = model
    return built


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any,
    scaling: float | None = None, dropout: float = 0.0, is_causal: bool | None = None,
    sliding_window: int | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Transformers' attention signature over one fused op; [B,H,S,D] in, [B,S,H,D] out."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = bool(causal) and query.shape[2] > 1  # a single new token sees every key
    if causal and sliding_window is not None and sliding_window < key.shape[2]:
        out = windowed_attention(query, key, value, sliding_window, scaling)
    else:
        out = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=dropout,
            scale=scaling,
            is_causal=causal,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return out.transpose(1, 2).contiguous(), None


class _InPlaceLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """Keys and values of one layer in tensors of `capacity` tokens, allocated on first use.

    `filled` tokens count as computed before; they are what a decode step attends. A sliding layer
    is a ring: when it is full, new tokens replace the oldest.
    """

    def __init__(self, capacity: int, filled: int, sliding: bool = False) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = filled
        self.is_sliding = sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate [B, H, capacity, D] for keys and for values."""
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
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        before, self.length = self.length, self.length + new
        kept = min(new, self.capacity)
        start = before % self.capacity if self.is_sliding else before
        start = min(start, self.capacity - kept)
        assert self.keys is not None and self.values is not None
        for held, states in ((self.keys, key_states), (self.values, value_states)):
            held[:, :, start : start + kept] = states[:, :, new - kept :]
        if self.is_sliding and before == 0:
            return key_states, value_states  # a prefill longer than the window sees all of itself
        visible = min(self.length, self.capacity)
        return self.keys[:, :, :visible], self.values[:, :, :visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset that a mask would have."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.length

    def get_max_length(self) -> int:
        """Tokens that fit."""
        return self.capacity


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Transformers logs advice about kernels and loss functions that does not concern a trace."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
