"""Trace a few layers of each kind and let one stand for all that run the same program.

`folded(model, layers)` looks for `ModuleList`s whose entries repeat (same class, same settings,
same parameter shapes), and for the duration of the context leaves three of each kind in place. The
model's own loop then visits the shorter list. That is right for a stack of layers that a loop
passes one hidden state through, and wrong for a list that is indexed or zipped with something else,
so the caller has to ask for it and to say how many layers the stack has: the command line does for
language models, `tracer.trace` never by itself. A test holds the folded trace against the full one;
`--full` traces every layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .records import Fold


class Stack(nn.ModuleList):
    """Layers that come with their kinds: hooks of a plan make each a module of its own.

    `kinds`: equal for layers that run the same program on the same input.
    """

    def __init__(self, layers: Iterable[nn.Module], kinds: Sequence[int]) -> None:
        super().__init__(layers)
        self.kinds = tuple(kinds)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]  # slices too, of which `nn.ModuleList` makes another of its class

    @contextlib.contextmanager
    def only(self, kept: list[int]) -> Iterator[None]:
        """Whatever else says something of every layer is shortened to those in `kept`."""
        yield


@contextlib.contextmanager
def folded(model: nn.Module, layers: int) -> Iterator[tuple[Fold, ...]]:
    """Shorten every outermost `ModuleList` of `layers` entries; restores it, whatever happens."""
    replaced: list[tuple[nn.Module, str, nn.ModuleList]] = []
    folds: list[Fold] = []
    with contextlib.ExitStack() as beside:
        try:
            for owner, name, path, full in outermost_lists(model):
                if len(full) != layers or _share_modules(full):
                    continue
                kept, found = _fold_list(path, full)
                if len(kept) < len(full):
                    if isinstance(full, Stack):
                        beside.enter_context(full.only(kept))
                    replaced.append((owner, name, full))
                    owner._modules[name] = _ShortList(full, kept)
                    folds.extend(found)
            yield tuple(folds)
        finally:
            for owner, name, full in replaced:
                owner._modules[name] = full


class _ShortList(nn.ModuleList):
    """The kept layers under their own indices, so that module paths stay those of the model."""

    def __init__(self, layers: nn.ModuleList, kept: list[int]) -> None:
        super().__init__()
        for index in kept:
            self._modules[str(index)] = layers[index]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(list(self._modules.values()))

    def __getitem__(self, index: Any) -> Any:
        values = list(self._modules.values())
        return values[index]


def outermost_lists(
    module: nn.Module, prefix: str = ""
) -> Iterator[tuple[nn.Module, str, str, nn.ModuleList]]:
    """Every list of modules that is in no other: its owner, its name there, its path, itself."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, nn.ModuleList) and len(child) > 1:
            yield module, name, path, child
        else:
            yield from outermost_lists(child, path)


def _fold_list(path: str, layers: nn.ModuleList) -> tuple[list[int], list[Fold]]:
    """The indices to keep, and how many layers each of them stands for.

    The first and the last layer of a kind stand for themselves and one between them for the rest:
    so each boundary that occurs (kind to kind, middle to middle) occurs in the short list too, and
    fusion across boundaries counts the same.
    """
    kinds = kinds_of(layers)
    folds: list[Fold] = []
    for members in _members(kinds):
        for run in (members[:1], members[1:-1], members[1:][-1:]):
            if run:
                names = tuple(f"{path}.{index}" for index in run)
                folds.append(Fold(names[0], len(run), names))
    return kept_of(kinds), folds


def kinds_of(layers: nn.ModuleList) -> tuple[int, ...]:
    """A number for every layer, the same for those that run the same program."""
    if isinstance(layers, Stack):
        return layers.kinds
    found: list[tuple[_Signature, int]] = []
    kinds = []
    for index, layer in enumerate(layers):
        mine = _signature(layer)
        kind = next((k for k, (s, at) in enumerate(found) if _same(s, at, mine, index)), len(found))
        if kind == len(found):
            found.append((mine, index))
        kinds.append(kind)
    return tuple(kinds)


def kept_of(kinds: Sequence[int]) -> list[int]:
    """The indices that folding leaves in place: the first, the second and the last of each kind."""
    return sorted({i for m in _members(kinds) for i in (m[0], m[min(1, len(m) - 1)], m[-1])})


def _members(kinds: Sequence[int]) -> list[list[int]]:
    """Indices by kind."""
    found: dict[int, list[int]] = {}
    for index, kind in enumerate(kinds):
        found.setdefault(kind, []).append(index)
    return list(found.values())


class _Signature(NamedTuple):
    """What two layers must share to run the same program on the same input."""

    structure: tuple[Any, ...]  # paths, classes, shapes, dtypes and devices, all the way down
    settings: tuple[dict[str, Any], ...]  # all other attributes of every module: eps, heads, hooks


def _signature(layer: nn.Module) -> _Signature:
    structure: list[Any] = []
    settings: list[dict[str, Any]] = []
    for path, module in layer.named_modules():
        tensors = tuple(
            (name, tuple(tensor.shape), tensor.dtype, tensor.device.type, tensor.requires_grad)
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        )
        structure.append((path, type(module), tensors))
        settings.append({k: v for k, v in vars(module).items() if k not in _STRUCTURE})
    return _Signature(tuple(structure), tuple(settings))


_STRUCTURE = ("_parameters", "_buffers", "_modules")


def _same(a: _Signature, index_a: int, b: _Signature, index_b: int) -> bool:
    """Equal, but for settings that hold the layer's own position (`layer_idx`)."""
    same: bool = a.structure == b.structure
    return same and _alike(a.settings, b.settings, index_a, index_b)


def _alike(a: Any, b: Any, index_a: int, index_b: int) -> bool:
    """Whether two attributes mean the same; what cannot be compared is not alike."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) is int:
        return a == b or (a == index_a and b == index_b)
    if isinstance(a, Tensor):
        return bool(a.shape == b.shape and a.dtype == b.dtype)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k], index_a, index_b) for k in a)
    if type(a) in (tuple, list):
        return len(a) == len(b) and all(
            _alike(x, y, index_a, index_b) for x, y in zip(a, b, strict=True)
        )
    try:
        return bool(a == b)
    except Exception:  # an __eq__ that raises, or returns what has no truth value
        return False


def _share_modules(layers: nn.ModuleList) -> bool:
    """Whether a module or parameter belongs to more than one of the layers."""
    seen: dict[int, int] = {}
    for number, layer in enumerate(layers):
        for item in (*layer.modules(), *layer.parameters()):
            if seen.setdefault(id(item), number) != number:
                return True
    return len({id(layer) for layer in layers}) < len(layers)
