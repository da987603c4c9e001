"""From one chip to many: plans, networks, pipeline schedules, expert placement."""

from .memory import Headroom, RankMemory, plan_memory, rank_memory
from .plan import Plan
from .ranks import StageTrace, rank_trace, stage_traces
from .sizes import Sizes

__all__ = [
    "Headroom",
    "Plan",
    "RankMemory",
    "Sizes",
    "StageTrace",
    "plan_memory",
    "rank_memory",
    "rank_trace",
    "stage_traces",
]
