"""One formula per op, a file a family. Importing this package registers them all."""

from . import (
    attention,
    conv,
    deepseek,
    grouped,
    indexing,
    matmul,
    normalise,
    optimizers,
    pointwise,
    sorting,
)

__all__ = [
    "attention",
    "conv",
    "deepseek",
    "grouped",
    "indexing",
    "matmul",
    "normalise",
    "optimizers",
    "pointwise",
    "sorting",
]
