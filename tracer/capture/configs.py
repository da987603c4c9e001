"""The `config.json` behind a model's name, without torch and without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError


def find_config(model: str) -> tuple[Mapping[str, Any] | None, str]:
    """The config and its name; None where neither a bundled model nor a file has it.

    Raises:
        UserError: a folder without one, or a file that is none.
    """
    from tracer.models import bundled_config, bundled_ids

    folded = {name.lower(): name for name in bundled_ids()}
    if model.lower() in folded:
        name = folded[model.lower()]
        return bundled_config(name), name
    path = Path(model)
    try:
        if path.is_dir():
            path = path / "config.json"
            if not path.is_file():
                raise UserError(f"{model!r} is a folder without a config.json")
        is_file = path.is_file()
    except OSError as error:
        raise UserError(f"model {model[:80]!r}: not a possible name ({error.strerror})") from error
    if is_file:
        try:
            config = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(config, dict) or "model_type" not in config:
            raise UserError(f"{path} has no key 'model_type': is it a Hugging Face config.json?")
        return config, model
    return None, model


def reference_sources() -> Path:
    """The folder of the reference models' code."""
    import tracer.models

    return Path(str(tracer.models.__file__)).parent


def why_no_mtp(modules: int) -> str:
    """Why a model of so many modules of multi-token prediction is not trained with them; "" of one.

    Releases have one (DeepSeek-V3 and R1) or none.
    """
    if modules == 1:
        return ""
    if modules:
        return f"the model has {modules} modules of multi-token prediction, known is one"
    return "the model has no module of multi-token prediction (num_nextn_predict_layers)"
