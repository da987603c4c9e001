"""Ledger + chip -> Times."""

from .roofline import KernelTime, Times, Timing, time_ledger

__all__ = ["KernelTime", "Times", "Timing", "time_ledger"]
