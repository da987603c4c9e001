"""A PyTorch dispatch-tracing profiler: run a model once without data, then ask what limits it.

    import tracer

    with tracer.trace(model) as t:
        model(x).sum().backward()
    print(t)                          # FLOPs, bytes by role, largest modules
    print(t.on("h200_sxm").why())     # what its time on a chip waits for

Names are imported on first use: `tracer --help` and chip listings cost no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracer.hardware import Chip, load_chip

    from .capture import Trace
    from .cost import Conventions, Cost, Ledger, Work, cost, price
    from .errors import UserError
    from .machine import Timing
    from .predict import Step, predict
    from .session import Session, load, trace

__all__ = [
    "Chip",
    "Conventions",
    "Cost",
    "Ledger",
    "Session",
    "Step",
    "Timing",
    "Trace",
    "UserError",
    "Work",
    "cost",
    "load",
    "load_chip",
    "predict",
    "price",
    "trace",
]

_HOME = {
    "Chip": "hardware",
    "load_chip": "hardware",
    "Trace": "capture",
    "Conventions": "cost",
    "Cost": "cost",
    "Ledger": "cost",
    "Work": "cost",
    "cost": "cost",
    "price": "cost",
    "UserError": "errors",
    "Timing": "machine",
    "Step": "predict",
    "predict": "predict",
    "Session": "session",
    "load": "session",
    "trace": "session",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
