"""Images and audio of language models: the inputs, and the placeholder tokens that stand for them.

A model replaces each placeholder id in the text by one feature vector, and refuses a prompt in
which the numbers differ. How many there are is found by running the tower once, unrecorded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from . import sizes
from .classes import forward_parameters, is_causal_lm, is_encoder_decoder
from .inputs import Ask, make

_KINDS = (("pixel_values", "image"), ("input_features", "audio"))
_TEXT_ID = 1  # any id that is no placeholder


def media_kind(model: Any) -> str | None:
    """Whether a language model takes "image"s or "audio"; None for text alone."""
    parameters = forward_parameters(model)
    if not (is_causal_lm(model) or is_encoder_decoder(model)):
        return None
    for name, kind in _KINDS:
        if name in parameters and hasattr(model, f"get_{kind}_features"):
            return kind
    return None


def media_inputs(model: Any, batch: int, seq: int, device: str) -> dict[str, Tensor]:
    """One image (or stretch of audio) a sequence with its prompt of `seq` tokens; {} for text LMs.

    Raises:
        UserError: the placeholders alone are longer than `seq`.
    """
    parameters = forward_parameters(model)
    ask = Ask(model, model.config, batch, seq, device)
    kind = media_kind(model)
    if kind is None:
        return {}
    names = [name for name, of in _KINDS if of == kind]
    if kind == "image":
        names += [
            extra
            for extra in ("image_grid_thw", "aspect_ratio_ids", "aspect_ratio_mask")
            if extra in parameters
        ]
    media = {extra: make(extra, ask) for extra in names}
    if "image_sizes" in parameters and _reads_sizes(model.config):
        size = sizes.image_size(model.config)
        media["image_sizes"] = torch.tensor([list(size)] * batch, device=device)
    token = sizes.find(model.config, f"{kind}_token_id", f"{kind}_token_index")
    if not isinstance(token, int):
        return {**media, "input_ids": ask.ids(batch, seq)}
    count = _features(model, kind, media) // batch
    if count >= seq:
        raise UserError(
            f"{type(model).__name__}: its {kind} takes {count} tokens of every sequence, so "
            f"--seq {seq} is too short"
        )
    text = _TEXT_ID if token != _TEXT_ID else 0
    ids = torch.cat([ask.ids(batch, count, token), ask.ids(batch, seq - count, text)], dim=1)
    media["input_ids"] = ids
    kinds = {"token_type_ids", "mm_token_type_ids"} & parameters.keys()
    for extra in kinds:
        media[extra] = (ids == token).long()
    return media


def _reads_sizes(config: Any) -> bool:
    """Whether images keep their own size, which the model then has to be told."""
    tower = getattr(getattr(config, "vision_config", None), "model_type", "")
    return tower == "pixtral" or config.model_type.startswith(("llava_next", "llava_onevision"))


def _features(model: Any, kind: str, media: dict[str, Tensor]) -> int:
    """Feature vectors that the tower makes of the whole batch."""
    get = getattr(model, f"get_{kind}_features")
    with torch.no_grad():
        out = get(**{k: v for k, v in media.items() if not k.startswith("aspect")})
    features = getattr(out, "pooler_output", None)
    if features is None:
        features = out[0] if isinstance(out, tuple) else out
    if isinstance(features, Tensor):
        features = [features]
    return sum(int(f.numel()) // int(f.shape[-1]) for f in features)


def forgets_images(model: Any) -> bool:
    """Clear the position offset that Qwen-VL's kind keeps of the last prompt; whether it has one.

    A run must not depend on the runs before it.
    """
    holders = [m for m in model.modules() if hasattr(m, "rope_deltas")]
    for module in holders:
        module.rope_deltas = None
    return bool(holders)
