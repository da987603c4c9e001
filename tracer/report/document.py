"""The JSON document, FLOPs, bytes and seconds unrounded, and the report that has it."""

from __future__ import annotations

from typing import Any

from .blocks import code
from .report import Report
from .summary import Study


def report_of(study: Study) -> Report:
    """The report of a model on its chips."""
    from .files import ops_csv
    from .page import payload
    from .sections import build

    chips = ", ".join(chip.name for chip in study.chips)
    return Report(
        f"What limits {code(study.name)}", f"{study.source}, {study.dtype}; {chips}.",
        study.command, build(study), as_document(study), {"ops.csv": lambda: ops_csv(study)},
        lambda: payload(study),
    )  # fmt: skip


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
