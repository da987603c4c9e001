"""Ops that torch runs for numbers only, and what has the same result for symbolic sizes.

The shape functions of these ops read sizes or strides as plain integers, which fixes every symbol
in them at one value. What stands in makes an empty tensor of the shape, strides and dtype of the
result; the record still names the op itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import compat_fakes
from .symbolic import NotSymbolic, here

aten = torch.ops.aten


def _pad(x: Tensor, pad: Sequence[Any], value: Any = 0) -> Tensor:
    """`pad` holds what is added before and behind, a pair a dimension, the last one first."""
    shape = list(x.shape)
    for i in range(len(pad) // 2):
        shape[-1 - i] = shape[-1 - i] + pad[2 * i] + pad[2 * i + 1]
    return x.new_empty(shape)


def _baddbmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """[N, R, K] times [N, K, C]."""
    return a.new_empty((a.shape[0], a.shape[1], b.shape[2]))


def _complex(real: Tensor, imaginary: Tensor) -> Tensor:
    """Two real tensors, broadcast, as one."""
    like = torch.add(real, imaginary)
    dtype = torch.promote_types(like.dtype, torch.complex32)
    return like.new_empty_strided(like.size(), like.stride(), dtype=dtype)


STAND_INS: Mapping[Any, Callable[..., Any]] = {
    aten.constant_pad_nd.default: _pad,
    aten.baddbmm.default: _baddbmm,
    aten.complex.default: _complex,
    aten.polar.default: _complex,
}


def runner(func: Any) -> Callable[..., Any]:
    """What to run for an op of a symbolic run: itself, or what stands in for it.

    Raises (when called):
        NotSymbolic: data decide the size of the result.
    """
    if torch.Tag.dynamic_output_shape in getattr(func, "tags", ()):
        return functools.partial(_of_known_size, func)
    return STAND_INS.get(func, func)


def _of_known_size(func: Any, *args: Any, **kwargs: Any) -> Any:
    out = func(*args, **kwargs)
    if compat_fakes.depends_on_data(out):
        raise NotSymbolic(f"data decide the size of the result{here()}")
    return out


def without_whole_slices(func: Any, args: Any) -> tuple[Any, Any]:
    """The derivative of `x[:, 0:]`, which is no slice for a number and one for a symbol.

    Torch leaves a slice over all of a dimension out where it knows the size; with a symbol it takes
    the slice, and its backward fills a tensor that nothing is missing in. It becomes an alias.
    """
    if func is torch.ops.aten.slice_backward.default:
        gradient, sizes = args[0], args[1]
        if len(gradient.shape) == len(sizes) and all(
            a is b or _one(a) == _one(b) for a, b in zip(gradient.shape, sizes, strict=True)
        ):
            return torch.ops.aten.alias.default, (gradient,)
    return func, args


def _one(size: Any) -> Any:
    return size.node.expr if type(size) is torch.SymInt else size
