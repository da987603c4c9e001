"""What rounding to FP8 costs: in theory, and measured on a tensor.

Theory, for a format with m mantissa bits (3 in E4M3, 2 in E5M2), in its normal range. A number is
f·2^e with f in [1, 2); rounding to nearest errs by up to half a step, uniform in ±2^-(m+1)·2^e.

* At most: 2^-(m+1)/(1 + 2^-(m+1)) of the number, just above a power of two: 5.9 % and 11.1 %.
* RMS of an element's relative error: 2^-(m+1)/√3 · √E[1/f²]. Data that spread over several binades
  have f log-uniform, density 1/(f·ln 2), so E[1/f²] = (3/8)/ln 2: 2.65 % and 5.31 %.
* Relative error in the Frobenius norm, √(ΣΔ²/Σx²): here large elements count for more, and the
  ratio within a binade is (2^-2(m+1)/3) / E[f²], E[f²] = (3/2)/ln 2: 2.45 % and 4.91 %.

No scale in any of it: one that is 2× larger moves every number one binade down, and the error with
it. So finer scaling gains nothing on a tensor whose elements all stay in the normal range, whatever
the block size. What depends on the scale is the end of the range: below `zero_below` of the largest
number of a group an element becomes zero, and in the binades above that it loses mantissa bits.

A fixed-point format is different: its step is a fraction of the largest number of the group, so
that smaller groups do gain. `fixed_point_error` is there for the comparison.
"""

import math
from typing import NamedTuple

import torch

from .scaling import Scheme, quantize
from .tiles import E4M3


def rounding_error(dtype: torch.dtype) -> float:
    """RMS relative error of an element, mantissa log-uniform and normal: eps/2/√3 · √(3/8/ln 2)."""
    return torch.finfo(dtype).eps / 2 / math.sqrt(3) * math.sqrt(3 / 8 / math.log(2))


def norm_error(dtype: torch.dtype) -> float:
    """Relative error in the Frobenius norm, under the same assumptions: eps/2/√3 / √(3/2/ln 2)."""
    return torch.finfo(dtype).eps / 2 / math.sqrt(3) / math.sqrt(3 / 2 / math.log(2))


def zero_below(dtype: torch.dtype) -> float:
    """Elements of at most this share of their group's largest become zero.

    Half of the smallest subnormal over the largest number: 2^-10/448 = 2.2e-6 in E4M3, 2^-17/57344
    = 1.3e-10 in E5M2. With powers of two as scales it is up to twice that.
    """
    info = torch.finfo(dtype)
    return info.tiny * info.eps / 2 / info.max


class Error(NamedTuple):
    """What a tensor lost, all as shares (0.02 is 2 %).

    norm: √(ΣΔ²/Σx²), which large elements rule.
    element: RMS of Δ/x over the elements that are not zero, one that became zero counting as 1.
    underflow: elements that became zero and were not.
    subnormal: elements that kept fewer mantissa bits than the format has, but are not zero.
    """

    norm: float
    element: float
    underflow: float
    subnormal: float


def error_of(
    x_MK: torch.Tensor,
    scheme: Scheme,
    dtype: torch.dtype = E4M3,
    *,
    power_of_two: bool = False,
) -> Error:
    """Quantise a matrix, bring it back, compare. Shares are of its elements that are not zero."""
    scaled = quantize(x_MK, scheme, dtype, power_of_two=power_of_two)
    x, back = x_MK.double(), scaled.dequantize().double()
    some = x != 0
    value = scaled.values.float().abs()
    count = some.sum()
    subnormal = some & (value > 0) & (value < torch.finfo(dtype).tiny)
    relative = (back[some] - x[some]) / x[some]
    return Error(
        norm=((back - x).norm() / x.norm()).item(),
        element=relative.square().mean().sqrt().item(),
        underflow=((some & (value == 0)).sum() / count).item(),
        subnormal=(subnormal.sum() / count).item(),
    )


def fixed_point_error(x_MK: torch.Tensor, scheme: Scheme, bits: int = 8) -> float:
    """Relative error in the norm of a signed integer format with the same scaling."""
    scaled = quantize(x_MK, scheme)
    step = scaled.scale_of_each().double() * torch.finfo(E4M3).max / (2 ** (bits - 1) - 1)
    x = x_MK.double()
    return (((x / step).round() * step - x).norm() / x.norm()).item()
