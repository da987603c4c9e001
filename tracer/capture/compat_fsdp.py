"""The private parts of torch's `fully_shard` that the capture leans on, beside `compat`."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn


def fully_shard_on_meta(module: nn.Module, **options: Any) -> None:
    """`fully_shard` for a module on meta that runs there, among ranks of a CPU mesh.

    Torch slices parameters on meta as any other, for a checkpoint to be loaded into, and refuses to
    run before that has been: the one check that a run without data does not need. Its buffers have
    the device of the mesh; here they are on meta too.
    """
    from torch.distributed.fsdp import fully_shard

    sharded: Any = fully_shard(module, **options)
    for group in sharded._get_fsdp_state()._fsdp_param_groups:
        group._validate_no_meta_params = _nothing
    gather, scatter = _collectives_on_meta()
    sharded.set_custom_all_gather(gather())
    sharded.set_custom_reduce_scatter(scatter())


def _nothing() -> None:
    """All checks are passed."""


@functools.cache
def _collectives_on_meta() -> tuple[type, type]:
    """Torch's own all-gather and reduce-scatter; their classes take long to import."""
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives as own

    class OnMeta:
        def allocate(
            self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device
        ) -> torch.Tensor:
            return torch.empty(*size, dtype=dtype, device="meta")

    class AllGather(OnMeta, own.DefaultAllGather):  # type: ignore[misc]  # its device is ours
        pass

    class ReduceScatter(OnMeta, own.DefaultReduceScatter):  # type: ignore[misc]
        pass

    return AllGather, ReduceScatter


@contextlib.contextmanager
def fully_shard_memory(
    freed: Callable[[torch.Tensor], None], allocated: Callable[[torch.Tensor], None]
) -> Iterator[None]:
    """Tell when `fully_shard` gives the memory of gathered parameters back, and takes it again.

    It resizes their storages, which no op shows.
    """
    module = sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_param")
    if module is None:  # nobody shards
        yield
        return
    own = module.free_storage, module.alloc_storage

    def free(tensor: torch.Tensor) -> None:
        if tensor.untyped_storage().size():
            freed(tensor)
        own[0](tensor)

    def allocate(tensor: torch.Tensor) -> None:
        own[1](tensor)
        allocated(tensor)

    module.free_storage, module.alloc_storage = free, allocate  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.free_storage, module.alloc_storage = own  # type: ignore[attr-defined]
