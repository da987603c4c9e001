"""Seconds of a kernel from its shapes, by family: pure functions over numbers or arrays.

Every family has a handful of named constants (`constants`), whose values are data of a chip. What
the formulas are and are not: fitted forms with a physical reading, checked against measurements by
`python -m tracer.validate`; not a simulation of the chip.
"""

from .attention import Cached, Prompt, decode, prefill
from .collectives import collective
from .constants import (
    FAMILIES,
    NETWORK,
    SHARES,
    Collective,
    Decode,
    Elementwise,
    ExpertExchange,
    Gemm,
    GemmFp8,
    Grouped,
    Power,
    Prefill,
)
from .elementwise import CLASSES, CONTIGUOUS, GATHER, REDUCE, SCALAR, elementwise
from .gemm import gemm, gemm_fp8, quantise
from .grouped import layer, product
from .rates import Estimate, Num, Rates

__all__ = [
    "CLASSES",
    "CONTIGUOUS",
    "FAMILIES",
    "GATHER",
    "NETWORK",
    "REDUCE",
    "SCALAR",
    "SHARES",
    "Cached",
    "Collective",
    "Decode",
    "Elementwise",
    "Estimate",
    "ExpertExchange",
    "Gemm",
    "GemmFp8",
    "Grouped",
    "Num",
    "Power",
    "Prefill",
    "Prompt",
    "Rates",
    "collective",
    "decode",
    "elementwise",
    "gemm",
    "gemm_fp8",
    "layer",
    "prefill",
    "product",
    "quantise",
]  # fmt: skip
