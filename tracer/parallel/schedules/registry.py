"""The schedules by name. A new one is a function (ranks, microbatches) -> Schedule and a line."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from types import MappingProxyType

from ...errors import UserError, did_you_mean
from .dualpipe import dualpipe, dualpipev
from .orders import gpipe, interleaved_1f1b, one_f_one_b, zb1p, zbv
from .schedule import Schedule

SCHEDULES: MappingProxyType[str, Callable[..., Schedule]] = MappingProxyType(
    {
        "gpipe": gpipe,
        "1f1b": one_f_one_b,
        "interleaved_1f1b": interleaved_1f1b,
        "zb1p": zb1p,
        "zbv": zbv,
        "dualpipe": dualpipe,
        "dualpipev": dualpipev,
    }
)


@lru_cache(maxsize=256)
def build(name: str, ranks: int, microbatches: int, stages_per_rank: int | None = None) -> Schedule:
    """The schedule `name`, checked. The same arguments give the same object.

    Raises:
        UserError: a name that is not in SCHEDULES, sizes that the schedule cannot have, stages a
            rank for a schedule that has a fixed number.
    """
    if name not in SCHEDULES:
        raise UserError(f"no pipeline schedule {name!r}: {did_you_mean(name, SCHEDULES)}")
    function = SCHEDULES[name]
    if stages_per_rank is None:
        return function(ranks, microbatches).check()
    if "stages_per_rank" not in signature(function).parameters:
        free = [n for n, f in SCHEDULES.items() if "stages_per_rank" in signature(f).parameters]
        raise UserError(
            f"{name} has a fixed number of stages a rank, {stages_per_rank} were asked for; "
            f"free are {' and '.join(free)}"
        )
    return function(ranks, microbatches, stages_per_rank).check()
