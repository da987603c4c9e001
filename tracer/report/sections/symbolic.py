"""FLOPs and bytes of each module as formulas in B, S and L, read off traces with symbols."""

from __future__ import annotations

import math
import re

from ..blocks import Column, Section, Text, section_of, table_of
from ..facts import detailed, item_of
from ..records import ClosedRange
from ..summary import Study
from ..text import listed, plural

_SIZES = {"S": "S tokens a sequence", "L": "L keys that a decoded token attends"}


def section(study: Study) -> Section | None:
    """A table a phase; absent where nothing could be traced with symbols."""
    if not study.sublayers:
        return None
    phases = dict.fromkeys(line.phase for line in study.sublayers)
    shown = {
        phase: " ".join(s.flops + " " + s.bytes for s in study.sublayers if s.phase == phase)
        for phase in phases
    }
    conditions = [
        f"{limits.phase} for {_conditions(limits)}"
        for limits in study.closed_ranges or ()
        if limits.phase in phases and limits.execution == detailed(study)
    ]
    held = f" They hold in {'; '.join(conditions)}." if conditions else ""
    missing = [p for p in dict.fromkeys(s.workload.phase for s in study.steps) if p not in phases]
    left = f" There are none of {listed(missing)}." if missing else ""
    names = _sizes_in(" ".join(shown.values()))
    meanings = {"B": f"B {'samples' if item_of(study) == 'sample' else 'sequences'}"} | _SIZES
    sizes = ", ".join(text for name, text in meanings.items() if name in names)
    distinct = (
        " `distinct(E, k, T)` is the experts that T tokens hit, E (1 - (1 - k/E)^T)."
        if any("distinct(" in text for text in shown.values())
        else ""
    )
    return section_of(
        "Formulas by module",
        Text(
            f"Read off a trace whose sizes were symbols: {sizes or 'no size bears on it'}. "
            f"Multiply by **times** for all layers.{distinct}{held}{left}"
        ),
        *(
            table_of(
                f"formulas_{phase}",
                f"{phase.capitalize()}: FLOPs and bytes of one run of each op with matrix FLOPs, "
                "most FLOPs first.",
                (
                    Column("module", "module", "module"),
                    Column("op", "op", "op"),
                    Column("times", "times", "count"),
                    Column("flops", "FLOPs of one", "code"),
                    Column("bytes", "bytes of one", "code"),
                ),
                [line[1:] for line in study.sublayers if line.phase == phase],
            )
            for phase in phases
        ),
    )


def _conditions(limits: ClosedRange) -> str:
    """The conditions in words, the bounds of one size once."""
    least: dict[str, int] = {}
    others = []
    for words, _ in limits.conditions:
        bound = re.fullmatch(r"(?:(\d+)·)?([BSL]) (>=?) (\d+)", words)
        if bound is None:
            others.append(words)
            continue
        factor, number = int(bound[1] or 1), int(bound[4])
        low = -(-number // factor) if bound[3] == ">=" else number // factor + 1
        least[bound[2]] = max(least.get(bound[2], 0), low)
    told = dict.fromkeys(_multiple(words) for words in others)
    short = [words for words in told if words and not re.search("floor_div|mod|min|max", words)]
    more = sum(bool(words) for words in told) - len(short)
    rest = [f"{plural(more, 'condition')} of whole division, which the sliders of the page check"]
    bounds = [f"{name} >= {low:,}" for name, low in least.items()]
    return ", ".join([*bounds, *short, *(rest if more else [])]) or "all sizes"


def _multiple(words: str) -> str:
    """What 2048·B divides, 4·B·S, as: S a multiple of 512. Nothing where every size is one."""
    found = re.fullmatch(r"(\d+)((?:·[BSL])*) divides (\d+)((?:·[BSL])+)", words)
    if found is None:
        return words
    left, right = found[2].split("·")[1:], found[4].split("·")[1:]
    if any(right.count(name) < left.count(name) for name in left):
        return words
    for name in left:
        right.remove(name)
    factor = int(found[1]) // math.gcd(int(found[1]), int(found[3]))
    return f"{'·'.join(right)} a multiple of {factor:,}" if factor > 1 and right else ""


def _sizes_in(text: str) -> set[str]:
    return set(re.findall(r"\b[BSL]\b", text))
