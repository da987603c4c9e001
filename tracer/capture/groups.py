"""Process groups of a plan in one process: torch's fake backend at the plan's real size.

The groups are global state of torch. They exist inside of the context and nowhere else, also when
something in it fails.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from ..errors import UserError
from . import compat
from .records import Op, Trace

_NAMESPACES = ("_c10d_functional.", "_c10d_functional_autograd.", "c10d.", "_dtensor.")


class ShardingPlan(Protocol):
    """What the capture asks of a plan; `tracer.parallel.Plan` is one."""

    @property
    def tp(self) -> int: ...
    @property
    def ep(self) -> int: ...
    @property
    def pp(self) -> int: ...
    @property
    def dp(self) -> int: ...
    @property
    def cp(self) -> int: ...
    @property
    def sequence_parallel(self) -> bool: ...
    @property
    def attention_dp(self) -> bool: ...
    @property
    def zero(self) -> int: ...
    @property
    def micro_batch(self) -> int: ...
    @property
    def micro_batches(self) -> int: ...
    @property
    def redundant_experts(self) -> int: ...
    @property
    def recompute(self) -> str: ...
    @property
    def mtp(self) -> bool: ...
    @property
    def world(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def data_ranks(self) -> int: ...
    @property
    def cuts_tokens(self) -> bool: ...

    def groups(self, rank: int) -> dict[str, range]: ...

    def layers_of(self, stage: int, layers: int) -> range: ...


@contextlib.contextmanager
def fake_world(size: int, rank: int) -> Iterator[None]:
    """This process is rank `rank` of `size`, whose collectives move nothing.

    Raises:
        UserError: the process is part of a real group already.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        raise UserError(
            "torch.distributed is initialised already: a plan is traced in a process of its own"
        )
    hook = sys.excepthook  # torch puts one of its own around it that names the rank, for good
    dist.init_process_group("fake", store=compat.fake_store(), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


@contextlib.contextmanager
def groups_of(plan: ShardingPlan, rank: int) -> Iterator[Mapping[str, Any]]:
    """The groups of `rank` by axis, as `tracer.models.collectives.Group`.

    Raises:
        UserError: there is no such rank, or the process is part of a real group already.
    """
    from tracer.models.collectives import ALONE, Group

    axes = plan.groups(rank)
    with fake_world(plan.world, rank):
        made = {}
        for axis, ranks in axes.items():
            if len(ranks) == 1:
                made[axis] = ALONE
                continue
            group = torch.distributed.new_group(list(ranks), group_desc=axis)
            made[axis] = Group(group.group_name, len(ranks), ranks.index(rank))
        yield made


def name_groups_by_axis(trace: Trace, world: str = "world") -> None:
    """Let the collectives of `trace` and its header call a group by its axis, "tp" and so on.

    `world` is what the group of all ranks is for. Groups of one send nothing and are left out.
    """
    table = trace.header.get("groups", {})
    axes = {
        name: world if where["axis"] == "default_pg" else where["axis"].removeprefix("mesh_")
        for name, where in table.items()
        if where["size"] > 1
    }

    def named(op: Op) -> Op:
        if not op.name.startswith(_NAMESPACES):
            return op
        return op._replace(
            args=tuple([axes.get(a, a) if type(a) is str else a for a in op.args]),
            kwargs={k: axes.get(a, a) if type(a) is str else a for k, a in op.kwargs.items()},
        )

    trace.ops = [named(op) for op in trace.ops]
    trace.header["groups"] = {
        axis: {key: value for key, value in table[name].items() if key != "axis"}
        for name, axis in reversed(axes.items())  # the world last: a group of its own goes first
    }
