"""Every private torch API that the capture leans on, in one place, each with a contract test.

`tests/capture/test_compat.py` states what is relied on; when a torch release changes one of these,
that test names it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._C import _current_autograd_node as current_autograd_node
from torch._C import _current_graph_task_id as current_graph_task_id
from torch.autograd import _get_sequence_nr as next_sequence_nr  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "TorchDispatchMode",
    "current_autograd_node",
    "current_graph_task_id",
    "function_mode_stack",
    "is_composite",
    "is_fake",
    "next_sequence_nr",
    "storage_key",
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
    key = "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def function_mode_stack() -> list[Any]:
    """The active torch-function modes, outermost first."""
    from torch.overrides import _get_current_function_mode_stack

    return list(_get_current_function_mode_stack())
