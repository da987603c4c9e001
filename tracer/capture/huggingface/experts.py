"""Experts spread over ranks, as transformers spreads them, with the counts that data would tell.

Two programs (`transformers.distributed.expert_parallel`): where all ranks of the group hold one
batch, and nothing is trained, each runs its own experts on it and an all-reduce adds up; else every
(token, expert) pair is sent to its expert's rank and back, which reads the numbers of rows on the
host. Without data they are those of balanced routing: every rank gets as many rows, the share of
its experts. Sorting, masking, gathering and the collectives are transformers' own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.distributed.expert_parallel import (
    AllReduceEP,
    AllToAllEP,
    AutoEP,
    EPImplementationInterface,
)

NAME = "tracer"  # in transformers' registry

_library = torch.library.Library("tracer", "FRAGMENT")
_library.define("grouped_mm_head(Tensor x, Tensor w, Tensor offs, int rows) -> Tensor")


@torch.library.impl(_library, "grouped_mm_head", "Meta")
def _grouped_mm_head(x: Tensor, w: Tensor, offs: Tensor, rows: int) -> Tensor:
    """`_grouped_mm` of rows [R, K] and experts [E, K, N] whose offsets end at `rows` of R."""
    return x.new_empty(x.shape[0], w.shape[-1])


class _Rows(TorchFunctionMode):
    """Grouped products run on so many rows in front: the kernel stops at the last offset."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch._grouped_mm:
            return torch.ops.tracer.grouped_mm_head(*args, kwargs["offs"], self.rows)
        return func(*args, **(kwargs or {}))


class _Told(NamedTuple):
    """A tensor that the host reads."""

    values: list[list[int]]

    def tolist(self) -> list[list[int]]:
        return self.values


class _Counts(TorchFunctionMode):
    """The host reads these counts of rows where they are stacked for it."""

    def __init__(self, counts: list[list[int]]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        return _Told(self.counts) if func is torch.stack else out


class BalancedAllReduce(AllReduceEP):  # type: ignore[misc]  # transformers is untyped
    """Of all (token, expert) pairs a rank computes those of its own experts."""

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[T, D], [T, k], [T, k] in, [T, D] out."""
        with _Rows(-(-top_k_index.numel() // self.ep_mesh.size())):
            return super().__call__(hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]


class BalancedAllToAll(AllToAllEP):  # type: ignore[misc]
    """As many rows to every rank, and as many from it."""

    def _dispatch_tokens(
        self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Any:
        ranks = self.ep_mesh.size()
        own = -(-top_k_index.shape[0] // self.tp_mesh.size())
        rows = own * top_k_index.shape[1]
        counts = [rows * (i + 1) // ranks - rows * i // ranks for i in range(ranks)]
        with _Counts([counts, counts]):
            return super()._dispatch_tokens(hidden_states, top_k_index, top_k_weights)


class BalancedEP(AutoEP):  # type: ignore[misc]
    """What transformers runs by default, balanced."""

    def __init__(self, experts: Any, ep_mesh: Any, tp_mesh: Any) -> None:
        super().__init__(experts, ep_mesh, tp_mesh)
        self.all_to_all = BalancedAllToAll(experts, ep_mesh, tp_mesh)
        if self.shares_batch:
            self.all_reduce = BalancedAllReduce(experts, ep_mesh, tp_mesh)


def register() -> None:
    """Make `ep_implementation="tracer"` known to transformers."""
    EPImplementationInterface.register(NAME, BalancedEP)
