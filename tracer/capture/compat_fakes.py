"""The private torch APIs of fake tensors and symbolic sizes; the other half of `compat`."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .compat import is_fake, tree_leaves


def outside_fake_mode() -> Any:
    """A block in which the active FakeTensorMode is off."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


def fake_mode(**options: Any) -> Any:
    """A FakeTensorMode; its machinery is imported on first use only."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(**options)


def fake_of(mode: Any, tensor: torch.Tensor) -> torch.Tensor:
    """A fake of `tensor`, over the same storage if that is on meta and so has no data."""
    from torch._subclasses.fake_tensor import FakeTensor

    with torch.no_grad():
        data = tensor.detach()
        data = data if tensor.device.type == "meta" else torch.empty_like(data, device="meta")
    return FakeTensor(mode, data, tensor.device)


def _no_modes() -> Any:
    return torch._C._DisableTorchDispatch()


def is_plain_fake(tensor: Any) -> bool:
    """Whether a tensor is a strided FakeTensor, of which no value is known, and nothing else."""
    return (
        is_fake(tensor)
        and tensor.layout is torch.strided
        and tensor.constant is None
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def has_symbols(tensor: Any) -> bool:
    """Whether a size or a stride of a tensor is a symbol."""
    return bool(tensor._has_symbolic_sizes_strides)


def meta_of(fake: torch.Tensor) -> torch.Tensor:
    """The meta tensor under a FakeTensor: its sizes, over the same storage."""
    with _no_modes():
        data = torch.empty(0, dtype=fake.dtype, device="meta")
        return data.set_(fake.untyped_storage(), fake.storage_offset(), fake.shape, fake.stride())


def fake_over(
    mode: Any, of: torch.Tensor | None, count: Any, shape: Any, stride: Any, offset: Any,
    dtype: torch.dtype, device: Any,
) -> torch.Tensor:  # fmt: skip
    """A FakeTensor of `mode` over the storage of another one, `of`, which has its dtype.

    None: over a new one of `count` elements. Sizes may be symbols, and no guard is left.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    with _no_modes(), mode.shape_env.suppress_guards():
        base = torch.empty((count,), dtype=dtype, device="meta") if of is None else of
        data = base.as_strided(shape, stride, offset)
    return FakeTensor(mode, data, device)


def symbolic_mode(on_fixed: Callable[[Any, int], None]) -> tuple[Any, Any]:
    """A FakeTensorMode with its ShapeEnv, for sizes of 2 or more; meta tensors may join in.

    `on_fixed(symbol, value)` is called, and may raise, before a symbol becomes one value.
    """
    # 0 and 1 are no sizes of symbols, so that none is asked whether it is one of them.
    env = _shape_env()(specialize_zero_one=True)
    env.on_fixed = on_fixed
    mode = fake_mode(shape_env=env, allow_non_fake_inputs=True)
    mode.cache_enabled = False  # its keys cost more than they save beside `remembered_fakes`
    return mode, env


@functools.cache
def _shape_env() -> Any:
    from torch._guards import SLoc
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    class NamedSizes(ShapeEnv):
        on_fixed: Callable[[Any, int], None]

        def _set_replacement(self, a: Any, tgt: Any, msg: str) -> None:
            if tgt.is_number:
                self.on_fixed(a, int(tgt))
            super()._set_replacement(a, tgt, msg)

        def _get_stack_summary(self, *_: Any, **__: Any) -> tuple[Any, str]:
            return SLoc("", None), ""  # of guards, in messages; torch walks all frames for it

    return NamedSizes


@contextlib.contextmanager
def quiet_fake_tensors() -> Iterator[None]:
    """A block in which torch does not write to stderr what it also raises."""
    names = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    logs = [(log, log.disabled) for log in map(logging.getLogger, names)]
    events = logging.getLogger("torch.__trace")  # formats stacks for its handlers
    handlers = events.handlers
    for log, _ in logs:
        log.disabled = True
    events.handlers = []
    try:
        yield
    finally:
        events.handlers = handlers
        for log, before in logs:
            log.disabled = before


def symbolic_size(env: Any, name: str, sample: int) -> Any:
    """A SymInt that may be any size of 2 or more; `sample` is its value where a branch asks."""
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    source = _named_size()(name)
    symbol = env.create_symbol(sample, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    return env.create_symintnode(symbol, hint=sample, source=source)


@functools.cache
def _named_size() -> Any:
    """Where a symbol comes from; that of `torch._dynamo` would import all of the compiler."""
    from torch._guards import Source

    @dataclass(frozen=True)
    class NamedSize(Source):
        label: str

        @property
        def _name_template(self) -> str:
            return self.label

    return NamedSize


def depends_on_data(out: Any) -> bool:
    """Whether some size of a result is one that only data could tell."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    tensors = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
    return any(free_unbacked_symbols(size) for x in tensors for size in x.shape)
