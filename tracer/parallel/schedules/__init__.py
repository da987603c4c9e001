"""Pipeline schedules as lists of actions a rank, and the time that any of them takes.

* `build(name, ranks, microbatches)` -> `Schedule`: who runs what in which order, checked.
* `simulate(schedule, durations, held)` -> `Timeline`: start and end of every slot.
* `price(name, ranks, microbatches, durations, held)` -> `PipelineStep`: the same sums, fast.
"""

from __future__ import annotations

from .durations import Durations, Held
from .registry import SCHEDULES, build
from .schedule import KINDS, Action, Part, Schedule
from .simulate import PipelineStep, Slot, Timeline, peak_bytes, simulate
from .steady import price, shortest

__all__ = [
    "KINDS",
    "SCHEDULES",
    "Action",
    "Durations",
    "Held",
    "Part",
    "PipelineStep",
    "Schedule",
    "Slot",
    "Timeline",
    "build",
    "peak_bytes",
    "price",
    "shortest",
    "simulate",
]
