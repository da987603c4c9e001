"""The bundled DeepSeek-V3 family as a program: on meta, for serving and for training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .configs import why_no_mtp
from .grounds import META
from .loss import next_token_loss
from .program import DECODE, PREFILL, TRAINING, Run, no_state


class ReferenceProgram:
    """`tracer.models` under the `Program` protocol.

    Decode runs the absorbed form of MLA over the latent cache, prefill and training the naive form.
    `last_logits`: a prefill makes those of the last token of every sequence alone. With `mtp` it
    has its module of multi-token prediction too, and is trained, not served.
    """

    last_logits = False
    grounds = (META,)
    longest = None
    shortest = 1

    def __init__(
        self, name: str, config: Mapping[str, Any], dtype: str = "bf16", layers: int | None = None,
        mtp: bool = False,
    ) -> None:  # fmt: skip
        from tracer.models import Config

        self.name = name
        self.cures: list[str] = []
        self.compiles = False
        self.source = "reference model (tracer.models)" + (", with its MTP module" if mtp else "")
        raw = copy.deepcopy(dict(config))
        if layers is not None:
            if layers > raw.get("num_hidden_layers", layers):
                raise UserError(f"--layers {layers}: {name} has {raw['num_hidden_layers']} layers")
            raw["num_hidden_layers"] = layers
            raw["first_k_dense_replace"] = min(layers, raw.get("first_k_dense_replace", 0))
        self.raw: Mapping[str, Any] = raw
        self.config = Config.from_hf(raw, name)
        self.dtype = dtype
        self.mtp = mtp
        if mtp and (reason := why_no_mtp(self.config.num_nextn_predict_layers)):
            raise UserError(f"{name}: {reason}")
        self.phases = (TRAINING,) if mtp else (TRAINING, PREFILL, DECODE)
        self.layers = self.config.num_hidden_layers + mtp
        self._with_mtp: ReferenceProgram | None = None
        self._modules: dict[bool, nn.Module] = {}

    def with_mtp(self) -> ReferenceProgram:
        """The same with its MTP module, the same object every time.

        Raises:
            UserError: the model has none.
        """
        if self._with_mtp is None:
            self._with_mtp = ReferenceProgram(self.name, self.raw, self.dtype, mtp=True)
        return self._with_mtp

    def module(self, phase: str, ground: str = META) -> nn.Module:
        """The model on meta; in FP8, training keeps BF16 weights and serving the released ones."""
        from tracer.models import build

        training = phase == TRAINING
        if training not in self._modules:
            model = build(
                self.config, precision=self.dtype, training=training, mtp=self.mtp, device="meta"
            )
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
            if self.mtp:
                return Run(
                    lambda: module(ids, None, next_ids_BS=targets),
                    lambda both: two_tokens_loss(both, targets), no_state, batch, seq, context,
                )  # fmt: skip
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


def two_tokens_loss(logits: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """The loss of the next token and, weighted, that of the one after it."""
    from tracer.models.deepseek import MTP_WEIGHT

    main, drafted = (next_token_loss(each, targets) for each in logits)
    loss: Tensor = main + drafted * MTP_WEIGHT
    return loss
