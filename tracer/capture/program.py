"""A model with the ways to run it: what a workload needs to know and a bare module does not say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..errors import UserError, did_you_mean

TRAINING, PREFILL, DECODE = "training", "prefill", "decode"
WORKLOADS = (TRAINING, PREFILL, DECODE)
DTYPES = ("bf16", "fp8")


class Program(Protocol):
    """What `workload.record` asks of a model.

    `phases` are the workloads that the model can run. `modules(phase)` is the module to trace for
    one of them: a training step keeps FP8 weights in BF16, a server does not.
    """

    name: str
    source: str  # where the architecture comes from, for headers
    vocabulary: int
    layers: int  # length of the stack of decoder layers, which may be folded

    @property
    def phases(self) -> tuple[str, ...]: ...

    def module(self, phase: str) -> nn.Module: ...

    def new_cache(self, phase: str, batch: int, capacity: int, filled: int) -> Any: ...

    def cache_tensors(self, cache: Any) -> Iterable[Tensor]: ...

    def logits(self, phase: str, ids: Tensor, cache: Any) -> Tensor: ...


def load_program(
    model: str, *, dtype: str = "bf16", layers: int | None = None, remote_code: bool = False
) -> Program:
    """The program of a Hugging Face id, a folder with a `config.json`, or a JSON file.

    Ids of the DeepSeek-V3 family are bundled and need no network and no transformers. Everything
    else goes through `AutoConfig`.

    Args:
        model: the id, folder or file.
        dtype: "bf16", or "fp8" for block-quantised linears where the reference model has them.
        layers: keep only this many layers.
        remote_code: let transformers run code from the model's repository.

    Raises:
        UserError: nothing is known under this name (near matches are listed), a key is missing from
            the config (named), or the dtype is not available for the model.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if layers is not None and layers < 1:
        raise UserError(f"layers={layers}: give at least 1")
    from tracer.models import ConfigError, supports

    config, name = _find_config(model)
    if config is not None and supports(config):
        from .reference import ReferenceProgram

        try:
            return ReferenceProgram(name, config, dtype, layers)
        except ConfigError as error:
            raise UserError(str(error)) from error
    from .huggingface import HuggingFaceProgram

    return HuggingFaceProgram(model, dtype, layers, remote_code)


def _find_config(model: str) -> tuple[Mapping[str, Any] | None, str]:
    from tracer.models import bundled_config, bundled_ids

    folded = {name.lower(): name for name in bundled_ids()}
    if model.lower() in folded:
        name = folded[model.lower()]
        return bundled_config(name), name
    path = Path(model)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise UserError(f"{model!r} is a folder without a config.json")
    if path.is_file():
        try:
            config = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(config, dict) or "model_type" not in config:
            raise UserError(f"{path} has no key 'model_type': is it a Hugging Face config.json?")
        return config, model
    return None, model


def unknown_model(model: str, reason: str) -> UserError:
    """The error for a name that neither the bundled configs nor transformers know."""
    from tracer.models import bundled_ids

    return UserError(
        f"model {model!r} is not bundled and {reason}; {did_you_mean(model, bundled_ids())} "
        "A folder with a config.json works too."
    )
