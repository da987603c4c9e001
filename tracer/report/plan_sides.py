"""A plan to compare with: from a priced step, or from the files that an earlier run left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError
from ..predict.opcost import Key, OpCost

if TYPE_CHECKING:
    from .plan_study import PlanStudy

Kind = tuple[str, ...]  # part, axis, collective, type, algorithm


class PlanSide(NamedTuple):
    """One side of a comparison.

    Attributes:
        record: `as_dict()` of the step.
        parts: seconds that add up to the step.
        kernels: of a step by pass, module pattern and op; None where the file has none.
        messages: (calls, bytes, seconds, exposed) of a step by kind; None likewise.
        command: that made it; "" if it was priced for the comparison.
    """

    record: Mapping[str, Any]
    parts: Mapping[str, float]
    kernels: Mapping[Key, OpCost] | None
    messages: Mapping[Kind, tuple[float | None, ...]] | None
    command: str = ""

    @property
    def name(self) -> str:
        """What tells it from others."""
        r = self.record
        return f"{r['model']} on {r['gpus']:,} GPUs of {r['cluster']}, plan {r['plan']}"


def side_of_plan(study: PlanStudy) -> PlanSide:
    """The side that `study` is."""
    return PlanSide(
        study.step.as_dict(), dict(study.detail.parts), study.kernels,
        {
            s.kind: (None if s.bytes is None else s.calls, s.bytes, s.seconds, s.exposed)
            for s in study.detail.sent
        },
        study.command,
    )  # fmt: skip


def names_a_file(other: str) -> Path | None:
    """The report.json or plan.json that `other` names, itself or as its folder."""
    path = Path(other)
    for name in ("report.json", "plan.json"):
        if (path / name).is_file():
            return path / name
    return path if path.name.endswith(".json") and path.name != "config.json" else None


def plan_side_from(path: Path) -> PlanSide:
    """What `--out` left: report.json, or plan.json, which has no kernels and no messages.

    Raises:
        UserError: it is missing or is something else.
    """
    try:
        document = json.loads(path.read_text())
        record = document.get("plan") if "tables" in document else document
        if not isinstance(record, dict):
            raise UserError(f"--compare {path}: a report of one chip, not of a plan")
        for name in ("kind", "model", "cluster", "plan", "gpus", "memory"):
            _ = record[name]
        if "tables" not in document:
            return PlanSide(record, _parts(record), None, None)
        tables = document["tables"]
        kernels = {
            (row["pass"], row["module"], row["op"]): OpCost(
                row["times"], row["flops"], row["bytes"], row["seconds"]
            )
            for row in _rows(tables, "kernels")
        }
        messages: dict[Kind, tuple[float | None, ...]] = {
            (row["part"], row["axis"], row["collective"], row["type"] or "",
             row["algorithm"] or ""):
            (row["calls"], row["bytes"], row["seconds"], row["exposed"])
            for row in _rows(tables, "messages")
        }  # fmt: skip
        parts = {row["part"]: row["seconds"] for row in _rows(tables, "breakdown")}
        return PlanSide(record, parts, kernels, messages, document["command"])
    except OSError as error:
        raise UserError(f"--compare {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--compare {path}: no report.json of a plan ({error!r})") from error


def _rows(tables: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    table = tables.get(name)
    if table is None:  # a table that would have been empty
        return []
    keys = [column["key"] for column in table["columns"]]
    found = [dict(zip(keys, row, strict=True)) for row in table["rows"]]
    wanted = {
        "kernels": (), "messages": ("type", "algorithm", "calls", "bytes", "exposed"),
    }.get(name, ())  # fmt: skip
    return [dict.fromkeys(wanted) | row for row in found]


def _parts(record: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of a plan.json, as far as it has them."""
    from ..predict.detail import BUBBLE, COMMUNICATION, COMPUTE, OPTIMIZER

    known = record.get("breakdown_s")
    if known:
        return {COMPUTE: known["compute"], COMMUNICATION: known["communication"],
                BUBBLE: known["bubble"], OPTIMIZER: known["optimizer"]}  # fmt: skip
    return {}
