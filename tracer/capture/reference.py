"""The bundled DeepSeek-V3 family as a program: on meta, for serving and for training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from .grounds import META
from .loss import next_token_loss
from .program import DECODE, PREFILL, TRAINING, Run, no_state


class ReferenceProgram:
    """`tracer.models` under the `Program` protocol.

    Decode runs the absorbed form of MLA over the latent cache, prefill and training the naive form.
    `last_logits`: a prefill makes those of the last token of every sequence alone.
    """

    last_logits = False
    phases = (TRAINING, PREFILL, DECODE)
    grounds = (META,)
    longest = None
    shortest = 1

    def __init__(
        self, name: str, config: Mapping[str, Any], dtype: str = "bf16", layers: int | None = None
    ) -> None:
        from tracer.models import Config

        self.name = name
        self.cures: list[str] = []
        self.compiles = False
        self.source = "reference model (tracer.models)"
        raw = copy.deepcopy(dict(config))
        if layers is not None:
            if layers > raw.get("num_hidden_layers", layers):
                raise UserError(f"--layers {layers}: {name} has {raw['num_hidden_layers']} layers")
            raw["num_hidden_layers"] = layers
            raw["first_k_dense_replace"] = min(layers, raw.get("first_k_dense_replace", 0))
        self.raw: Mapping[str, Any] = raw
        self.config = Config.from_hf(raw, name)
        self.dtype = dtype
        self.layers = self.config.num_hidden_layers
        self._modules: dict[bool, nn.Module] = {}

    def module(self, phase: str, ground: str = META) -> nn.Module:
        """The model on meta; in FP8, training keeps BF16 weights and serving the released ones."""
        from tracer.models import build

        training = phase == TRAINING
        if training not in self._modules:
            model = build(self.config, precision=self.dtype, training=training, device="meta")
            if not training:
                model.prepare_decode()
            self._modules[training] = model
        return self._modules[training]

    def prepare(self, phase: str, ground: str, batch: int, seq: int, context: int) -> Run:
        """[B, S] token ids, and but for training the latents of every layer."""
        from tracer.models import KVCache

        module = self.module(phase)
        ids = torch.zeros(batch, 1 if phase == DECODE else seq, dtype=torch.long, device="meta")
        if phase == TRAINING:
            targets = torch.zeros_like(ids)
            return Run(
                lambda: module(ids, None), lambda logits: next_token_loss(logits, targets),
                no_state, batch, seq, context,
            )  # fmt: skip
        # The new token is the last of the `context` keys: the cache holds the others.
        capacity, filled = (context, context - 1) if phase == DECODE else (seq, 0)
        cache = KVCache(self.config, batch, capacity, device="meta", length=filled)
        return Run(
            lambda: module(ids, cache, "last" if self.last_logits else "all"),
            lambda out: out.sum(), cache.latents.values,
            batch, seq, context,
        )  # fmt: skip

    def adapt(self, error: Exception) -> bool:
        """Nothing to change: it runs."""
        return False
