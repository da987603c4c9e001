"""One rank's program of any transformers model, cut by the model's own plans.

PP: the layers of a stage, received states in and sent states out (`stage`, `rank`).

TP: the model's `base_model_tp_plan`, applied by transformers itself: parameters become DTensors,
and what reaches the record are their local ops and collectives. Sharding propagation runs every op
a second time on fake tensors of the global shape; that is no part of the program and stays out.

EP: the model's `base_model_ep_plan` over whole TP groups, see `experts`.

CP: two chunks of every sequence a rank, see `context`.

FSDP (`zero=3`): torch's `fully_shard` over each decoder layer and the rest, among DP and CP ranks;
experts of EP ranks among those that hold the same. Without it (`zero=0`) gradients are all-reduced
behind the backward.

Recomputation: transformers' own gradient checkpointing, whole layers or (`selective`) all of them
but products, attention, collectives and routing.

One layer of each kind runs, as in any folded trace: `stage.Unrun` stands for the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from ...errors import UserError
from .. import compat
from ..compat_fsdp import fully_shard_on_meta
from ..fold import kept_of
from ..grounds import META
from ..groups import ShardingPlan, groups_of, name_groups_by_axis
from ..program import TRAINING
from ..records import Trace
from ..workload import Workload, record
from .config import quiet
from .context import POSITIONS, attention_calls, spread_over
from .legality import illegal
from .program import HuggingFaceProgram
from .rank import Adapted, Place, RankProgram
from .recompute import checkpoint_layers
from .stage import cut, fill, is_elsewhere, layers_of, stack_of


def record_rank(
    program: HuggingFaceProgram, workload: Workload, plan: ShardingPlan, *, rank: int = 0,
    stage: int | None = None, attention: str = "fused", fold: bool = True,
    layers: range | None = None,
) -> Trace:  # fmt: skip
    """The trace of what `rank` runs; header and groups as `capture.sharded.record_rank` has them.

    Args:
        program: the model; a copy of it is cut.
        workload: `batch` is that of one data rank, the plan's `micro_batch`.
        plan: legal for the model and the workload (`Plan.illegal`); in training over data ranks
            with `zero` 0 or 3.
        rank: whose program.
        stage: one of those that the rank's place in the pipeline has; by default its first.
        attention: as in `workload.record`.
        fold: as there.
        layers: those of the stage, where they are not the plan's (`Plan.layers_of`).

    Raises:
        UserError: the plan uses what transformers or the trace has not, or a process group is in
            force already.
    """
    place = rank * plan.pp // plan.world
    stage = place if stage is None else stage
    _check(program, workload, plan, alone=layers is not None and not layers)
    if stage % plan.pp != place:
        raise UserError(f"stage {stage} is on pipeline rank {stage % plan.pp}, rank {rank} is not")
    where = layers_of(program)
    depth = len(where.kinds) if where is not None else program.layers
    layers = plan.layers_of(stage, depth) if layers is None else layers
    while True:
        with contextlib.suppress(Adapted):
            with groups_of(plan, rank) as groups, compat.silent_propagation():
                trace = _traced(
                    program, workload, plan, groups, rank, stage, layers, attention, fold
                )
            break
    name_groups_by_axis(trace)
    trace.header |= {
        "plan": str(plan), "rank": rank, "stage": stage, "layers": [layers.start, layers.stop],
        "seq": workload.seq,
    }  # fmt: skip
    if "ep" in trace.header["groups"]:
        trace.header["notes"].append(
            f"EP={plan.ep}: routing taken as balanced, every rank computes as many rows"
        )
    return trace


def _check(
    program: HuggingFaceProgram, workload: Workload, plan: ShardingPlan, *, alone: bool
) -> None:
    """`alone`: an embedding or a head without layers, of a plan whose layers were looked at."""
    if workload.batch != plan.micro_batch:
        raise UserError(
            f"batch {workload.batch}: a data rank of this plan runs micro_batch={plan.micro_batch} "
            "sequences at once"
        )
    if not alone and (reasons := illegal(program, workload, plan)):
        raise UserError(f"{program.name}: plan {plan}: {'; '.join(reasons)}")
    replicas = plan.dp * plan.cp
    if workload.phase == TRAINING and replicas > 1 and plan.zero not in (0, 3):
        raise UserError(
            f"{program.name}: dp={plan.dp} cp={plan.cp} with zero={plan.zero}: a transformers "
            "model is traced with zero=0 (gradients all-reduced) or zero=3 (fully_shard)"
        )


def _traced(
    program: HuggingFaceProgram, workload: Workload, plan: ShardingPlan, groups: Mapping[str, Any],
    rank: int, stage: int, layers: range, attention: str, fold: bool,
) -> Trace:  # fmt: skip
    trained = workload.phase == TRAINING
    fully = trained and plan.zero == 3 and plan.dp * plan.cp > 1
    ends = stage == 0, stage == plan.stages - 1
    place = Place(
        None if ends[0] else (stage - 1) % plan.pp, None if ends[1] else (stage + 1) % plan.pp
    )
    meshes = _Meshes(plan, groups, rank)
    model: Any = cut(program, layers, first=ends[0], last=ends[1], fold=fold)
    if trained and plan.recompute != "none":
        checkpoint_layers(model, plan.recompute)
    _spread(model, plan, meshes)
    if fully:
        _shard_fully(model, plan, meshes)
    fill(stack_of(model))
    inputs = (POSITIONS,) if plan.cp > 1 else ()
    twin = RankProgram(
        program, model, META, place, groups, inputs, reduces=trained and not fully
    )  # fmt: skip
    if plan.cp == 1:
        return record(twin, workload, attention=attention, fold=fold)
    own = replace(workload, seq=workload.seq // plan.cp)
    with spread_over(groups["cp"]):
        trace = record(twin, own, attention=attention, fold=fold)
        asked, run = attention_calls(), len(kept_of(stack_of(model).kinds)) if fold else len(layers)
        if asked < run:
            raise UserError(
                f"{program.name}: cp={plan.cp}: {asked} of {run} layers ask transformers for "
                "attention; those with one of their own are not traced"
            )
    return trace


class _Meshes:
    """Groups of a rank as meshes for DTensor; those that shard one parameter have one root."""

    def __init__(self, plan: ShardingPlan, groups: Mapping[str, Any], rank: int) -> None:
        self.groups, self.rank = groups, rank
        self.tp: Any = None
        self.ep: Any = None
        self.dp: Any = None
        self.edp: Any = None
        base = plan.groups(rank)["stage"]
        fully = plan.zero == 3 and plan.dp * plan.cp > 1
        if fully:
            self.dp, self.tp = self._two("dp", "tp", base, plan.tp)
            if plan.ep > 1:
                self.edp, self.ep = self._two("edp", "ep", base, plan.ep)
        else:
            self.tp = self._one("tp")
            self.ep = self._one("ep") if plan.ep > 1 else None

    def _group(self, axis: str) -> Any:
        if self.groups[axis].size > 1:
            return compat.process_group(self.groups[axis].name)
        return torch.distributed.new_group([self.rank], group_desc=axis)

    def _one(self, axis: str) -> Any:
        return DeviceMesh.from_group(self._group(axis), "cpu", mesh_dim_names=(axis,))

    def _two(self, outer: str, inner: str, ranks: range, size: int) -> tuple[Any, Any]:
        grid = torch.tensor(list(ranks)).view(-1, size)
        mesh = DeviceMesh.from_group(
            [self._group(outer), self._group(inner)], "cpu", mesh=grid,
            mesh_dim_names=(outer, inner),
        )  # fmt: skip
        return mesh[outer], mesh[inner]


def _spread(model: Any, plan: ShardingPlan, meshes: _Meshes) -> None:
    """Apply the model's own plans for TP and EP ranks."""
    if plan.tp == plan.ep == 1:
        return
    from transformers.distributed.configuration_utils import DistributedConfig
    from transformers.distributed.expert_parallel import apply_expert_parallelism
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    from . import experts

    experts.register()
    how = DistributedConfig(tp_size=plan.tp, ep_size=plan.ep, fsdp_size=-(-plan.ep // plan.tp))
    with quiet():
        tensor, expert, _ = model._resolve_parallel_plans(how)
        if plan.tp > 1:
            tied = _tied(model)
            again = {f"{path}.{name}" for _, *others in tied for path, name in others}
            here = {
                k: style for k, style in tensor.items()
                if k not in again and not is_elsewhere(model, k)
            }  # fmt: skip
            apply_tensor_parallelism(model, meshes.tp, here)
            for (path, name), *others in tied:
                cut_once = model.get_submodule(path)._parameters[name]
                for other, its in others:
                    model.get_submodule(other)._parameters[its] = cut_once
        if plan.ep > 1:
            apply_expert_parallelism(
                model, meshes.ep, meshes.tp, expert, ep_implementation=experts.NAME
            )


def _tied(model: Any) -> list[list[tuple[str, str]]]:
    """Modules and names that hold the same parameter: transformers' plans cut it under each."""
    found: dict[int, list[tuple[str, str]]] = {}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        path, _, name = full.rpartition(".")
        found.setdefault(id(parameter), []).append((path, name))
    return [places for places in found.values() if len(places) > 1]


def _shard_fully(model: Any, plan: ShardingPlan, meshes: _Meshes) -> None:
    """`fully_shard` each layer of the stack, then the rest as one."""
    stack = stack_of(model)
    apart: set[Any] = set()  # experts that no other rank has
    for layer in stack:
        if plan.ep > 1:
            for module in layer.modules():
                if not getattr(module, "_is_expert_parallel", False):
                    continue
                if meshes.edp.size() > 1:
                    fully_shard_on_meta(module, mesh=meshes.edp)
                else:
                    apart.update(module.parameters())
        if any(True for _ in layer.parameters()):
            mine = apart.intersection(layer.parameters())
            fully_shard_on_meta(layer, mesh=meshes.dp, ignored_params=mine or None)
    root = model if plan.pp == 1 or _has_head(model) else model.base_model
    fully_shard_on_meta(root, mesh=meshes.dp, ignored_params=apart or None)


def _has_head(model: Any) -> bool:
    """Whether a stage calls the model, and not the layers in it alone."""
    inside = len(list(model.base_model.parameters()))
    return len(list(model.parameters())) > inside
