"""Where a program is run when it is traced: without data, or with as little as it takes."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import compat_fakes
from .known_values import KnownValues

META = "meta"  # shapes only
VALUES = "values"  # meta, with the values of integer tensors that need no weights
FAKE = "fake"  # FakeTensorMode
REAL = "real"  # CPU tensors, at a reduced size
SYMBOLIC = "symbolic"  # fake tensors of sizes with names; on its own, see `workload.record`
GROUNDS = (META, VALUES, FAKE, REAL)

REAL_BATCH, REAL_TOKENS = 1, 64  # the reduced size
REAL_BYTES = 2 * 10**9  # weights that are worth allocating

_DATA_WORDS = (
    "meta", "data-dependent", "data dependent", "datadependent", "dynamicoutputshape",
    "fake tensor", "faketensor",
)  # fmt: skip


class NotTried(Exception):
    """A program leaves this ground out: its weights are too many to allocate."""


def device_of(ground: str) -> str:
    """The device on which modules and inputs are made."""
    return "meta" if ground in (META, VALUES, SYMBOLIC) else "cpu"


@contextlib.contextmanager
def on(ground: str) -> Iterator[list[str]]:
    """Run on `ground`; the list that it yields says, afterwards, what was assumed there."""
    notes: list[str] = []
    if ground == VALUES:
        values = KnownValues()
        with values:
            yield notes
        if values.assumed:
            notes.append(
                "the model asks in Python for indices that its weights choose, such as the experts "
                "of a token: taken as balanced, each chosen equally often"
            )
    elif ground == FAKE:
        with _fake_mode():
            yield notes
        notes.append("traced with fake tensors: the model does not run on meta ones")
    else:
        yield notes
        if ground == REAL:
            notes.append(
                f"traced on real CPU tensors: the model needs data; at most {REAL_BATCH} sequence "
                f"of {REAL_TOKENS} tokens, and kernels that a CPU runs"
            )


@functools.cache
def _fake_mode() -> Any:
    """One mode for all runs: a module built under another would be foreign to it."""
    return compat_fakes.fake_mode(allow_non_fake_inputs=True)


def fake_twin(model: nn.Module) -> nn.Module:
    """A copy of a meta module with fake parameters and buffers; tied ones stay tied.

    Not built anew, because initialisation asks random numbers for their values.
    """
    with compat_fakes.outside_fake_mode():
        twin = copy.deepcopy(model)
    _swap(twin, _on_cpu)
    return twin


@contextlib.contextmanager
def fake_weights(model: nn.Module, mode: Any) -> Iterator[None]:
    """A block in which the parameters and buffers of a module are fakes of `mode`.

    A fake mode takes meta tensors too, but gives each a twin with a storage of its own, and views
    of a weight would not be known as the weight any more. A fake of a meta tensor is one over the
    same storage; of any other, one without data on its device.
    """
    before = _swap(model, lambda tensor: _parameter(compat_fakes.fake_of(mode, tensor), tensor))
    try:
        yield
    finally:
        for table, name, tensor in before:
            table[name] = tensor


def _swap(
    model: nn.Module, fake: Callable[[Tensor], Tensor]
) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Give every parameter and buffer its fake, a shared one the same; what stood where."""
    made: dict[int, Tensor] = {}
    before: list[tuple[dict[str, Any], str, Tensor]] = []  # also: no address is used twice
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None:
                    before.append((table, name, tensor))
                    if id(tensor) not in made:
                        made[id(tensor)] = fake(tensor)
                    table[name] = made[id(tensor)]
    return before


def _on_cpu(tensor: Tensor) -> Tensor:
    """In the active fake mode."""
    data = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return _parameter(data, tensor)


def _parameter(data: Tensor, like: Tensor) -> Tensor:
    """`data` as a parameter, if `like` is one; as `nn.Parameter` makes of a subclass, uncopied."""
    if isinstance(like, nn.Parameter):
        data.requires_grad_(like.requires_grad)
        data._is_param = True
    return data


def asks_for_data(error: BaseException) -> bool:
    """Whether an error says that a tensor without data was asked for its values, or has no kernel.

    Anything else is the model's own error, and no other ground will cure it.
    """
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, NotImplementedError) or any(word in text for word in _DATA_WORDS)
