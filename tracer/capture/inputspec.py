"""`name:dtype[B,S,64]`: an input of a person's own module, on the command line.

ids:int64[B,S]              keyword argument, batch by sequence, zeros
x:bf16[B,3,224,224]         numbers are numbers
fp32[B,4*S]                 without a name: positional, in the order given
mask:bool[L]                B, S, L are --batch, --seq, --context; * multiplies
scale:fp32[]                a scalar
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError, did_you_mean

_SHORT = {
    "bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16", "fp32": "float32",
    "f32": "float32", "float": "float32", "fp64": "float64", "f64": "float64", "i64": "int64",
    "long": "int64", "i32": "int32", "int": "int32", "i16": "int16", "i8": "int8", "u8": "uint8",
    "fp8": "float8_e4m3fn",
}  # fmt: skip
_FULL = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
    "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
_FORM = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<dtype>\w+)\[(?P<dims>[^\[\]]*)\]")
_DIMENSION = re.compile(r"(?:\d+|[BSL])(?:\*(?:\d+|[BSL]))*")


class InputSpec(NamedTuple):
    """One `--input`: `dims` are products of numbers and B, S, L."""

    text: str
    name: str | None
    dtype: torch.dtype
    dims: tuple[str, ...]

    def shape(self, batch: int, seq: int, context: int) -> tuple[int, ...]:
        """The dimensions as numbers."""
        sizes = {"B": batch, "S": seq, "L": context}
        return tuple(
            math.prod(sizes.get(factor) or int(factor) for factor in dim.split("*"))
            for dim in self.dims
        )

    def tensor(self, batch: int, seq: int, context: int, device: str) -> Tensor:
        """Zeros of that shape."""
        return torch.zeros(self.shape(batch, seq, context), dtype=self.dtype, device=device)


def parse_input(text: str) -> InputSpec:
    """Read one spec.

    Raises:
        UserError: it does not have the form, names no dtype, or a dimension is not a product of
            numbers and B, S, L; repeats what was given.
    """
    match = _FORM.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UserError(f"--input {text!r}: write NAME:DTYPE[DIMS], such as 'ids:int64[B,S]'")
    dtype = _SHORT.get(match["dtype"], match["dtype"])
    if dtype not in _FULL:
        raise UserError(
            f"--input {text!r}: no dtype {match['dtype']!r}; "
            f"{did_you_mean(match['dtype'], {*_SHORT, *_FULL})}"
        )
    dims = tuple(match["dims"].split(",")) if match["dims"] else ()
    for dim in dims:
        if not _DIMENSION.fullmatch(dim):
            raise UserError(
                f"--input {text!r}: dimension {dim!r} is no product of numbers and "
                "B (--batch), S (--seq), L (--context)"
            )
    return InputSpec(text, match["name"], getattr(torch, dtype), dims)
