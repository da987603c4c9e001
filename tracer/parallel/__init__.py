"""From one chip to many: plans, networks, pipeline schedules, expert placement."""

from .plan import Plan
from .sizes import Sizes

__all__ = ["Plan", "Sizes"]
