"""The other side of `--compare`: from a study, or from the files that an earlier run left."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ..errors import UserError
from ..predict.opcost import NOTHING, OpCost
from .compare import Key, key_of
from .records import Side, SideStep
from .summary import Study
from .text import pattern

Groups = dict[tuple[str, str, str], OpCost]


def side_of(study: Study, chip: int = 0) -> Side:
    """The steps of a study on one of its chips."""
    steps = {}
    for step in study.steps:
        if step.chip is not study.chips[chip]:
            continue
        groups: Groups = {}
        trace, work = step.trace, step.workload
        for timed in step.times.kernels:
            for place, part in enumerate(timed.kernel.parts):
                op = trace.ops[part.op]
                key = key_of(timed.kernel, part, op)
                cost = part.cost
                _add(groups, key, op.times, cost.total_flops, cost.total_bytes,
                     timed.seconds_of(place))  # fmt: skip
        steps[step.workload.phase, step.ledger.execution] = SideStep(
            step.cost.total_flops, step.cost.total_bytes, step.times.compute, step.times.memory,
            step.times.step, groups, _sizes(work.phase, work.batch, work.seq, work.context),
        )  # fmt: skip
    return Side(f"{study.name} in {study.dtype}", study.chips[chip].id, study.command, steps)


def is_config(path: Path) -> bool:
    """Whether it is a model's config.json under whatever name, and no report of a run."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and bool({"model_type", "architectures"} & document.keys())


def side_from(path: Path) -> Side:
    """What `--out` left: `report.json` and `ops.csv` beside it, of its first chip.

    Raises:
        UserError: one of them is missing or is something else.
    """
    try:
        document = json.loads(path.read_text())
        model, chip = document["model"], document["chip"]
        name, command = f"{model['name']} in {model['dtype']}", document["command"]
        rows = [row for row in document["results"] if row["chip"] == chip]
        steps = {
            (row["phase"], row["exec"]): (row["flops"], row["bytes"]["total"], row["t_compute"],
                                          row["t_hbm"], row["t_step"])
            for row in rows
        }  # fmt: skip
        sizes = {
            (row["phase"], row["exec"]): _sizes(row["phase"], row["batch"], row["seq"],
                                                row["context"])
            for row in rows
        }  # fmt: skip
    except OSError as error:
        raise UserError(f"--compare {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--compare {path}: no report.json of --out ({error!r})") from error
    ops = _ops(path.with_name("ops.csv"), chip)
    return Side(name, chip, command,
                {key: SideStep(*row, ops.get(key, {}), sizes[key])
                 for key, row in steps.items()})  # fmt: skip


def _sizes(phase: str, batch: int, seq: int, context: int) -> str:
    """The sizes that a phase has; samples without tokens are counted as sequences of one."""
    if phase == "decode":
        return f"B = {batch:,}, L = {context:,}"
    return f"B = {batch:,}, S = {seq:,}" if seq > 1 else f"B = {batch:,}"


def _ops(path: Path, chip: str) -> dict[tuple[str, str], Groups]:
    found: dict[tuple[str, str], Groups] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["chip"] != chip:
                    continue
                groups = found.setdefault((row["workload"], row["exec"]), {})
                key = (row["phase"], pattern(row["module"]), row["op"].rpartition(".")[0])
                _add(groups, key, int(row["times"]), int(row["flops"]), int(row["bytes"]),
                     float(row["seconds"]))  # fmt: skip
    except OSError as error:
        raise UserError(
            f"--compare: ops.csv belongs beside {path.with_name('report.json')} ({error.strerror})"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--compare: {path} is no ops.csv of --out ({error!r})") from error
    return found


def _add(groups: Groups, key: Key, times: int, flops: float, moved: float, seconds: float) -> None:
    groups[key] = groups.get(key, NOTHING).plus(OpCost(times, flops, moved, seconds))
