"""Results of ops on fake tensors of symbolic sizes, found once for all arguments of one form.

As `remembered` does for meta tensors: torch asks dozens of questions about its symbols before it
knows the shape of one result, and the layers of a model ask them again. The answers, and the guards
that they left, hold for the same expressions. Views and ops in place are remembered as well, for
with symbols torch is quick at nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import compat, compat_fakes
from .remembered import DATA, NAMED, PLAIN


class _Form(NamedTuple):
    """All of a fake tensor that shows in the result of an op; sizes as torch's expressions."""

    shape: tuple[Any, ...]
    stride: tuple[Any, ...]
    offset: Any
    dtype: torch.dtype
    device: torch.device


class _Made(NamedTuple):
    """How to make a result again; sizes as torch's symbols."""

    of: int | None  # the tensor among the arguments whose storage it has, if any
    count: Any  # elements of a storage of its own
    shape: tuple[Any, ...]
    stride: tuple[Any, ...]
    offset: Any
    dtype: torch.dtype
    device: torch.device


class _Itself(NamedTuple):
    """A result that is the `of`-th tensor among the arguments."""

    of: int


class _Several(NamedTuple):
    kind: type
    parts: list[Any]


class _Unlike(Exception):
    """A value that is no fake tensor of the plain kind, and no plain value."""


_UNKNOWN, _NEVER = object(), object()


class Remembered:
    """What ops gave on the fake tensors of one mode.

    `resolved` gives a size in a form in which equal ones are equal.
    """

    def __init__(self, mode: Any, resolved: Callable[[Any], Any]) -> None:
        self._mode, self._resolved = mode, resolved
        self._known: dict[Any, Any] = {}
        self._runners: dict[Any, Callable[..., Any]] = {}

    def runner(self, func: Any, own: Callable[..., Any]) -> Callable[..., Any]:
        """What to run for an op, for which `own` would run: that, or a look into memory first."""
        found = self._runners.get(func)
        if found is None:
            tags = getattr(func, "tags", ())
            alike = func is _INDEX or not any(tag in tags for tag in DATA)
            known = alike and getattr(func, "namespace", "") == "aten"
            found = functools.partial(self._run, func, own) if known else own
            self._runners[func] = found
        return found

    def _run(self, func: Any, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tensors: list[Any] = []
        try:
            forms = tuple([_form(value, tensors) for value in args])
            named = tuple([(name, _form(value, tensors)) for name, value in kwargs.items()])
        except _Unlike:
            return own(*args, **kwargs)
        key = (func, forms, named, torch.get_default_dtype())
        found = self._known.get(key, _UNKNOWN)
        if found is _NEVER or (func is _INDEX and any(t.dtype in _MASKS for t in tensors[1:])):
            return own(*args, **kwargs)
        if found is _UNKNOWN:
            before = [_form(tensor, []) for tensor in tensors]
            out = own(*args, **kwargs)
            try:
                how = self._how(out, tensors)
                if [_form(tensor, []) for tensor in tensors] != before:
                    raise _Unlike  # such as `t_`
            except _Unlike:
                how = _NEVER
            self._known[key] = how
            return out
        return self._again(found, tensors)

    def _how(self, out: Any, tensors: Sequence[Any]) -> Any:
        """How to make `out` again.

        Raises:
            _Unlike: there is more to it than a form.
        """
        if out is None:
            return None
        if type(out) in (tuple, list):
            parts = [self._how(item, tensors) for item in out]
            own = [_storage(item) for item, how in zip(out, parts, strict=True)
                   if type(how) is _Made and how.of is None]  # fmt: skip
            if len(set(own)) < len(own):
                raise _Unlike
            return _Several(type(out), parts)
        for number, tensor in enumerate(tensors):
            if out is tensor:
                return _Itself(number)
        form, key = _form(out, []), _storage(out)
        of = next((n for n, tensor in enumerate(tensors) if _storage(tensor) == key), None)
        nbytes = out.untyped_storage().nbytes()
        count = None if of is not None else nbytes // out.element_size()
        if of is not None and tensors[of].dtype != out.dtype:
            raise _Unlike  # such as `view.dtype`
        made = _Made(of, count, tuple(out.shape), out.stride(), out.storage_offset(), out.dtype,
                     out.fake_device)  # fmt: skip
        again = self._again(made, tensors)
        if _form(again, []) != form or self._resolved(
            again.untyped_storage().nbytes()
        ) != self._resolved(nbytes):
            raise _Unlike
        return made

    def _again(self, how: Any, tensors: Sequence[Any]) -> Any:
        kind = type(how)
        if kind is _Itself:
            return tensors[how.of]
        if kind is _Several:
            return how.kind([self._again(part, tensors) for part in how.parts])
        if kind is _Made:
            of = None if how.of is None else tensors[how.of]
            return compat_fakes.fake_over(self._mode, of, *how[1:])
        return how


_INDEX = torch.ops.aten.index.Tensor  # the size of its result is data for masks alone
_MASKS = (torch.bool, torch.uint8, torch.int8)


def _form(value: Any, tensors: list[Any]) -> Any:
    """What a result can depend on, hashable; 1, 1.0 and True are not the same."""
    kind = type(value)
    if issubclass(kind, Tensor):
        if not compat_fakes.is_plain_fake(value):
            raise _Unlike
        tensors.append(value)
        shape, stride, offset = tuple(value.shape), value.stride(), value.storage_offset()
        if compat_fakes.has_symbols(value):
            shape = tuple([_size(n) for n in shape])
            stride = tuple([_size(n) for n in stride])
            offset = _size(offset)
        return _Form(shape, stride, offset, value.dtype, value.fake_device)
    if kind in PLAIN:
        return kind, value
    if kind is torch.SymInt:
        return _size(value)
    if kind is list or kind is tuple:
        return list, tuple([_form(item, tensors) for item in value])
    if isinstance(value, NAMED):
        return value
    raise _Unlike


def _size(size: Any) -> Any:
    return size if type(size) is int else size.node._expr


def _storage(tensor: Any) -> int:
    return compat.storage_key(tensor.untyped_storage())
