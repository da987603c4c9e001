"""Write the files of `--out`: each complete or not at all, data before pictures."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

from ..cost import ROLES
from ..errors import UserError
from . import figures, markdown
from .document import as_document
from .summary import Study


def prepare(out: str) -> Path:
    """The folder of `--out`, made if needed, before any work starts.

    Raises:
        UserError: the path is a file, or cannot be made or written.
    """
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot make this folder ({error.strerror})") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"--out {out}: this folder cannot be written")
    return path


def write(study: Study, out: Path) -> list[Path]:
    """`report.json`, `ops.csv`, a roofline for every chip, then `report.md`; returns the paths."""
    written = [
        _text(out / "report.json", json.dumps(as_document(study), indent=1) + "\n"),
        _text(out / "ops.csv", ops_csv(study)),
    ]
    names: dict[str, str] = {}
    for chip in study.chips:
        steps = [step for step in study.steps if step.chip is chip]
        path = out / f"roofline_{chip.id}.png"
        precision = study.dtype if study.dtype in chip.peak else "bf16"
        draw = functools.partial(figures.roofline, steps, chip, precision)
        written.append(_atomically(path, draw))
        names[chip.id] = path.name
    written.append(_text(out / "report.md", markdown.render(study, names)))
    return written


def ops_csv(study: Study) -> str:
    """One row for every op of every result; costs include all layers that the op stands for."""
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(
        ["chip", "phase", "exec", "kernel", "kind", "pass", "module", "op", "count", "flops",
         "vector_flops", "recompute_flops", *(f"{role}_bytes" for role in ROLES), "bytes",
         "seconds", "bound", "confidence"]
    )  # fmt: skip
    for step in study.steps:
        for number, timed in enumerate(step.times.kernels):
            kernel = timed.kernel
            whole = sum(part.cost.total_bytes for part in kernel.parts)
            for part in kernel.parts:
                op = step.trace.ops[part.op]
                share = part.cost.total_bytes / whole if whole else 1 / len(kernel.parts)
                by_role = part.cost.bytes_by_role
                rows.writerow(
                    [step.chip.id, step.workload.phase, step.ledger.execution, number, kernel.kind,
                     kernel.phase, part.module, op.name, op.times, part.cost.total_flops,
                     part.cost.vector_flops, sum(part.cost.recompute_flops.values()),
                     *(by_role[role] for role in ROLES), part.cost.total_bytes,
                     f"{timed.total * share:.6e}", timed.bound, part.confidence]
                )  # fmt: skip
    return buffer.getvalue()


def _text(path: Path, text: str) -> Path:
    return _atomically(path, lambda p: p.write_text(text))


def _atomically(path: Path, make: Callable[[Path], object]) -> Path:
    """Make the file under another name and move it into place, so that no half of it is seen."""
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        make(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
