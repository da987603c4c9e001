"""Trace -> Ledger: FLOPs by precision, bytes by role, one formula per op."""

from .conventions import Conventions
from .ledger import EFFICIENT, EXECUTIONS, NAIVE, Kernel, Ledger, Part, price
from .registry import cost, registry
from .work import ROLES, Cost, Work

__all__ = [
    "EFFICIENT",
    "EXECUTIONS",
    "NAIVE",
    "ROLES",
    "Conventions",
    "Cost",
    "Kernel",
    "Ledger",
    "Part",
    "Work",
    "cost",
    "price",
    "registry",
]
