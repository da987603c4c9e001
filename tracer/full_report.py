"""What `--out` adds to the answer: formulas, another side to compare, a checkpoint's weights.

Formulas are traced in a process of their own, while this one traces at numbers.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.hardware import chip_ids

from .errors import UserError, did_you_mean
from .report.sides import is_config, side_from, side_of
from .run import answer, assumptions, available, check, lengths, program_of

if TYPE_CHECKING:
    from .beside import Beside
    from .report.records import Side, WeightRow
    from .report.studied import Studied
    from .report.summary import Study


def whole_answer(options: argparse.Namespace, command: str, other: Beside) -> Study:
    """`answer`, and by the process beside, at the same time, what a report takes from formulas.

    A model that cannot be traced with symbols has a report without those sections.
    """
    known = _earlier(options.compare)
    other.start(studied, options)
    weights = _weights(options.checkpoint)
    study = answer(options, command)
    if options.compare is not None:
        study = replace(study, compared=known or _other_side(options))
    study = replace(study, weights=weights)
    try:
        found = other.answer()._asdict()
    except Exception as error:  # whatever it is, the report does without
        found = {"remarks": (f"no formulas in symbols: {' '.join(str(error).split())}",)}
    remarks = found.pop("remarks")
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    return replace(study, **found, remarks=(*study.remarks, *remarks))


def _earlier(other: str | None) -> Side | None:
    """What `--compare` names, if it is the report.json (or the folder) of an earlier run."""
    if other is None:
        return None
    path = Path(other)
    path = path / "report.json" if (path / "report.json").is_file() else path
    if path.name.endswith(".json") and not is_config(path):
        return side_from(path)
    return None


def _other_side(options: argparse.Namespace) -> Side:
    """This model on another chip, or another model on this one, at the same sizes."""
    changed = argparse.Namespace(**vars(options))
    if options.compare in chip_ids():
        changed.chip = [options.compare]
    else:
        changed.hf_config, changed.module, changed.exported = options.compare, None, None
        changed.input = []
    try:
        return side_of(answer(changed, ""))
    except UserError as error:
        if options.compare in chip_ids() or Path(options.compare).exists():
            raise
        near = did_you_mean(options.compare, chip_ids())
        raise UserError(
            f"--compare {options.compare!r}: no chip ({near}), no folder, and as a model: {error}"
        ) from error


def _weights(folder: str | None) -> tuple[WeightRow, ...] | None:
    """Statistics of a checkpoint by name pattern, its weights read once."""
    if folder is None:
        return None
    from tracer.models.shards import CheckpointError, open_checkpoint
    from tracer.models.weight_rows import grouped
    from tracer.models.weight_stats import weight_stats

    from .report.records import WeightRow

    try:
        rows = grouped(list(weight_stats(open_checkpoint(folder))))
    except CheckpointError as error:
        raise UserError(str(error)) from error
    return tuple(WeightRow(*row.as_dict().values()) for row in rows)


def studied(options: argparse.Namespace) -> Studied:
    """Formulas, sweeps, sensitivity and limits for the report that `options` ask for."""
    from .cost import Conventions
    from .machine import Timing
    from .report.studied import Asked, study

    chips, asked, executions = check(options)
    conventions, timing = assumptions(options.assume, Conventions, Timing)
    program = program_of(options)
    seq, context = lengths(options, program)
    phases = tuple(available(program, asked))
    return study(program, Asked(options.batch, seq, context, phases, tuple(executions), chips,
                                timing, conventions, options.optimizer))  # fmt: skip
