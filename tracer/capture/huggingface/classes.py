"""Which class a config asks for, and which phases an instance of it can run."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers.models.auto import modeling_auto as auto

from ...errors import UserError
from ..program import DECODE, INFERENCE, PREFILL, TRAINING
from .config import text_config

# Where a config names no architecture: the most specific task that its type has a class for.
_TASKS = (
    "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "CAUSAL_LM",
    "CTC", "AUDIO_CLASSIFICATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "ZERO_SHOT_OBJECT_DETECTION",
    "IMAGE_CLASSIFICATION", "OBJECT_DETECTION", "UNIVERSAL_SEGMENTATION", "SEMANTIC_SEGMENTATION",
    "MASK_GENERATION", "DEPTH_ESTIMATION", "VIDEO_CLASSIFICATION",
    "TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM", "TIME_SERIES_PREDICTION", "MULTIMODAL_LM",
    "PRETRAINING",
)  # fmt: skip
CACHES = ("past_key_values", "cache_params", "state")  # what forwards call their cache


def model_class(config: Any) -> Any:
    """The class named in the config's `architectures`, else the one for its most specific task.

    Raises:
        UserError: transformers has no class for the config's type.
    """
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    kind = config.model_type
    for task in _TASKS:
        if task == "MASKED_LM" and getattr(config, "is_decoder", False):
            continue
        name = task_class(task, kind)
        if name is not None:
            return getattr(transformers, name)
    name = _first(auto.MODEL_MAPPING_NAMES.get(kind))
    if name is None:
        raise UserError(f"transformers has no model class for model_type {kind!r}")
    return getattr(transformers, name)


def fitting_config(config: Any) -> Any:
    """`config`, or the text part of it where the class is the language model of a larger one."""
    wanted = getattr(model_class(config), "config_class", None)
    text = text_config(config)
    if wanted is not None and not isinstance(config, wanted) and isinstance(text, wanted):
        text.architectures = config.architectures
        return text
    return config


def task_class(task: str, kind: str) -> str | None:
    """Name of the class for `kind` in transformers' mapping of `task` ("CAUSAL_LM")."""
    return _first(getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}).get(kind)) or (
        _first(auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES.get(kind))
        if task == "PRETRAINING"
        else None
    )


def _first(names: str | tuple[str, ...] | None) -> str | None:
    return names[0] if isinstance(names, tuple) else names


def forward_parameters(model: Any) -> dict[str, inspect.Parameter]:
    """Named parameters of `forward`."""
    return dict(inspect.signature(model.forward).parameters)


def is_encoder_decoder(model: Any) -> bool:
    """Whether a decoder reads an encoder's output through cross-attention."""
    return bool(getattr(model.config, "is_encoder_decoder", False)) and (
        "decoder_input_ids" in forward_parameters(model)
    )


def is_causal_lm(model: Any) -> bool:
    """Whether the model predicts the next token of its own input, with or without images."""
    kind = model.config.model_type
    parameters = forward_parameters(model)
    if is_encoder_decoder(model) or "input_ids" not in parameters or not model.can_generate():
        return False
    text = text_config(model.config)
    if task_class("MASKED_LM", kind) is not None and not getattr(text, "is_decoder", False):
        # An encoder's class may inherit `generate`; without is_decoder it attends both ways.
        masked = type(model).__name__ == task_class("MASKED_LM", kind)
        return not masked and not hasattr(text, "is_decoder")
    return True


def cache_name(model: Any) -> str | None:
    """What the model's forward calls its cache; None if it has none."""
    parameters = forward_parameters(model)
    return next((name for name in CACHES if name in parameters), None)


def keeps_state(model: Any) -> bool:
    """Whether a step can go on from the one before."""
    return cache_name(model) is not None or "use_cache" in forward_parameters(model)


def phases_of(model: Any) -> tuple[str, ...]:
    """The phases that the model can run."""
    if is_encoder_decoder(model):
        decodes = model.can_generate() and cache_name(model) is not None
        return (TRAINING, INFERENCE, DECODE) if decodes else (TRAINING, INFERENCE)
    if is_causal_lm(model):
        return (TRAINING, PREFILL, DECODE) if keeps_state(model) else (TRAINING, PREFILL)
    return (TRAINING, INFERENCE)
