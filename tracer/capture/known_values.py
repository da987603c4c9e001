"""Values of small integer tensors, computed beside a trace that has no data.

Models ask data questions that their weights do not decide: is the padding mask all ones, how many
patches has this image, where do the windows end. Meta tensors cannot answer. This dispatch mode
follows every tensor whose value comes from constants alone (sizes, `arange`, token ids that the
caller made) with a real tensor on the CPU, and answers from there.

The one question that weights do decide and that models ask in Python is which experts a token
takes. Where nothing better is known, `topk` and `argmax` are taken as *balanced*: token t chooses
experts k·t, k·t+1, ... round robin, so every expert gets the same number of tokens. `assumed` says
whether an answer rested on that. Numbers are taken as finite where a model asks.

Enter it before the recorder: the work done here is not part of the program.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from . import compat
from .compat import tree_any, tree_leaves, tree_map

_MAX_INTEGERS = 2**26  # elements of an integer or boolean tensor that is followed
_MAX_FLOATS = 2**25  # elements of a floating tensor that is followed
_CPU = torch.device("cpu")

_aten = torch.ops.aten
_CONSTANT = frozenset({
    _aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default,
    _aten.new_ones.default, _aten.new_zeros.default, _aten.new_full.default,
})  # fmt: skip
_CHOICES = {_aten.topk.default: 1, _aten.argmax.default: None}  # op -> position of the indices


class KnownValues(compat.TorchDispatchMode):
    """Follow what is known; answer `item`, `tolist`, `nonzero` and boolean indexing from it.

    `assumed` is True once an answer depended on balanced routing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.assumed = False
        self._known: Any = WeakIdKeyDictionary()  # meta tensor -> its value on the CPU
        self._guesses: Any = WeakIdKeyDictionary()  # values (not meta tensors) that are assumed
        self._literals = _Literals(self)

    def __enter__(self) -> Self:
        self._literals.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._literals.__exit__(kind, error, traceback)

    def know(self, tensor: Tensor, value: Tensor) -> None:
        """State the value of a meta tensor; same shape and dtype."""
        self._known[tensor] = value

    def numbers(self, data: Any) -> Any:
        """Nested lists with the values of the scalar tensors in them; None if one is unknown."""
        leaves = [leaf for leaf in tree_leaves(data) if isinstance(leaf, Tensor)]
        if isinstance(data, Tensor) or any(t.is_meta and t not in self._known for t in leaves):
            return None
        return tree_map(lambda x: self._value(x).item() if isinstance(x, Tensor) else x, data)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = all(not t.is_meta or t in self._known for t in inputs)
        tags = getattr(func, "tags", ())
        if func is _aten._local_scalar_dense.default and known:
            return self._use(inputs)[0].item()
        if func is _aten.equal.default and known:
            return func(*self._use(inputs))
        if func is _aten._to_copy.default and kwargs.get("device") == _CPU and known:
            self._use(inputs)
            return func(*self._values(args), **kwargs)
        if torch.Tag.dynamic_output_shape in tags and any(t.is_meta for t in inputs):
            if func is _aten.index.Tensor:
                return self._index(args)
            if func is _aten.masked_select.default and args[1] in self._known:
                return self._masked_select(*args)
            if known:
                self._use(inputs)
                return self._from_values(func(*self._values(args), **self._values(kwargs)), inputs)
            return func(*args, **kwargs)
        if func in (_aten.index_put.default, _aten.index_put_.default):
            args = (args[0], self._positions(args[1]), *args[2:])
        out = func(*args, **kwargs)
        if known and torch.Tag.nondeterministic_seeded not in tags:
            self._follow(func, args, kwargs, inputs, out)
        elif compat.writes(func):
            self._forget_written(func, args, kwargs)
        elif func in _CHOICES:
            self._choose(func, args[0], out)
        elif func in _CONSTANT:  # the argument gives the shape, not the value
            blank = torch.empty(args[0].shape, dtype=args[0].dtype)
            self._follow(func, (blank, *args[1:]), kwargs, [], out)
        return out

    # -- following ---------------------------------------------------------------------------------

    def _follow(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], out: Any) -> None:
        """Run an op whose inputs are all known once more, on their values."""
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not results or not any(t.is_meta for t in results):
            return
        if "empty" in str(func) or not all(_small(t) for t in results):
            if compat.writes(func):
                self._forget_written(func, args, kwargs)
            return
        try:
            value = func(*self._values(args), **self._values(kwargs))
        except (RuntimeError, NotImplementedError, IndexError, ValueError, TypeError):
            return  # no CPU kernel, or a value that only a weight could make legal: stay unknown
        guessed = any(self._value(t) in self._guesses for t in inputs)
        values = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        for tensor, follower in zip(results, values, strict=True):
            if tensor.is_meta and tensor.shape == follower.shape:
                self._known[tensor] = follower
                if guessed:
                    self._guesses[follower] = True

    def _forget_written(self, func: Any, args: Any, kwargs: Any) -> None:
        """An unknown value was written into these tensors: drop them and all their views."""
        written = [
            args[i] if i < len(args) else kwargs.get(argument.name)
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for tensor in tree_leaves(written):
            if isinstance(tensor, Tensor) and tensor in self._known:
                storage = compat.storage_key(self._known[tensor].untyped_storage())
                for other, value in list(self._known.items()):
                    if compat.storage_key(value.untyped_storage()) == storage:
                        del self._known[other]

    def _choose(self, func: Any, scores: Tensor, out: Any) -> None:
        """Balanced choices for indices that only weights could tell."""
        position = _CHOICES[func]
        indices = out if position is None else out[position]
        if not indices.is_meta or not _small(indices) or scores.dim() == 0:
            return
        width = indices.shape[-1] if position is not None and indices.dim() else 1
        count = torch.arange(indices.numel() // max(width, 1)) * width
        value = (count[:, None] + torch.arange(width)) % max(scores.shape[-1], 1)
        value = value.reshape(indices.shape)
        self._known[indices] = value
        self._guesses[value] = True

    # -- answering ---------------------------------------------------------------------------------

    def _index(self, args: Any) -> Any:
        source, indices = args
        if not tree_any(lambda i: isinstance(i, Tensor) and i.dtype == torch.bool, indices):
            out = _aten.index.Tensor(source, indices)
            if source in self._known and all(i is None or i in self._known for i in indices):
                self._follow(_aten.index.Tensor, args, {}, [source], out)
            return out
        positions = self._positions(indices)
        out = _aten.index.Tensor(source, positions)
        if source in self._known:
            self._follow(_aten.index.Tensor, (source, positions), {}, [source], out)
        return out

    def _positions(self, indices: Any) -> list[Any]:
        """Boolean masks that are known, as the positions of their true elements."""
        found: list[Any] = []
        for index in indices:
            if isinstance(index, Tensor) and index.dtype == torch.bool and index in self._known:
                value = self._use([index])[0]
                for column in value.nonzero(as_tuple=True):
                    found.append(self._from_values(column, [index]))
            else:
                found.append(index)
        return found

    def _masked_select(self, source: Tensor, mask: Tensor) -> Tensor:
        value = self._use([mask])[0].expand(torch.broadcast_shapes(source.shape, mask.shape))
        return source.new_empty(int(value.sum()))

    def _from_values(self, values: Any, inputs: list[Tensor]) -> Any:
        """Meta tensors of these values, which stay known."""
        guessed = any(self._value(t) in self._guesses for t in inputs)

        def lift(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            tensor = torch.empty_like(value, device="meta")
            self._known[tensor] = value
            if guessed:
                self._guesses[value] = True
            return tensor

        return tree_map(lift, values)

    def _use(self, tensors: list[Tensor]) -> list[Tensor]:
        """The values, for an answer: notes whether one of them is assumed."""
        values = [self._value(t) for t in tensors]
        self.assumed |= any(value in self._guesses for value in values)
        return values

    def _value(self, tensor: Tensor) -> Tensor:
        found: Tensor = self._known.get(tensor, tensor) if tensor.is_meta else tensor
        return found

    def _values(self, tree: Any) -> Any:
        """Arguments with values in place of meta tensors and the CPU in place of meta."""

        def swap(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self._value(leaf)
            return _CPU if isinstance(leaf, torch.device) and leaf.type == "meta" else leaf

        return tree_map(swap, tree)


class _Literals(TorchFunctionMode):
    """`torch.tensor([1, 2], device="meta")` reaches no dispatch mode with its data."""

    def __init__(self, values: KnownValues) -> None:
        super().__init__()
        self._values = values

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in _LITERALS and isinstance(out, Tensor) and out.is_meta and _small(out):
            data = kwargs.get("data", args[_LITERALS[func]] if args else None)
            with _no_modes():
                known = self._values.numbers(data)
                if known is not None:
                    self._values.know(out, torch.tensor(known, dtype=out.dtype, device="cpu"))
        if func in _FINITE and isinstance(out, Tensor) and out.is_meta:
            with _no_modes():
                self._values.know(out, torch.tensor(_FINITE[func]).expand(out.shape))
        return out


# Models clamp what overflowed, after asking whether anything did: numbers are taken as finite.
_FINITE: dict[Any, bool] = {
    torch.isfinite: True, Tensor.isfinite: True, torch.isnan: False, Tensor.isnan: False,
    torch.isinf: False, Tensor.isinf: False,
}  # fmt: skip
_LITERALS: dict[Any, int] = {torch.tensor: 0, torch.as_tensor: 0, Tensor.new_tensor: 1}


@contextlib.contextmanager
def _no_modes() -> Iterator[None]:
    with compat.no_dispatch_modes():
        yield


def _small(tensor: Tensor) -> bool:
    limit = _MAX_FLOATS if tensor.is_floating_point() or tensor.is_complex() else _MAX_INTEGERS
    return tensor.numel() <= limit
