"""A range of layers of a transformers model as a smaller model of the same class.

A stage of a pipeline has layers of its own; the first one also the embedding, the last one the norm
and the output head. What is elsewhere becomes `PipelineIdentityLayer`, as in transformers' own
pipelines, and the layers that stay are numbered anew, in themselves, in the config's lists and so
in caches. Only layers that a folded trace runs are copied: they are what a plan's hooks cut, and
the others, `Unrun`, have parameters of the sizes that came out.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import UserError
from .. import compat
from ..fold import Stack, kept_of, kinds_of, outermost_lists
from ..remembered import empty_like
from .config import text_config

_NUMBER = "layer_idx"  # what transformers' layers call their place in the stack


class Layers(NamedTuple):
    """Where the stack of decoder layers is, and how it is cut.

    Attributes:
        path: of the list, from the model.
        kinds: a number a layer, equal for those that run the same program.
        front, tail: names beside the stack of what runs before and behind it; empty if the class
            has no plan of its own for pipelines.
    """

    path: str
    kinds: tuple[int, ...]
    front: tuple[str, ...]
    tail: tuple[str, ...]


@functools.lru_cache(maxsize=16)
def layers_of(program: Any) -> Layers | None:
    """The decoder layers of a transformers program; None unless there is one stack of them."""
    model = program.module("training", "meta")
    depth = getattr(text_config(program.config), "num_hidden_layers", 0)
    found = [(path, full) for _, _, path, full in outermost_lists(model) if len(full) == depth]
    if depth == 1:  # a list of one is no stack to `outermost_lists`
        lists = ((p, m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList))
        found = [(p, m) for p, m in lists if len(m) == 1 and p.endswith("layers")][:1]
    if len(found) != 1:
        return None
    path, full = found[0]
    alike = kinds_of(full)
    listed = list(zip(*_lists(text_config(program.config), depth).values(), strict=True))
    both = [(k, repr(listed[i]) if listed else "") for i, k in enumerate(alike)]
    kinds = tuple(both.index(item) for item in both)
    owner, _, name = path.rpartition(".")
    names = list(getattr(model.get_submodule(owner).config, "base_model_pp_plan", None) or ())
    if model.get_submodule(owner) is not getattr(model, "base_model", None) or name not in names:
        return Layers(path, kinds, (), ())
    place = names.index(name)
    return Layers(path, kinds, tuple(names[:place]), tuple(names[place + 1 :]))


def _lists(config: Any, depth: int) -> dict[str, list[Any]]:
    """What the config says of every layer."""
    return {
        key: list(value)
        for key, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == depth and depth > 1
    }


class NumberedStack(Stack):
    """A stack whose config is told which of its layers run."""

    def __init__(self, layers: Sequence[nn.Module], kinds: Sequence[int], config: Any) -> None:
        super().__init__(layers, kinds)
        self.config = config

    @contextlib.contextmanager
    def only(self, kept: list[int]) -> Iterator[None]:
        """Models walk their config's lists with the position in the loop (`layer_types[i]`)."""
        before = _lists(self.config, len(self))
        for key, value in before.items():
            vars(self.config)[key] = [value[i] for i in kept]
        try:
            yield
        finally:
            vars(self.config).update(before)


class Unrun(nn.Module):
    """A layer that a folded trace leaves out: the parameters and buffers of its like."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        for name, tensor in like._parameters.items():
            empty = None if tensor is None else empty_like(compat.local_tensor(tensor))
            self.register_parameter(name, None if empty is None else _trained(empty, tensor))
        for name, buffer in like._buffers.items():
            self.register_buffer(name, None if buffer is None else empty_like(buffer))
        for name, child in like.named_children():
            self.add_module(name, Unrun(child))


def _trained(empty: torch.Tensor, like: nn.Parameter | None) -> nn.Parameter:
    return nn.Parameter(empty, requires_grad=bool(like is not None and like.requires_grad))


def cut(program: Any, layers: range, *, first: bool, last: bool, fold: bool) -> nn.Module:
    """A copy of the program's meta module with `layers` alone; see `fill` for those not to be run.

    `first` keeps the embedding, `last` the norm and the head; without layers nothing else stays.

    Raises:
        UserError: the model's stack cannot be cut, see `legality`.
    """
    where = layers_of(program)
    if where is None:
        raise UserError(
            f"{program.name}: a plan cuts causal language models of one stack of layers"
        )
    model = program.module("training", "meta")
    path, _, name = where.path.rpartition(".")
    base = model.get_submodule(path)
    full = base.get_submodule(name)
    kinds = [where.kinds[i] for i in layers]
    kept = kept_of(kinds) if fold else list(range(len(layers)))
    shells = [nn.Module() for _ in layers]
    for i in kept:
        shells[i] = full[layers[i]]
    gone = [] if first else [(base, n) for n in where.front]
    if not layers:  # positions are for layers
        known = {*where.front, name, *where.tail}
        gone += [(base, n) for n, _ in base.named_children() if n not in known]
    if not last:
        gone += [(base, n) for n in where.tail]
        gone += [(model, n) for n, child in model.named_children() if child is not base]
    with _replaced([(base, name, nn.ModuleList(shells)), *((o, n, _identity()) for o, n in gone)]):
        twin: Any = copy.deepcopy(model)
    config = twin.config
    _renumber(text_config(config), layers, len(full))
    owner = twin.get_submodule(path)
    stack = owner.get_submodule(name)
    for place in kept:
        for module in stack[place].modules():
            if getattr(module, _NUMBER, None) == layers[place]:
                setattr(module, _NUMBER, place)
    owner._modules[name] = NumberedStack(list(stack), kinds, text_config(config))
    if not last:
        twin.all_tied_weights_keys = {}  # the head that is tied is elsewhere
    return twin  # type: ignore[no-any-return]


def fill(stack: NumberedStack) -> None:
    """Give the layers that are not run parameters as those of their like, cut as they are."""
    like = {stack.kinds[i]: stack[i] for i in kept_of(stack.kinds)}
    for place, kind in enumerate(stack.kinds):
        if not any(True for _ in stack[place].parameters()):
            stack[place] = Unrun(like[kind])


def stack_of(model: nn.Module) -> NumberedStack:
    """The stack that `cut` made."""
    return next(m for m in model.modules() if isinstance(m, NumberedStack))


def _renumber(config: Any, layers: range, depth: int) -> None:
    """Past the checks of the class, which know the sizes of released models."""
    for key, value in _lists(config, depth).items():
        vars(config)[key] = value[layers.start : layers.stop]
    vars(config)["num_hidden_layers"] = len(layers)


def is_elsewhere(model: nn.Module, name: str) -> bool:
    """Whether a module is on another stage."""
    found = dict(model.named_modules()).get(name)
    return type(found).__name__ == "PipelineIdentityLayer"


def _identity() -> nn.Module:
    from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

    return PipelineIdentityLayer()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _replaced(changes: list[tuple[nn.Module, str, nn.Module]]) -> Iterator[None]:
    """Other children for the duration of a copy."""
    before = [(owner, name, owner._modules[name]) for owner, name, _ in changes]
    for owner, name, module in changes:
        owner._modules[name] = module
    try:
        yield
    finally:
        for owner, name, found in before:
            owner._modules[name] = found
