"""Any Hugging Face architecture as a program, on meta.

transformers builds masks by looking at data, which meta tensors do not have, and repeats K/V to
all heads when it sees a tracer. Both hide what a GPU runs. So an attention and a mask function of
our own are registered through transformers' interfaces (see `attention.py` and `masks.py`); models
with an attention of their own run it as transformers' `sdpa` or `eager` would. Experts run as
grouped matmuls where transformers offers that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.modeling_outputs import BaseModelOutput

from ...errors import UserError
from ..grounds import (
    FAKE,
    GROUNDS,
    REAL,
    REAL_BATCH,
    REAL_BYTES,
    REAL_TOKENS,
    NotTried,
    device_of,
    fake_twin,
)
from ..inputspec import InputSpec
from ..loss import any_loss, next_token_loss
from ..program import DECODE, INFERENCE, PREFILL, TRAINING, Run, no_state
from . import cache as caches
from . import cures, sizes
from .attention import tracer_attention
from .classes import (
    cache_name,
    fitting_config,
    forward_parameters,
    is_causal_lm,
    is_encoder_decoder,
    model_class,
    phases_of,
)
from .config import (
    first_line,
    is_uniform,
    quiet,
    read_config,
    text_config,
    with_layers,
    without_layerdrop,
)
from .cures import OURS
from .inputs import accepted, make_inputs, required_inputs, tokens_of
from .masks import tracer_mask
from .modalities import forgets_images, media_inputs, media_kind

_WARM_TOKENS = 8  # enough for every recurrent state and convolution to exist


class HuggingFaceProgram:
    """A transformers class under the `Program` protocol, built from its config.

    Args:
        name: for headers.
        config: a transformers config.
        dtype: "bf16" (`from_config` ignores a checkpoint's quantisation) or "fp32".
        remote_code: let transformers run code from the model's repository.
        inputs: inputs beside or in place of those found from signature and config.

    Raises:
        UserError: a class that does not build on meta, or another dtype.
    """

    grounds: tuple[str, ...] = GROUNDS
    last_logits = False  # a prefill makes those of the last token of every sequence alone

    def __init__(
        self, name: str, config: Any, dtype: str = "bf16", remote_code: bool = False,
        inputs: tuple[InputSpec, ...] = (),
    ) -> None:  # fmt: skip
        if dtype not in _DTYPES:
            raise UserError(
                f"--dtype {dtype}: {name} is not of the bundled DeepSeek family, "
                "and transformers builds it from its config in bf16 only"
            )
        self.name = name
        self.cures: list[str] = []
        self.compiles = True
        self.config = fitting_config(config)
        self.dtype = dtype
        self._remote_code = remote_code
        self._given = inputs
        for spec in inputs:
            if spec.name is None:
                raise UserError(f"--input {spec.text!r}: name it, as the model's forward does")
        self._media = True
        self._own_cache = False
        self._experts = "grouped_mm"
        self._attention = OURS
        self._modules: dict[str, Any] = {}
        if without_layerdrop(self.config):
            self.cures.append("layerdrop off: every layer runs in every step")
        with quiet():
            model = self._build("meta")
            self.phases = phases_of(model)
            text = text_config(self.config)
            one_stack = is_causal_lm(model) and is_uniform(text)
        self.layers = getattr(text, "num_hidden_layers", 0) if one_stack else 0
        self.source = f"transformers {type(model).__name__}"
        towers = "pixel_values" in forward_parameters(model) and not is_causal_lm(model)
        self.longest = None if towers else sizes.learned_positions(model)

    @classmethod
    def load(
        cls, name: str, dtype: str = "bf16", layers: int | None = None, remote_code: bool = False,
        inputs: tuple[InputSpec, ...] = (),
    ) -> HuggingFaceProgram:  # fmt: skip
        """From a hub id, a folder or a file; raises UserError if there is no config to read."""
        with quiet():
            config = read_config(name, remote_code)
            if layers is not None:
                config = with_layers(config, layers)
        return cls(name, config, dtype, remote_code, inputs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _register()  # in a process that has built nothing

    @property
    def shortest(self) -> int:
        """Tokens of the smallest run: prompts with an image need more than its placeholders."""
        model = self._modules["meta"]
        return 4096 if PREFILL in self.phases and self._media and media_kind(model) else 16

    # -- the module --------------------------------------------------------------------------------

    def module(self, phase: str, ground: str) -> nn.Module:
        """One module for all phases, for each device."""
        built: nn.Module = self._module(ground)
        return built

    def _module(self, ground: str) -> Any:
        device = device_of(ground)
        key = device if ground != FAKE else ground
        if key not in self._modules:
            if ground == REAL and self._bytes() > REAL_BYTES:
                raise NotTried
            if ground == FAKE:
                self._modules[key] = fake_twin(self._modules["meta"])
            else:
                with quiet():
                    self._modules[key] = self._build(device)
        return self._modules[key]

    def _bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self._modules["meta"].parameters())

    def _build(self, device: str) -> Any:
        _register()
        failure: Exception | None = None
        for attention in self._ladder():
            try:
                with torch.device(device):
                    model = self._new(attention)
            except UserError:
                raise
            except Exception as error:  # a class may refuse an implementation in its own way
                failure = error
                continue
            self._attention = attention
            if getattr(type(model), "_can_set_experts_implementation", lambda: False)():
                model.set_experts_implementation(self._experts)
            if device == "meta":
                # Parameters from legacy constructors (`torch.Tensor(n)`) heed no default device.
                self._modules["meta"] = model.to("meta")
            return model
        assert failure is not None
        raise UserError(
            f"{self.name}: transformers cannot build it from its config "
            f"({type(failure).__name__}: {first_line(failure)})"
        ) from failure

    def _ladder(self) -> tuple[str, ...]:
        """Attention implementations to try; a class with attention of its own never asks ours."""
        ladder = _ATTENTIONS[_ATTENTIONS.index(self._attention) :]
        if self._remote_code and getattr(self.config, "auto_map", None):
            return ladder
        if OURS in ladder and not model_class(self.config)._can_set_attn_implementation():
            return ladder[1:]
        return ladder

    def _new(self, attention: str) -> Any:
        options = {"attn_implementation": attention, "dtype": _DTYPES[self.dtype]}
        if self._remote_code and getattr(self.config, "auto_map", None):
            return AutoModelForCausalLM.from_config(self.config, trust_remote_code=True, **options)
        return model_class(self.config)._from_config(self.config, **options)

    # -- a run -------------------------------------------------------------------------------------

    def prepare(self, phase: str, ground: str, batch: int, seq: int, context: int) -> Run:
        """Inputs and caches of one call; `seq` are tokens, or frames of audio."""
        if self.longest is not None and (context if phase == DECODE else seq) > self.longest:
            flag, value = ("--context", context) if phase == DECODE else ("--seq", seq)
            raise UserError(
                f"{self.name} has learned positions for {self.longest} tokens: "
                f"{flag} {value} is too long"
            )
        if ground == REAL:
            batch, seq = min(batch, REAL_BATCH), min(seq, REAL_TOKENS)
            context = min(context, REAL_TOKENS)
        model = self._module(ground)
        model.train(phase == TRAINING)
        forgets_images(model)
        device = device_of(ground)
        with quiet(), torch.no_grad():
            if phase == DECODE:
                prepare = self._decode_encoded if is_encoder_decoder(model) else self._decode
                return prepare(model, batch, seq, context, device)
            return self._forward(model, phase, batch, seq, context, device)

    def _forward(
        self, model: Any, phase: str, batch: int, seq: int, context: int, device: str
    ) -> Run:
        inputs = self._inputs(model, phase, batch, seq, device)
        parameters = forward_parameters(model)
        cache: Any = None
        name = cache_name(model)
        if phase == PREFILL and name is not None and self._in_place(model):
            cache = caches.in_place_cache(self.config, seq, 0)
            if cache is not None:
                inputs[name] = cache
        if "use_cache" in parameters:
            inputs["use_cache"] = phase == PREFILL
        if self.last_logits and phase == PREFILL and "logits_to_keep" in parameters:
            inputs["logits_to_keep"] = 1  # as `generate` calls it
        holder: list[Any] = [cache]

        def forward() -> Any:
            with quiet():
                out = self._call(model, inputs)
            if cache is None:
                holder[0] = caches.cache_of(out)
            return out

        state = no_state if phase != PREFILL else lambda: caches.tensors_of(holder[0])
        tokens = tokens_of(inputs)
        return Run(forward, self._loss(model, inputs), state, batch, tokens, context)

    def _call(self, model: Any, inputs: dict[str, Any]) -> Any:
        """One call of the model."""
        return model(**inputs)

    def _decode(self, model: Any, batch: int, seq: int, context: int, device: str) -> Run:
        """One token after `context - 1`; states that must exist first come from a warm-up call."""
        name = cache_name(model)
        cache = caches.in_place_cache(self.config, context, 0) if self._in_place(model) else None
        ours = cache is not None
        need = caches.needs_warming(cache) if ours else "full"
        before = 0 if not need else context - 1
        if need == "short":
            before = min(_WARM_TOKENS, before)
        notes = []
        if before:
            inputs = self._text(model, batch, before, device) | {"use_cache": True}
            if ours:
                inputs[str(name)] = cache
            out = self._call(model, accepted(model, inputs))
            if not ours:
                cache = caches.cache_of(out)
                if cache is None:
                    raise UserError(
                        f"{self.name} returns no cache: "
                        f"it has {', '.join(p for p in self.phases if p != DECODE)}"
                    )
        if ours:
            caches.set_filled(cache, context - 1)
        if need == "full":
            notes.append("decode: the cache is transformers' own, some of it copied at every step")
        inputs = self._text(model, batch, 1, device, context) | {"use_cache": True}
        if forgets_images(model) or name == "cache_params":
            # One would make positions for all of its length; state spaces would spread the token
            # over it, so that transformers' generate leaves it out after the prompt.
            inputs.pop("attention_mask", None)
        if cache is not None:
            inputs[name or "past_key_values"] = cache
        inputs = accepted(model, inputs)
        held = [cache]

        def forward() -> Any:
            with quiet():
                out = self._call(model, inputs)
            held[0] = held[0] if ours else caches.cache_of(out)
            return out

        return Run(
            forward, any_loss, lambda: caches.tensors_of(held[0]), batch, seq, context,
            tuple(notes),
        )  # fmt: skip

    def _decode_encoded(self, model: Any, batch: int, seq: int, context: int, device: str) -> Run:
        """One token of the decoder after `context - 1`, the encoder's output cached."""
        config = self.config
        cache = caches.encoder_decoder_cache(config, context, 0)
        inputs = self._inputs(model, INFERENCE, batch, seq, device)
        decoder = {k: v for k, v in inputs.items() if k.startswith("decoder")}
        decoder["decoder_input_ids"] = decoder["decoder_input_ids"][:, :1]
        encoded = model.get_encoder()(**accepted(model.get_encoder(), inputs))
        if isinstance(encoded, tuple):
            encoded = BaseModelOutput(*encoded[:1])
        step = decoder | {"encoder_outputs": encoded, "past_key_values": cache, "use_cache": True}
        model(**step)  # fills the cross-attention's keys
        caches.set_filled(cache, context - 1)

        def forward() -> Any:
            with quiet():
                return model(**step)

        return Run(forward, any_loss, lambda: caches.tensors_of(cache), batch, seq, context)

    def _in_place(self, model: Any) -> bool:
        """Whether the model takes a cache of ours."""
        return bool(
            not self._own_cache
            and cache_name(model) in ("past_key_values", "cache_params")
            and model._supports_default_dynamic_cache()
        )

    # -- inputs ------------------------------------------------------------------------------------

    def _inputs(self, model: Any, phase: str, batch: int, seq: int, device: str) -> dict[str, Any]:
        given = {s.name: s.tensor(batch, seq, seq, device) for s in self._given if s.name}
        inputs: dict[str, Any] = {}
        if is_causal_lm(model):
            inputs |= required_inputs(model, batch, seq, device, given.keys())
            inputs |= self._text(model, batch, seq, device)
        else:
            inputs |= make_inputs(model, batch, seq, device, given.keys())
        if self._media and media_kind(model) is not None:
            return inputs | media_inputs(model, batch, seq, device) | given
        if "attention_mask" in forward_parameters(model) and "pixel_values" not in inputs:
            ids = inputs.get("input_ids")
            if isinstance(ids, Tensor):
                inputs["attention_mask"] = torch.ones_like(ids)
        return inputs | given

    def _text(
        self, model: Any, batch: int, tokens: int, device: str, visible: int | None = None
    ) -> dict[str, Any]:
        """Token ids; an all-ones mask keeps transformers from looking for packed sequences."""
        # MusicGen reads the codebooks of a sequence as so many rows.
        books = self.config.num_codebooks if "musicgen" in self.config.model_type else 1
        shape = batch * books, tokens
        inputs = {"input_ids": torch.zeros(shape, dtype=torch.long, device=device)}
        if "attention_mask" in forward_parameters(model):
            length = tokens if visible is None else visible
            inputs["attention_mask"] = torch.ones(batch, length, dtype=torch.long, device=device)
        return inputs

    def _loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        vocabulary = getattr(text_config(self.config), "vocab_size", None)
        ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))

        def loss(out: Any) -> Tensor:
            logits = getattr(out, "logits", None)
            if (
                isinstance(logits, Tensor)
                and isinstance(ids, Tensor)
                and logits.shape[:-1] == ids.shape
                and logits.shape[-1] == vocabulary
            ):
                return next_token_loss(logits, torch.zeros_like(ids))
            return any_loss(out)

        return loss

    # -- cures -------------------------------------------------------------------------------------

    def adapt(self, error: Exception) -> bool:
        """Whether an error of the model could be cured; what was done stands in `cures`."""
        media = self._media and media_kind(self._modules["meta"]) is not None
        setup = cures.Setup(self.dtype, self._attention, self._experts, self._own_cache, media)
        cure = cures.cure_of(error, setup)
        if cure is None:
            return False
        if cure.note:
            self.cures.append(cure.note)
        self.dtype, self._attention, self._experts, self._own_cache, keeps = cure.setup
        if media and not keeps:
            self._media = False
        if cure.rebuilds:
            self._modules.clear()
            with quiet():
                self._build("meta")
        return True


def _register() -> None:
    """Make our attention and masks known to transformers."""
    AttentionInterface.register(OURS, tracer_attention)
    AttentionMaskInterface.register(OURS, tracer_mask)


_ATTENTIONS = (OURS, "sdpa", "eager")
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
