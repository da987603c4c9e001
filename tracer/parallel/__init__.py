"""From one chip to many: plans, networks, pipeline schedules, expert placement."""

from .plan import Plan
from .ranks import StageTrace, rank_trace, stage_traces
from .sizes import Sizes

__all__ = ["Plan", "Sizes", "StageTrace", "rank_trace", "stage_traces"]
