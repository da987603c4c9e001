"""Results of ops on meta tensors, found once for all arguments of one form.

A meta tensor has a shape, strides and a dtype, and what an op makes of them follows from those of
its arguments. Many of torch's shape functions are written in Python (`clamp` takes 0.8 ms), and the
layers of a model, its stages and the cuts of a plan ask for the same ones again and again. A result
that is made from memory has a storage of its own, as the op's has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import compat
from .grounds import META

PLAIN = (int, float, bool, complex)
NAMED = (str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
DATA = (
    torch.Tag.nondeterministic_seeded,
    torch.Tag.dynamic_output_shape,
    torch.Tag.data_dependent_output,
)


class _Form(NamedTuple):
    """All of a meta tensor that shows in the result of an op."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=META)


class _Unlike(Exception):
    """An argument that is no meta tensor of the plain kind, or no plain value."""


@functools.lru_cache(maxsize=4096)
def runner(func: Any) -> Callable[..., Any]:
    """What to run for an op of a run on meta tensors: itself, or a look into memory first."""
    schema = getattr(func, "_schema", None)
    if schema is None or func.namespace != "aten" or any(tag in func.tags for tag in DATA):
        return func  # type: ignore[no-any-return]
    if schema.name.startswith("aten::_foreach_"):
        return functools.partial(_run_lists if schema.returns else _write_lists, func)
    if any(item.alias_info is not None for item in (*schema.arguments, *schema.returns)):
        return func  # type: ignore[no-any-return]
    return functools.partial(_run, func)


def empty_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.empty_like` where no record is wanted: for meta tensors it is written in Python."""
    empty: Tensor = runner(torch.ops.aten.empty_like.default)(tensor, dtype=dtype)
    return empty


def _write_lists(func: Any, *args: Any, **kwargs: Any) -> None:
    """An op in place on lists, as optimizers use for thousands of parameters at once.

    On meta it writes nothing and returns nothing; of lists of floats that are alike in shape it has
    nothing to complain of either.
    """
    lists = [value for value in args if type(value) is list]
    shapes = [t.shape for t in lists[0]]
    if not all(_floats(one, shapes) for one in lists):
        func(*args, **kwargs)


def _run_lists(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An op on lists that returns one: each of its results follows from the items in one place.

    The parameters of a model have few forms, so it is run on places that are not alike.
    """
    try:
        lists = [[_form(item) for item in value] if type(value) is list else None for value in args]
        rows = list(zip(*[forms for forms in lists if forms is not None], strict=True))
        columns = zip(*dict.fromkeys(rows), strict=True)
        few = tuple([_form(v) if f is None else (list, next(columns))
                     for v, f in zip(args, lists, strict=True)])  # fmt: skip
        named = tuple([(name, _form(value)) for name, value in kwargs.items()])
    except (_Unlike, ValueError, StopIteration):  # foreign items, lists of two lengths, empty ones
        return func(*args, **kwargs)
    found = _outcome(func, few, named, torch.get_default_dtype())
    if found is None or isinstance(found, _Form):
        return func(*args, **kwargs)
    form_of = dict(zip(dict.fromkeys(rows), found, strict=True))
    return [form_of[row].tensor() for row in rows]


def _floats(values: list[Any], shapes: list[torch.Size]) -> bool:
    """Whether these are meta tensors of `shapes`, or as many numbers, all of them floats."""
    if len(values) != len(shapes):
        return False
    return all(
        type(v) is float
        or (type(v) in (Tensor, nn.Parameter) and v.is_meta and v.shape == shape
            and v.is_floating_point())
        for v, shape in zip(values, shapes, strict=True)
    )  # fmt: skip


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        forms = tuple([_form(value) for value in args])
        named = tuple([(name, _form(value)) for name, value in kwargs.items()])
    except _Unlike:
        return func(*args, **kwargs)
    found = _outcome(func, forms, named, torch.get_default_dtype())
    if found is None:
        return func(*args, **kwargs)
    return found.tensor() if isinstance(found, _Form) else tuple([form.tensor() for form in found])


def _form(value: Any) -> Any:
    """What a result can depend on, hashable; 1, 1.0 and True are not the same."""
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        if value.is_meta and value.layout is torch.strided:
            return _Form(value.shape, value.stride(), value.dtype)
        raise _Unlike
    if kind in PLAIN:
        return kind, value
    if kind is list or kind is tuple:
        return list, tuple([_form(item) for item in value])
    if isinstance(value, NAMED):
        return value
    raise _Unlike


def _value(form: Any) -> Any:
    """An argument of this form."""
    if type(form) is _Form:
        return form.tensor()
    if type(form) is tuple:
        kind, value = form
        return [_value(item) for item in value] if kind is list else value
    return form


@functools.lru_cache(maxsize=1 << 14)
def _outcome(
    func: Any, forms: tuple[Any, ...], named: tuple[tuple[str, Any], ...], default: torch.dtype
) -> _Form | tuple[_Form, ...] | None:
    """The form of the result, or of each; None where it is no new tensor with memory of its own."""
    args, kwargs = [_value(form) for form in forms], {name: _value(form) for name, form in named}
    taken = {_storage(t) for t in compat.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
    out = func(*args, **kwargs)
    made = []
    for result in out if type(out) in (tuple, list) else (out,):
        if type(result) is not Tensor or not result.is_meta or result.layout != torch.strided:
            return None
        form = _Form(result.shape, result.stride(), result.dtype)
        nbytes = form.tensor().untyped_storage().nbytes()
        if _storage(result) in taken or result.untyped_storage().nbytes() != nbytes:
            return None  # a view by another name, such as _unsafe_view
        taken.add(_storage(result))
        made.append(form)
    return made[0] if isinstance(out, Tensor) else tuple(made)


def _storage(tensor: Tensor) -> int:
    return compat.storage_key(tensor.untyped_storage())
