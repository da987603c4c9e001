"""This plan beside another: step, memory, throughput, messages, then op by op."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..blocks import Column, Section, Table, Text, code, section_of, table_of
from ..plan_sides import PlanSide, side_of_plan
from ..plan_study import PlanStudy
from ..sections.comparison import op_differences

_PAIR = (Column("this", "this", "s"), Column("other", "other", "s"))
_CHANGES = (Column("difference", "difference", "s"), Column("change", "change", "delta"))


def section(study: PlanStudy) -> Section | None:
    """Absent without `--compare`."""
    other = study.compared
    if other is None:
        return None
    mine = side_of_plan(study)
    made = f", from {code(other.command)}" if other.command else ""
    return section_of(
        "Compared with another plan",
        Text(
            f"**this** is {_name(mine)}; **other** is {_name(other)}{made}. A difference is this "
            "less the other, a change relative to the other." + _cautions(mine, other)
        ),
        _results(mine, other),
        _parts(mine.parts, other.parts),
        _memory(mine.record, other.record),
        _messages(mine, other),
        op_differences("kernels", mine.kernels or {}, other.kernels)
        if other.kernels is not None
        else Text("The other side is a plan.json, which has no kernels and no messages."),
    )


def _name(side: PlanSide) -> str:
    r = side.record
    return (f"{code(r['model'])} on {r['gpus']:,} GPUs of {code(r['cluster'])}, "
            f"{code(r['plan'])}")  # fmt: skip


def _cautions(mine: PlanSide, other: PlanSide) -> str:
    found = ""
    for name, side in (("This", mine), ("The other", other)):
        if not side.record["feasible"]:
            found += f" **{name} plan does not fit: its seconds are hypothetical.**"
    if mine.record["kind"] != other.record["kind"]:
        found += f" One is {mine.record['kind']}, the other {other.record['kind']}."
    if _tokens(mine.record) != _tokens(other.record):
        found += " The steps have different numbers of tokens: compare tokens/s, not seconds."
    return found


def _tokens(r: Mapping[str, Any]) -> tuple[Any, ...]:
    if r["kind"] == "training":
        return r["global_batch"], r["seq"]
    return r["batch_per_data_rank"], r["seq"], r["context"], r["gpus"]


_RESULTS = (
    ("gpus", "GPUs"), ("step_s", "step, s"), ("ttft_s", "TTFT, s"), ("tpot_s", "TPOT, s"),
    ("tokens_per_s", "tokens/s"), ("tokens_per_s_per_gpu", "tokens/s a GPU"),
    ("mfu_causal", "MFU, causal"), ("mfu_full", "MFU, not causal"),
    ("mfu_causal_with_mtp", "MFU with MTP's FLOPs, causal"),
    ("bubble_share", "bubble share of the pipeline"),
    ("gpu_hours_per_trillion_tokens", "GPU hours for 1e12 tokens"), ("dollars", "USD of the run"),
    ("largest_batch", "largest batch of a data rank"),
    ("longest_context", "longest context of the batch"), ("expert_skew", "busiest expert rank"),
)  # fmt: skip


def _results(mine: PlanSide, other: PlanSide) -> Table | None:
    rows = []
    for key, name in _RESULTS:
        a, b = mine.record.get(key), other.record.get(key)
        if a is not None or b is not None:
            more = (None, None) if a is None or b is None else _difference(a, b)[2:]
            rows.append((name, a, b, *more))
    return table_of(
        "compared_results",
        "What both come to; what does not fit has no throughput.",
        (Column("what", "what"), Column("this", "this", "number"),
         Column("other", "other", "number"), Column("difference", "difference", "number"),
         Column("change", "change", "delta")),
        rows,
    )  # fmt: skip


def _difference(a: float, b: float) -> tuple[float, float, float, float | None]:
    """Both, how much more the first is, and relative to the other."""
    return a, b, _more(a, b), _more(a, b) / b if b else None


def _more(a: float, b: float) -> float:
    """Zero where the two are sums of the same numbers in another order."""
    return 0.0 if math.isclose(a, b, rel_tol=1e-12) else a - b


def _total(name: str, rows: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    a, b, more = (sum(row[column] for row in rows) for column in (1, 2, 3))
    return name, a, b, more, a / b - 1 if b else None


def _parts(mine: Mapping[str, float], other: Mapping[str, float]) -> Table | None:
    if not other:
        return None
    names = [n for n in dict.fromkeys([*mine, *other]) if mine.get(n) or other.get(n)]
    rows = [(name, *_difference(mine.get(name, 0.0), other.get(name, 0.0))) for name in names]
    return table_of(
        "compared_breakdown", "Seconds of a step.", (Column("part", "part"), *_PAIR, *_CHANGES),
        rows, _total("step", rows),
    )  # fmt: skip


def _memory(mine: Mapping[str, Any], other: Mapping[str, Any]) -> Table | None:
    a, b = mine["memory"], other["memory"]
    names = [n for n in ("weights", "gradients", "optimizer", "activations", "working")
             if a[n] or b[n]]  # fmt: skip
    rows = [
        ("activations and caches" if n == "activations" else n, *_difference(a[n], b[n]))
        for n in names
    ]
    return table_of(
        "compared_memory",
        "Bytes of the fullest GPU. "
        f"This has {a['capacity'] / 1e9:,.4g} GB, the other {b['capacity'] / 1e9:,.4g} GB.",
        (Column("part", "part"), Column("this", "this", "B"), Column("other", "other", "B"),
         Column("difference", "difference", "B"), Column("change", "change", "delta")),
        rows, _total("all", rows),
    )  # fmt: skip


def _messages(mine: PlanSide, other: PlanSide) -> Table | None:
    if mine.messages is None or other.messages is None:
        return None
    none: tuple[float | None, ...] = (0.0, 0.0, 0.0, 0.0)
    rows: list[tuple[Any, ...]] = []
    for kind in dict.fromkeys([*mine.messages, *other.messages]):
        a, b = mine.messages.get(kind, none), other.messages.get(kind, none)
        pairs = [value for pair in zip(a, b, strict=True) for value in pair]
        more = [_more(a[i] or 0.0, b[i] or 0.0) for i in (2, 3)]
        rows.append((*(text or None for text in kind), *pairs, *more))
    return table_of(
        "compared_messages",
        "Messages of a step by kind, of one GPU.",
        (
            Column("part", "when"), Column("axis", "group", "code"),
            Column("collective", "collective", "code"), Column("type", "type"),
            Column("algorithm", "algorithm"), Column("calls", "calls, this", "times"),
            Column("other_calls", "other", "times"), Column("bytes", "bytes, this", "B"),
            Column("other_bytes", "other", "B"), Column("seconds", "time, this", "s"),
            Column("other_seconds", "other", "s"), Column("exposed", "exposed, this", "s"),
            Column("other_exposed", "other", "s"), Column("more", "more time", "s"),
            Column("more_exposed", "more exposed", "s"),
        ),
        rows,
    )  # fmt: skip
