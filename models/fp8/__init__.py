"""FP8 numerics in plain PyTorch: what DeepSeek-V3 trains and serves in, and what it is up against.

One file, one thing: `tiles` the 1×128 and 128×128 scaling of the paper, `reference` the linears of
the reference model over it; `scaling` all four schemes behind one call, `accumulate` the sum as
Hopper's tensor cores make it, `layer` a linear with FP32 master weights and a free choice of
scheme, formats and sum; `scaler` loss scaling; `error` what rounding costs, in theory and measured.
"""

from .accumulate import hopper_sum
from .error import Error, error_of, fixed_point_error, norm_error, rounding_error, zero_below
from .layer import MasterLinear, Recipe
from .reference import (
    GroupedLinearFn,
    LinearFn,
    grouped_input_gradient,
    grouped_mm,
    grouped_weight_gradient,
    grouped_wgrad,
)
from .scaler import LossScaler
from .scaling import Fp8Error, Scaled, product, quantize
from .tiles import (
    E4M3,
    E4M3_MAX,
    E5M2,
    SMALLEST_AMAX,
    TILE,
    Quantized,
    dequantize,
    mm,
    quantize_blocks,
    quantize_columns,
    quantize_rows,
    tiles,
)

__all__ = [
    "E4M3",
    "E4M3_MAX",
    "E5M2",
    "SMALLEST_AMAX",
    "TILE",
    "Error",
    "Fp8Error",
    "GroupedLinearFn",
    "LinearFn",
    "LossScaler",
    "MasterLinear",
    "Quantized",
    "Recipe",
    "Scaled",
    "dequantize",
    "error_of",
    "fixed_point_error",
    "grouped_input_gradient",
    "grouped_mm",
    "grouped_weight_gradient",
    "grouped_wgrad",
    "hopper_sum",
    "mm",
    "norm_error",
    "product",
    "quantize",
    "quantize_blocks",
    "quantize_columns",
    "quantize_rows",
    "rounding_error",
    "tiles",
    "zero_below",
]
