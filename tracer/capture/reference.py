"""The bundled DeepSeek-V3 family as a program: on meta, for serving and for training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from .program import DECODE, PREFILL, TRAINING


class ReferenceProgram:
    """`tracer.models` under the `Program` protocol.

    Decode runs the absorbed form of MLA over the latent cache, prefill and training the naive form.
    """

    phases = (TRAINING, PREFILL, DECODE)

    def __init__(
        self, name: str, config: Mapping[str, Any], dtype: str = "bf16", layers: int | None = None
    ) -> None:
        from tracer.models import Config

        self.name = name
        self.source = "reference model (tracer.models)"
        raw = copy.deepcopy(dict(config))
        if layers is not None:
            raw["num_hidden_layers"] = layers
            raw["first_k_dense_replace"] = min(layers, raw.get("first_k_dense_replace", 0))
        self.config = Config.from_hf(raw, name)
        self.dtype = dtype
        self.vocabulary = self.config.vocab_size
        self.layers = self.config.num_hidden_layers
        self._modules: dict[bool, nn.Module] = {}

    def module(self, phase: str) -> nn.Module:
        """The model on meta; in FP8, training keeps BF16 weights and serving the released ones."""
        from tracer.models import build

        training = phase == TRAINING
        if training not in self._modules:
            model = build(self.config, precision=self.dtype, training=training, device="meta")
            if not training:
                model.prepare_decode()
            self._modules[training] = model
        return self._modules[training]

    def new_cache(self, phase: str, batch: int, capacity: int, filled: int) -> Any:
        """Latents of every layer, `filled` tokens of them taken as computed before."""
        from tracer.models import KVCache

        return KVCache(self.config, batch, capacity, device="meta", length=filled)

    def cache_tensors(self, cache: Any) -> Iterable[Tensor]:
        """One latent tensor a layer."""
        tensors: Iterable[Tensor] = cache.latents.values()
        return tensors

    def logits(self, phase: str, ids: Tensor, cache: Any) -> Tensor:
        """[B, S] token ids to [B, S, V] logits of every position."""
        out: Tensor = self.module(phase)(ids, cache)
        return out
