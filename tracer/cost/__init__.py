"""Trace -> Ledger: FLOPs by precision, bytes by role, one formula per op."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

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


class _CallableModule(ModuleType):
    """Once imported, this package hides the decorator of its name, so it passes calls on."""

    def __call__(self, *names: str) -> Callable[..., Any]:
        return cost(*names)


sys.modules[__name__].__class__ = _CallableModule
