"""Ledger + chip -> Times."""

from .roofline import KernelTime, Times, time_ledger
from .timing import Timing

__all__ = ["KernelTime", "Times", "Timing", "time_ledger"]
