"""Which plans a transformers model can be cut by, and why not by others."""

from __future__ import annotations

from typing import Any

from ...errors import UserError
from ..groups import ShardingPlan
from ..program import DECODE, NO_MTP, TRAINING
from ..workload import Workload
from . import context
from .classes import forward_parameters
from .config import text_config
from .stage import layers_of


def illegal(program: Any, workload: Workload, plan: ShardingPlan) -> list[str]:
    """Why transformers, or the trace of it, has no such program; a line each.

    `Plan.illegal` says what does not divide.
    """
    model = program.module(workload.phase, "meta")
    kind, config = type(model).__name__, text_config(program.config)
    found = []
    for name, why in _REFERENCE.items():
        if getattr(plan, name):
            found.append(f"{name}={getattr(plan, name)}: {why}")
    where = layers_of(program)
    cuts = plan.pp > 1 or plan.ep > 1 or plan.tp > 1 or plan.cp > 1 or plan.recompute != "none"
    if where is None and (cuts or plan.zero == 3):
        return [*found, f"{kind} has no one stack of decoder layers"]
    if plan.tp > 1:
        found += _tensor(model, kind, config, plan)
    if plan.ep > 1:
        found += _experts(model, kind, plan)
    if plan.pp > 1 and where is not None:
        found += _pipeline(kind, config, plan.pp, bool(where.front))
    if plan.cp > 1 and workload.phase != DECODE:
        try:
            context.refuse(program, forward_parameters(model), workload.seq, plan.cp)
        except UserError as error:
            found.append(str(error))
    if workload.phase == TRAINING and plan.recompute != "none":
        if plan.recompute == "latent":
            found.append("recompute=latent: of MLA's latents, in the reference models only")
        elif not getattr(model, "supports_gradient_checkpointing", False):
            found.append(f"recompute={plan.recompute}: {kind} has no gradient checkpointing")
    return found


_REFERENCE = {
    "sequence_parallel": "no plan of transformers cuts tokens by TP (its enable_sequence_parallel "
    "does nothing yet); the reference models have it",
    "attention_dp": "traced for the reference models only",
    "redundant_experts": "traced for the reference models only",
    "mtp": NO_MTP,
}


def _tensor(model: Any, kind: str, config: Any, plan: ShardingPlan) -> list[str]:
    cuts = model.tp_plan
    if not cuts:
        return [f"TP={plan.tp}: {kind} has no tensor-parallel plan"]
    if not any("*" in name for name in cuts) and plan.ep == 1:  # nothing in a layer
        return [f"TP={plan.tp}: the plan of {kind} cuts none of its layers"]
    heads = getattr(config, "num_key_value_heads", None)
    whole = any(k.endswith("k_proj") and style == "colwise" for k, style in cuts.items())
    if whole and isinstance(heads, int) and heads % plan.tp:
        return [
            f"{heads} KV heads do not divide by TP={plan.tp}: {kind}'s own plan cuts keys by whole "
            "heads"
        ]
    return []


def leaves_layers_whole(program: Any) -> bool:
    """Whether the model's plan for TP ranks names no part of a layer."""
    return not any("*" in name for name in program.module("training", "meta").tp_plan)


def _experts(model: Any, kind: str, plan: ShardingPlan) -> list[str]:
    if not getattr(model, "ep_plan", None):
        return [f"EP={plan.ep}: {kind} has no expert-parallel plan"]
    found = []
    if plan.ep % plan.tp:
        found.append(
            f"EP={plan.ep} is no multiple of TP={plan.tp}: transformers spreads experts over whole "
            "TP groups"
        )
    if getattr(model.config, "_experts_implementation", "grouped_mm") != "grouped_mm":
        found.append(f"EP={plan.ep}: the experts of {kind} are not traced as grouped matmuls")
    return found


def _pipeline(kind: str, config: Any, pp: int, planned: bool) -> list[str]:
    if not planned:
        return [f"PP={pp}: {kind} has no pipeline plan (base_model_pp_plan)"]
    if getattr(config, "num_kv_shared_layers", 0):
        return [f"PP={pp}: the last layers of {kind} read keys of earlier ones, on other ranks"]
    return []
