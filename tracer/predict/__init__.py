"""A step: time, memory and what limits it; of one chip, or of a plan over many."""

from .inventory import Inventory, take_inventory
from .memory import Memory, memory
from .step import Step, predict

__all__ = ["Inventory", "Memory", "Step", "memory", "predict", "take_inventory"]
