"""Every private torch API that the capture leans on, in one place, each with a contract test.

Those of fake tensors are in `compat_fakes`.

`tests/capture/test_compat.py` states what is relied on; when a torch release changes one of these,
that test names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._C import _current_autograd_node as current_autograd_node
from torch._C import _current_graph_task_id as current_graph_task_id
from torch.autograd import _get_sequence_nr as next_sequence_nr  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map

__all__ = [
    "TorchDispatchMode",
    "current_autograd_node",
    "current_graph_task_id",
    "decompose",
    "dispatch_mode",
    "efficient_attention_backward_on_meta",
    "fake_store",
    "fused_attention_allowed",
    "group_name",
    "is_composite",
    "is_fake",
    "local_gradient",
    "local_tensor",
    "next_sequence_nr",
    "no_dispatch_modes",
    "override_composite",
    "process_group",
    "process_groups",
    "recomputes",
    "silent_propagation",
    "storage_key",
    "tree_any",
    "tree_leaves",
    "tree_map",
    "writes",
]

NO_GRAPH_TASK = -1  # current_graph_task_id() outside of a backward pass
ACCUMULATE_GRAD_NR = 2**64 - 1  # sequence number of AccumulateGrad nodes, which no forward op made


def storage_key(storage: torch.UntypedStorage) -> int:
    """Address of the C++ storage: the same for every Python wrapper of it while it lives."""
    return int(storage._cdata)


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a FakeTensor, without importing the fake-tensor machinery."""
    return type(tensor).__name__ == "FakeTensor"


def is_composite(func: Any) -> bool:
    """Whether the op is made of other ops (CompositeImplicitAutograd) and has no kernel."""
    if func.namespace == "prim":  # `prim::device` of a fake tensor is in no dispatch table
        return False
    key = "CompositeImplicitAutograd"
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))
    except RuntimeError:  # an op of Python's alone, which the dispatcher does not know by name
        return False


def decompose(func: Any, args: Any, kwargs: Any) -> Any:
    """Run a composite op's own decomposition, whatever has been registered over it."""
    return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


def override_composite(name: str, function: Any, namespace: str = "aten") -> torch.library.Library:
    """Give a composite op the kernel `function` for dense tensors with autograd.

    Torch refuses meta kernels for composite ops, but not autograd ones, and those come first (but
    for inference_mode, which skips them). `_destroy()` of the result takes the kernels off again.
    """
    library = torch.library.Library(namespace, "IMPL")
    for key in ("AutogradMeta", "AutogradCPU", "AutogradCUDA"):
        library.impl(name, function, key)
    return library


def efficient_attention_backward_on_meta() -> torch.library.Library:
    """Repair the meta kernel of `aten::_efficient_attention_backward` until `_destroy()`.

    Torch's own knows neither `out` nor `window_size`, which the op has, and fails.
    """

    def backward(
        grad_out: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any
    ) -> tuple[torch.Tensor, ...]:
        return (*(torch.empty_like(x) for x in (query, key, value)), query.new_empty(()))

    library = torch.library.Library("aten", "IMPL")
    library.impl("_efficient_attention_backward", backward, "Meta", allow_override=True)
    return library


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a DTensor; any other tensor as it is."""
    local: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def local_gradient(parameter: Any) -> torch.Tensor | None:
    """This rank's part of a gradient, cut as its parameter is: that may take a collective."""
    grad = parameter.grad
    if grad is not None and getattr(grad, "placements", None) != getattr(
        parameter, "placements", None
    ):
        grad = grad.redistribute(parameter.device_mesh, parameter.placements)
    return None if grad is None else local_tensor(grad)


@contextlib.contextmanager
def silent_propagation() -> Iterator[None]:
    """Sharding propagation of DTensors, which runs ops on global shapes, meets no dispatch mode.

    What it keeps is forgotten behind it: meshes of different ranks are equal, their groups are not.
    """
    from torch.distributed.tensor import debug
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    own = ShardingPropagator._propagate_tensor_meta_non_cached

    def silent(self: Any, *args: Any, **kwargs: Any) -> Any:
        with no_dispatch_modes():
            return own(self, *args, **kwargs)

    ShardingPropagator._propagate_tensor_meta_non_cached = silent  # type: ignore[method-assign]
    try:
        yield
    finally:
        ShardingPropagator._propagate_tensor_meta_non_cached = own  # type: ignore[method-assign]
        debug._clear_sharding_prop_cache()


def writes(func: Any) -> bool:
    """Whether the op's schema says that it writes one of its arguments."""
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)


def dispatch_mode() -> Any:
    """The dispatch mode that sees an op first, None if none is on. A fake mode sees it last."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    return _get_current_dispatch_mode()


def no_dispatch_modes() -> Any:
    """A block in which no dispatch mode is active: its ops are not part of the program."""
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


def recomputes(node: Any) -> bool:
    """Whether activation checkpointing runs a forward again under the backward node `node`.

    Reentrant checkpointing does it in a node of its own; the other kind puts its hooks over saved
    tensors while it recomputes.
    """
    if type(node).__name__ == "CheckpointFunctionBackward":
        return True
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


def group_name(value: Any) -> str | None:
    """Name of the process group behind an op's argument, boxed or not; None for anything else."""
    if isinstance(value, torch.ScriptObject):
        if "ProcessGroup" not in str(value._type()):
            return None
        value = torch.distributed.ProcessGroup.unbox(value)
    name = getattr(value, "group_name", None)
    return None if name is None else str(name)


def process_group(name: str) -> Any:
    """The process group in force under a name."""
    from torch.distributed import distributed_c10d

    return getattr(distributed_c10d, "_resolve_process_group")(name)  # noqa: B009


def process_groups() -> dict[str, dict[str, Any]]:
    """The process groups in force: name -> what it is for and the ranks that are in it.

    Ranks at an even distance are `start`, `size` and `stride`, others a list `ranks`.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return {}
    from torch.distributed.distributed_c10d import _world

    found: dict[str, dict[str, Any]] = {}
    for group, name in _world.pg_names.items():
        ranks = torch.distributed.get_process_group_ranks(group)
        stride = ranks[1] - ranks[0] if len(ranks) > 1 else 1
        even = range(ranks[0], ranks[0] + stride * len(ranks), stride) if stride else range(0)
        where: dict[str, Any] = {"size": len(ranks), "ranks": ranks}
        if list(even) == ranks:
            where = {"size": len(ranks), "start": ranks[0], "stride": stride}
        found[name] = {"axis": group.group_desc, **where}
    return found


def fake_store() -> Any:
    """The store of torch's fake backend, which does not ask the other ranks."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    return FakeStore()


def fused_attention_allowed() -> bool:
    """Whether `torch.nn.attention.sdpa_kernel` leaves any fused kernel to choose."""
    cuda = torch.backends.cuda
    return bool(
        cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled()
    )
