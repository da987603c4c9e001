"""A hub id, a folder or a config.json -> the config; and the same with fewer layers."""

from __future__ import annotations

import contextlib
import logging
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from transformers import AutoConfig

from ...errors import UserError
from ..program import unknown_model

# What transformers' configs call the length of a stack of layers.
_DEPTHS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_blocks",
    "encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers",
    "num_hidden_layers_encoder", "num_hidden_layers_decoder", "depth",
)  # fmt: skip
_STAGES = ("depths", "num_blocks_per_stage", "layers_per_stage")  # a number for every stage


def read_config(name: str, remote_code: bool) -> Any:
    """The config under a hub id, in a folder or in a file.

    Raises:
        UserError: transformers finds none or cannot read it; says why.
    """
    offline = not (Path(name).exists() or _hub_answers())
    try:
        return AutoConfig.from_pretrained(
            name, trust_remote_code=remote_code, local_files_only=offline
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, hub errors
        reason = first_line(error)
        where = "no hub can be reached, and it is not in the local cache" if offline else reason
        raise unknown_model(name, f"transformers cannot read a config for it ({where})") from error


def with_layers(config: Any, layers: int) -> Any:
    """`config` with stacks of at most `layers` layers, in sub-configs too.

    Lists that say something of every layer are cut to the same length. Stages of vision models
    stay; each gets at most `layers`.

    Raises:
        UserError: the config has no such length, or its class refuses the shorter one.
    """
    raw = config.to_dict()
    if not _cut(raw, layers):
        raise UserError(f"--layers {layers}: {type(config).__name__} names no number of layers")
    try:
        return type(config).from_dict(raw)
    except Exception as error:
        raise UserError(
            f"--layers {layers}: {type(config).__name__} refuses it ({first_line(error)})"
        ) from error


def _cut(raw: dict[str, Any], layers: int) -> bool:
    """Shorten in place; whether there was something to shorten."""
    if any(isinstance(raw.get(key), (list, tuple)) for key in _STAGES):
        for key in _STAGES:
            if isinstance(raw.get(key), (list, tuple)):
                raw[key] = [min(stage, layers) for stage in raw[key]]
        return True  # what else is listed is listed by stage
    if "stage_names" in raw:  # one a layer, in backbones: the shorter one outputs its last
        for key in ("stage_names", "out_features", "out_indices"):
            raw.pop(key, None)
    before = {raw[key] for key in _DEPTHS if isinstance(raw.get(key), int) and raw[key] > 0}
    found = bool(before)
    for key, value in raw.items():
        if key in _DEPTHS and isinstance(value, int):
            raw[key] = min(value, layers)
        elif key == "num_kv_shared_layers" and isinstance(value, int) and value >= layers:
            raw[key] = 0  # the last layers borrow keys from those before, of which some must stay
        elif isinstance(value, (list, str)) and len(value) in before and _per_layer(key, value):
            raw[key] = value[:layers]
        elif isinstance(value, dict) and value and all(str(k).isdigit() for k in value):
            if "label" not in key:
                raw[key] = {k: v for k, v in value.items() if int(k) < layers}
        elif isinstance(value, dict) and (key.endswith("config") or key in ("encoder", "decoder")):
            found = _cut(value, layers) or found
    return found


def _per_layer(key: str, value: list[Any] | str) -> bool:
    """Whether a value as long as the stack says something of every layer."""
    if isinstance(value, str):
        return "pattern" in key
    return "id2label" not in key and key not in ("architectures",)


def text_config(config: Any) -> Any:
    """The part of the config that is about text; of several, the decoder's."""
    try:
        return config.get_text_config()
    except ValueError:  # more than one
        return config.get_text_config(decoder=True)


def is_uniform(config: Any) -> bool:
    """Whether no list in the config tells layers apart by their index.

    Models walk such lists with the position in the loop (`layer_types[i]`), so a stack of which
    some layers are left out would be told apart wrongly.
    """
    depth = getattr(config, "num_hidden_layers", None)
    return all(
        len(value) != depth or all(item == value[0] for item in value)
        for value in config.to_dict().values()
        if isinstance(value, (list, tuple)) and value
    )


def differs_by_window(config: Any) -> bool:
    """Whether layers differ in which keys their attention sees, and in nothing else of a list."""
    depth = getattr(config, "num_hidden_layers", None)
    lists = {
        key: set(map(str, value)) for key, value in config.to_dict().items()
        if isinstance(value, (list, tuple)) and len(value) == depth
    }  # fmt: skip
    differing = {key: kinds for key, kinds in lists.items() if len(kinds) > 1}
    return set(differing) == {"layer_types"} and differing["layer_types"] <= _WINDOWS


_WINDOWS = {"full_attention", "sliding_attention", "chunked_attention"}


def first_line(error: BaseException) -> str:
    """The message's first line that says something, or the error's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Class validation error") and len(lines) > 1:
        return lines[1]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Transformers gives advice about kernels, losses and tokens that does not concern a trace."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


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


def without_layerdrop(config: Any) -> bool:
    """Turn off the random skipping of layers, which no count can follow; whether it was on."""
    found = False
    for part in (config, *(getattr(config, key, None) for key in config.sub_configs)):
        for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
            if getattr(part, name, 0):
                setattr(part, name, 0.0)
                found = True
    return found
