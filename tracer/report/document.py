"""The JSON document: FLOPs, bytes and seconds, unrounded."""

from __future__ import annotations

from typing import Any

from .summary import Study


def as_document(study: Study) -> dict[str, Any]:
    """The schema of `--json` and `report.json`; `results` has one entry a chip, phase and exec."""
    inventory = study.inventory
    return {
        "model": {
            "name": study.name,
            "source": study.source,
            "dtype": study.dtype,
            "parameters": inventory.parameters,
            "active_parameters_per_token": inventory.active_parameters,
            "weight_bytes": inventory.weight_bytes,
            "kv_bytes_per_token": inventory.kv_bytes_per_token,
        },
        "chip": study.chips[0].id,
        "chips": [chip.id for chip in study.chips],
        "conventions": study.notes(),
        "notes": list(study.remarks),
        "versions": study.versions,
        "command": study.command,
        "results": [step.as_dict() for step in study.steps],
    }
