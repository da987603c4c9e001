"""FP8 by its definition, in plain Python and NumPy: no torch cast, nothing from `tracer`.

arXiv 2209.05433: value = (-1)^s · 2^(e - bias) · 1.m, subnormal 2^(1 - bias) · 0.m for e = 0. E4M3:
bias 7, only S.1111.111 is NaN, no Inf. E5M2: bias 15, exponent 31 is Inf and NaN as in IEEE 754.
"""

import math

import numpy as np

BITS = {"e4m3": (4, 3, 7), "e5m2": (5, 2, 15)}


def positive_values(name: str) -> np.ndarray:
    """All finite values >= 0 by code, 0, 1, 2, ...: they ascend."""
    exponent_bits, mantissa_bits, bias = BITS[name]
    values = []
    for code in range(1 << (exponent_bits + mantissa_bits)):
        exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        all_ones = exponent == (1 << exponent_bits) - 1
        if all_ones and (name == "e5m2" or mantissa == (1 << mantissa_bits) - 1):
            break
        fraction = mantissa / (1 << mantissa_bits)
        value = (1 + fraction) * 2.0 ** (exponent - bias) if exponent else fraction * 2.0 ** (
            1 - bias
        )  # fmt: skip
        values.append(value)
    return np.array(values)


def round_to(x: np.ndarray, name: str) -> np.ndarray:
    """Nearest value, ties to the even code; of numbers up to the largest value."""
    values = positive_values(name)
    size = np.abs(x.astype(np.float64))
    assert (size <= values[-1] * (1 + 2**-20)).all()
    above = np.minimum(np.searchsorted(values, size), len(values) - 1)
    below = np.maximum(above - 1, 0)
    middle = (values[above] + values[below]) / 2  # exact: a few bits
    up = (size > middle) | ((size == middle) & (above % 2 == 0))
    return np.copysign(np.where(up, values[above], values[below]), x)


def quantize(
    x: np.ndarray, rows: int, columns: int, name: str, power_of_two: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Values and the scale of every element, by a loop over groups of rows × columns."""
    largest = np.float32(positive_values(name)[-1])
    values, scales = np.empty(x.shape), np.empty(x.shape, np.float32)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            group = x[i : i + rows, j : j + columns]
            scale = np.maximum(np.abs(group).max(), np.float32(1e-20)) / largest
            if power_of_two:
                scale = np.float32(2.0 ** math.ceil(math.log2(scale)))  # FP64: exact enough
            values[i : i + rows, j : j + columns] = round_to(group / scale, name)
            scales[i : i + rows, j : j + columns] = scale
    return values, scales
