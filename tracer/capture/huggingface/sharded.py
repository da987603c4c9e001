"""One rank's program of any transformers model, cut by the model's own plan.

TP: the model's `base_model_tp_plan`, applied by transformers itself: parameters become DTensors,
and what reaches the record are their local ops and collectives. Sharding propagation runs every op
a second time on fake tensors of the global shape; that is no part of the program and stays out.

CP: two chunks of every sequence a rank, see `context`.

FSDP (`zero=3`): torch's `fully_shard` over each decoder layer and the rest, among DP and CP ranks.
It refuses meta tensors, so such a step is traced with fake ones.

Every layer is traced: the hooks that do this are each layer's own, so none stands for another.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from ...errors import UserError
from .. import compat
from ..grounds import FAKE, META, on
from ..groups import ShardingPlan, fake_world, name_groups_by_axis
from ..program import TRAINING
from ..records import Trace
from ..workload import Workload, record
from .classes import forward_parameters
from .config import quiet
from .context import POSITIONS, attention_calls, refuse, spread_over
from .program import HuggingFaceProgram


def record_rank(
    program: HuggingFaceProgram, workload: Workload, plan: ShardingPlan, *, rank: int = 0,
    attention: str = "fused",
) -> Trace:  # fmt: skip
    """The trace of what `rank` runs; header and groups as `capture.sharded.record_rank` has them.

    Args:
        program: the model; a copy of it is cut.
        workload: `batch` is that of one data rank, the plan's `micro_batch`.
        plan: `tp`, `cp` and `dp`, the latter two in training with `zero` 3; legal for the workload
            (`Plan.illegal`).
        rank: whose program.
        attention: as in `workload.record`.

    Raises:
        UserError: the plan uses what is not traced for transformers models, the model has no plan
            of its own, or a process group is in force already.
    """
    fully = _check(program, workload, plan)
    given = (*program._given, POSITIONS) if plan.cp > 1 else program._given
    twin = HuggingFaceProgram(
        program.name, copy.deepcopy(program.config), program.dtype, program._remote_code, given
    )
    from torch.distributed.device_mesh import init_device_mesh

    replicas = plan.dp * plan.cp
    with fake_world(plan.world, rank), compat.silent_propagation():
        mesh = init_device_mesh("cpu", (replicas, plan.tp), mesh_dim_names=("dp", "tp"))
        twin.grounds = (FAKE,) if fully else (META,)
        if plan.tp > 1:
            _cut(twin, workload.phase, mesh["tp"])
        if fully:
            _shard_fully(twin, workload.phase, mesh["dp"])
        if plan.cp > 1:
            trace = _record_chunks(twin, workload, plan, rank, attention)
        else:
            trace = record(twin, workload, attention=attention, fold=False)
    # A mesh of one dimension uses the group of all ranks.
    name_groups_by_axis(trace, "tp" if replicas == 1 else "dp" if plan.tp == 1 else "world")
    trace.header |= {"plan": str(plan), "rank": rank, "stage": 0, "layers": [0, program.layers]}
    return trace


def _check(program: HuggingFaceProgram, workload: Workload, plan: ShardingPlan) -> bool:
    """Whether the plan shards fully; refuses what cannot be traced."""
    for name in ("ep", "pp"):
        if getattr(plan, name) > 1:
            raise UserError(
                f"{program.name}: {name}={getattr(plan, name)} is traced for the reference models "
                "only; a transformers model takes tp, cp and dp"
            )
    for name in ("sequence_parallel", "attention_dp"):
        if getattr(plan, name):
            raise UserError(f"{program.name}: {name} is traced for the reference models only")
    if plan.recompute != "none":
        raise UserError(f"{program.name}: recompute is traced for the reference models only")
    if workload.batch != plan.micro_batch:
        raise UserError(
            f"batch {workload.batch}: a data rank of this plan runs micro_batch={plan.micro_batch} "
            "sequences at once"
        )
    trained = workload.phase == TRAINING
    fully = trained and plan.dp * plan.cp > 1
    over = f"dp={plan.dp}" if plan.cp == 1 else f"dp={plan.dp} cp={plan.cp}"
    if fully and plan.zero != 3:
        raise UserError(
            f"{program.name}: {over} with zero={plan.zero}: a transformers model trains with "
            "zero=3 (fully_shard) or alone"
        )
    if fully and plan.tp > 1:
        raise UserError(f"{program.name}: fully_shard over {over} goes with tp=1")
    if plan.cp > 1:
        parameters = forward_parameters(program.module(workload.phase, META))
        refuse(program, parameters, workload.seq, plan.cp)
    return fully


def _record_chunks(
    program: HuggingFaceProgram, workload: Workload, plan: ShardingPlan, rank: int, attention: str
) -> Trace:
    """The trace of two chunks of every sequence, their keys and values gathered."""
    from tracer.models.collectives import Group

    ranks = plan.groups(rank)["cp"]
    made = torch.distributed.new_group(list(ranks), group_desc="cp")
    own = replace(workload, seq=workload.seq // plan.cp)
    with spread_over(Group(made.group_name, plan.cp, ranks.index(rank))):
        trace = record(program, own, attention=attention, fold=False)
        if attention_calls() < program.layers:
            raise UserError(
                f"{program.name}: cp={plan.cp}: {attention_calls()} of its {program.layers} layers "
                "ask transformers for attention; those with one of their own are not traced"
            )
    trace.header["seq"] = workload.seq
    return trace


def _cut(program: HuggingFaceProgram, phase: str, mesh: Any) -> None:
    """Apply the model's own tensor-parallel plan."""
    from transformers.distributed.configuration_utils import DistributedConfig
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    model: Any = program.module(phase, META)
    if not model.tp_plan:
        raise UserError(f"{program.name}: {type(model).__name__} has no tensor-parallel plan")
    with quiet():
        cuts, _, _ = model._resolve_parallel_plans(DistributedConfig(tp_size=mesh.size()))
        apply_tensor_parallelism(model, mesh, cuts)


def _shard_fully(program: HuggingFaceProgram, phase: str, mesh: Any) -> None:
    """`fully_shard` each layer of the stack, then the rest as one, on fake tensors."""
    from torch.distributed.fsdp import fully_shard

    with on(FAKE):
        model = program.module(phase, FAKE)
        for module in list(model.modules()):
            if isinstance(module, torch.nn.ModuleList) and len(module) == program.layers:
                for layer in module:
                    fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
