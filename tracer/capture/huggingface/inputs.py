"""Inputs of the right names and sizes for a model, from its forward's signature and its config.

One small function makes each input; `seq` is tokens of text, or frames of audio. Images have the
size that the config is made for. Integers are zeros where any id does, and the modality's own
placeholder id where a model looks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import UserError
from . import sizes
from .classes import forward_parameters, is_causal_lm, is_encoder_decoder

_CODES = 2  # other inputs with a size of their own choosing, such as queries of a detector


class Ask(NamedTuple):
    """What inputs are made for."""

    model: Any
    config: Any
    batch: int
    seq: int
    device: str

    def ids(self, batch: int, tokens: int, value: int = 0) -> Tensor:
        """[batch, tokens] token ids."""
        return torch.full((batch, tokens), value, dtype=torch.long, device=self.device)

    def floats(self, *shape: int) -> Tensor:
        """Floating input in the model's own precision; an image of zeros would count as padding."""
        return torch.ones(shape, dtype=self.model.dtype, device=self.device)


Maker = Callable[[Ask], Tensor]


def make_inputs(
    model: Any, batch: int, seq: int, device: str, given: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Keyword arguments of `model.forward` without a cache: what it requires and what it is for.

    Those `given` are left out.

    Raises:
        UserError: an input that nothing here knows how to size; names it.
    """
    ask = Ask(model, model.config, batch, seq, device)
    parameters = forward_parameters(model)
    wanted = _required(model)
    wanted += [name for name in _main_inputs(model) if name in parameters and name not in wanted]
    if is_encoder_decoder(model) and "decoder_input_ids" not in wanted:
        wanted.append("decoder_input_ids")
    wanted += _companions(model, wanted, parameters)
    return {name: make(name, ask) for name in dict.fromkeys(wanted) if name not in given}


def required_inputs(
    model: Any, batch: int, seq: int, device: str, given: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Only the inputs without a default, but for those `given`."""
    ask = Ask(model, model.config, batch, seq, device)
    return {name: make(name, ask) for name in _required(model) if name not in given}


def _required(model: Any) -> list[str]:
    return [
        name
        for name, p in forward_parameters(model).items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]


def make(name: str, ask: Ask) -> Tensor:
    """One input by its name."""
    maker = _MAKERS.get(name)
    if maker is None and name.endswith("input_ids"):
        maker = _text
    if maker is None:
        raise UserError(
            f"{type(ask.model).__name__} asks for an input {name!r} of a size that its config does "
            f"not tell: give it, such as --input '{name}:bf16[B,S,64]'"
        )
    return maker(ask)


def _main_inputs(model: Any) -> list[str]:
    names = model.main_input_name
    names = list(names) if isinstance(names, (list, tuple)) else [names]
    parameters = forward_parameters(model)
    if "pixel_values" in parameters and not is_causal_lm(model) and names == ["input_ids"]:
        names.append("pixel_values")  # CLIP and its kind, and vision towers whose class says text
        if "input_ids" not in parameters:
            names.remove("input_ids")
    return names


def _companions(model: Any, wanted: list[str], parameters: Mapping[str, Any]) -> list[str]:
    """Inputs with a default that go with others all the same."""
    pairs = {
        "pixel_values": ("image_grid_thw", "spatial_shapes", "pixel_attention_mask"),
        "past_values": ("past_time_features", "past_observed_mask", "future_values",
                        "future_time_features"),
        "input_ids": ("bbox",),
    }  # fmt: skip
    needed = {
        "image_grid_thw": True,
        "spatial_shapes": True,
        "pixel_attention_mask": "spatial_shapes" in parameters,
        "bbox": "layout" in model.config.model_type,
        "past_time_features": True,
        "past_observed_mask": False,
        "future_values": "past_time_features" in parameters,
        "future_time_features": "past_time_features" in parameters,
    }
    return [
        other
        for name in wanted
        for other in pairs.get(name, ())
        if other in parameters and needed[other]
    ]


# -- one function an input -----------------------------------------------------------------------


def _text(ask: Ask) -> Tensor:
    limit = sizes.find(ask.config, "max_position_embeddings") if _is_dual(ask) else None
    tokens = min(ask.seq, limit) if isinstance(limit, int) and limit > 0 else ask.seq
    return ask.ids(ask.batch, tokens)


def _is_dual(ask: Ask) -> bool:
    """A text tower beside an image tower has a short context of its own (CLIP: 77)."""
    return "pixel_values" in forward_parameters(ask.model) and not is_causal_lm(ask.model)


def _decoder_text(ask: Ask) -> Tensor:
    limit = sizes.find(ask.config, "max_target_positions", "max_length_decoder")
    return ask.ids(ask.batch, min(ask.seq, limit) if isinstance(limit, int) else ask.seq)


def _image(ask: Ask) -> Tensor:
    height, width = sizes.image_size(ask.config)
    parameters = forward_parameters(ask.model)
    side, colours = sizes.patch_size(ask.config), sizes.channels(ask.config)
    if "image_grid_thw" in parameters or "grid_thw" in parameters:
        temporal = sizes.find(ask.config, "temporal_patch_size", default=1)
        rows, columns = _grid(ask)
        return ask.floats(ask.batch * rows * columns, colours * temporal * side * side)
    if "spatial_shapes" in parameters:
        patches = sizes.find(ask.config, "num_patches", default=256)
        return ask.floats(ask.batch, patches, colours * side * side)
    frames = sizes.find(ask.config, "num_frames")
    if frames is not None and "Video" in type(ask.model).__name__ + ask.config.model_type.title():
        return ask.floats(ask.batch, frames, colours, height, width)
    if frames is not None and ask.config.model_type in ("timesformer", "videomae", "vivit"):
        return ask.floats(ask.batch, frames, colours, height, width)
    if _takes_tiles(ask):
        tiles = sizes.find(ask.config, "max_num_tiles", default=1)
        shape = (tiles, colours, height, width) if tiles > 1 else (colours, height, width)
        return ask.floats(ask.batch, sizes.tiles(ask.model), *shape)
    return ask.floats(ask.batch, colours, height, width)


def _takes_tiles(ask: Ask) -> bool:
    """Models whose images carry one more dimension, the images of a sample."""
    return ask.config.model_type in (
        "mllama", "idefics2", "idefics3", "smolvlm", "aria", "llava_next", "llava_onevision",
    )  # fmt: skip


def _grid(ask: Ask) -> tuple[int, int]:
    """Patches down and across, both multiples of the merge that follows."""
    height, width = sizes.image_size(ask.config)
    side = sizes.patch_size(ask.config)
    merge = sizes.find(ask.config, "spatial_merge_size", default=1)
    return height // side // merge * merge, width // side // merge * merge


def _image_grid(ask: Ask) -> Tensor:
    rows, columns = _grid(ask)
    return torch.tensor([[1, rows, columns]] * ask.batch, device=ask.device)


def _video(ask: Ask) -> Tensor:
    frames = sizes.find(ask.config, "num_frames", "frames_per_clip", default=16)
    height, width = sizes.image_size(ask.config)
    return ask.floats(ask.batch, frames, sizes.channels(ask.config), height, width)


def _audio_features(ask: Ask) -> Tensor:
    """[B, mel, T] of fixed length (Whisper), or [B, T, features]."""
    source = sizes.find(ask.config, "max_source_positions")
    mels = sizes.find(ask.config, "num_mel_bins")
    if mels is not None and source is not None and not hasattr(ask.config, "conv_kernel_sizes"):
        return ask.floats(ask.batch, mels, 2 * source)
    width = sizes.find(
        ask.config, "input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins",
        "input_feat_size", "input_dim", "n_mels", default=80,
    )  # fmt: skip
    return ask.floats(ask.batch, ask.seq, width)


def _audio_values(ask: Ask) -> Tensor:
    """Raw samples [B, T], codecs [B, 1, T], spectrogram patches [B, T, mel]."""
    mels, longest = sizes.find(ask.config, "num_mel_bins"), getattr(ask.config, "max_length", None)
    if ask.config.model_type == "audio-spectrogram-transformer":
        return ask.floats(ask.batch, int(longest or 1024), int(mels or 128))
    samples = sizes.audio_samples(ask.config, ask.seq)
    if hasattr(ask.config, "upsampling_ratios") or hasattr(ask.config, "audio_channels"):
        return ask.floats(ask.batch, int(getattr(ask.config, "audio_channels", 1)), samples)
    return ask.floats(ask.batch, samples)


def _series(ask: Ask) -> Tensor:
    length = sizes.find(ask.config, "context_length", default=ask.seq)
    lags = sizes.find(ask.config, "lags_sequence")
    if lags and "past_time_features" in forward_parameters(ask.model):
        return ask.floats(ask.batch, length + max(lags))
    width = sizes.find(ask.config, "num_input_channels", "input_size", default=1)
    return ask.floats(ask.batch, length, width)


def _past_features(ask: Ask) -> Tensor:
    length = sizes.find(ask.config, "context_length") + max(sizes.find(ask.config, "lags_sequence"))
    return ask.floats(ask.batch, length, _time_features(ask))


def _future_features(ask: Ask) -> Tensor:
    length = sizes.find(ask.config, "prediction_length")
    return ask.floats(ask.batch, length, _time_features(ask))


def _time_features(ask: Ask) -> int:
    return int(sizes.find(ask.config, "num_time_features", default=0))


_MAKERS: dict[str, Maker] = {
    "input_ids": _text,
    "decoder_input_ids": _decoder_text,
    "pixel_values": _image,
    "pixel_values_videos": _video,
    "image_grid_thw": _image_grid,
    "grid_thw": _image_grid,
    "input_features": _audio_features,
    "input_values": _audio_values,
    "past_values": _series,
    "past_time_features": _past_features,
    "past_observed_mask": lambda ask: torch.ones_like(_series(ask)),
    "future_values": lambda ask: ask.floats(
        ask.batch, sizes.find(ask.config, "prediction_length")
    ),
    "future_time_features": _future_features,
    "bbox": lambda ask: torch.zeros(ask.batch, ask.seq, 4, dtype=torch.long, device=ask.device),
    "spatial_shapes": lambda ask: torch.tensor(
        [[math.isqrt(sizes.find(ask.config, "num_patches", default=256))] * 2] * ask.batch,
        device=ask.device,
    ),
    "pixel_attention_mask": lambda ask: torch.ones(
        ask.batch, sizes.find(ask.config, "num_patches", default=256), dtype=torch.long,
        device=ask.device,
    ),
    "aspect_ratio_ids": lambda ask: ask.ids(ask.batch, 1, 1),
    "aspect_ratio_mask": lambda ask: torch.ones(
        ask.batch, 1, sizes.find(ask.config, "max_num_tiles", default=1), dtype=torch.long,
        device=ask.device,
    ),
    "flattened_patches": lambda ask: ask.floats(
        ask.batch, ask.seq, 2 + sizes.channels(ask.config) * sizes.patch_size(ask.config) ** 2
    ),
    "spectrogram": lambda ask: ask.floats(
        ask.batch, ask.seq, sizes.find(ask.config, "model_in_dim", "num_mel_bins", default=80)
    ),
    "inputs": lambda ask: ask.floats(ask.batch, ask.seq, sizes.find(ask.config, "d_model")),
}  # fmt: skip


def accepted(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Those of `inputs` that the forward takes."""
    parameters = forward_parameters(model)
    return {name: value for name, value in inputs.items() if name in parameters}


def tokens_of(inputs: dict[str, Any]) -> int:
    """Tokens of a sequence: those of the decoder, of the text, or 1 for an image or a clip."""
    for name in ("decoder_input_ids", "input_ids"):
        if isinstance(inputs.get(name), Tensor):
            tokens: int = inputs[name].shape[1]
            return tokens
    return 1
