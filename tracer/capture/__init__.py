"""module + inputs -> Trace. The only stage that dispatches torch ops."""

from .capture import Capture
from .records import Call, Fold, Op, Parameter, Storage, TensorRef, Trace

__all__ = ["Call", "Capture", "Fold", "Op", "Parameter", "Storage", "TensorRef", "Trace"]
