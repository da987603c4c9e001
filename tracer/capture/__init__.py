"""module + inputs -> Trace. The only stage that dispatches torch ops.

The records need no torch, so neither does importing them: `Capture` is imported on first use.
"""

from typing import TYPE_CHECKING, Any

from .records import Call, Fold, Op, Parameter, Storage, TensorRef, Trace

if TYPE_CHECKING:
    from .capture import Capture

__all__ = ["Call", "Capture", "Fold", "Op", "Parameter", "Storage", "TensorRef", "Trace"]


def __getattr__(name: str) -> Any:
    if name == "Capture":
        from .capture import Capture

        return Capture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
