"""The layers of a plan as building blocks: traced once a structure, reused by every plan.

What a rank runs for one layer depends on how the layer is cut (`tp`, `ep`, `cp`, sequences at
once, what is computed again), not on how many stages or replicas there are. So one-layer stages of
short models are traced: the first with the embedding, a dense layer, an expert layer, the last with
the output head, of which the layer is taken off again; any stage of any plan is a sum of them.
A head with the module of multi-token prediction is a last stage without other layers (see `mtp`).
What this leaves out is the kernels that would fuse across two layers;
`tests/predict/test_plan_training.py` holds it against stages traced as a whole.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..collector import without_collector
from ..errors import UserError
from ..parallel.exchange_buffers import low_latency_buffers, normal_buffers
from ..parallel.expert_exchange import NORMAL
from ..parallel.expert_traffic import Routing
from ..parallel.groups import Group, strided
from ..parallel.network import Network
from ..parallel.plan import Plan
from ..parallel.ranks import rank_trace, sizes_of
from ..parallel.sizes import Sizes
from .block import Block, Held, held_by, together
from .clocked import Clocked
from .kept import kept_in_fp8
from .kernels import Kernels
from .links import EVEN_LOAD, Links, RankLoad
from .mtp import kept_beside_layer, sharing

if TYPE_CHECKING:
    from ..capture.reference import ReferenceProgram
    from ..capture.workload import Workload

EMBEDDING, DENSE, EXPERTS, HEAD, MTP = "embedding", "dense", "experts", "head", "mtp"


class Structure:
    """The blocks of one way to cut a model, on one cluster.

    Args:
        program: a reference model.
        workload: what a data rank runs at once; its batch is the plan's `micro_batch`.
        plan: legal for the model.
        network: of the cluster.
        kernels: what is assumed of them.
        exchange, load: see `Links`.
        kept: activations for the backward: "trace", as the traced program keeps them, or "fp8",
            see `kept`.
    """

    def __init__(
        self, program: ReferenceProgram, workload: Workload, plan: Plan, network: Network,
        kernels: Kernels, *, exchange: str = "normal", load: RankLoad = EVEN_LOAD,
        kept: str = "trace",
    ) -> None:  # fmt: skip
        if kept == "fp8" and (plan.tp > 1 or program.dtype != "fp8" or plan.recompute != "latent"):
            raise UserError(
                f"plan {plan}: kept=fp8 is known for FP8 training with tp=1 recompute=latent"
            )
        self.kept = kept
        self.program, self.plan, self.network = program, plan, network
        self.kernels, self.exchange, self.load = kernels, exchange, load
        self.workload = replace(workload, batch=plan.micro_batch)
        self.sizes = sizes_of(program)
        self._blocks: dict[str, Block] = {}

    def stage(self, stage: int) -> Block:
        """Everything of a stage."""
        layers = self.plan.layers_of(stage, self.sizes.layers)
        config = self.program.config
        found = []
        for index in layers:
            kind = EXPERTS if config.is_moe(index) else DENSE
            kind = {0: EMBEDDING, self.sizes.layers: MTP}.get(index, kind)
            found.append(self.block(kind))
        if layers.stop == self.sizes.layers and not self.plan.mtp:
            found.append(self.block(HEAD))
        return together(found)

    def alike(self) -> Iterator[tuple[Block, list[int]]]:
        """Stages with the same blocks."""
        config, groups = self.program.config, dict[Any, list[int]]()
        for stage in range(self.plan.stages):
            layers = self.plan.layers_of(stage, self.sizes.layers)
            kinds = (layers.start == 0, stage == self.plan.stages - 1,
                     tuple(config.is_moe(i) for i in layers))  # fmt: skip
            groups.setdefault(kinds, []).append(stage)
        for stages in groups.values():
            yield self.stage(stages[0]), stages

    def buffers(self) -> float:
        """Bytes that DeepEP's kernels hold on a rank."""
        config, plan = self.program.config, self.plan
        if plan.ep == 1 or self.exchange == "nccl":
            return 0.0
        if self.exchange == NORMAL:
            cluster = self.network.cluster
            return normal_buffers(config.hidden_size, dict(self._groups())["ep"], cluster.comm_sms)
        tokens = self.workload.tokens // (plan.cp * (1 if plan.attention_dp else plan.tp))
        placed = config.n_routed_experts + plan.redundant_experts
        return low_latency_buffers(config.hidden_size, max(tokens, 1), placed)

    def block(self, kind: str) -> Block:
        """One block, from the cache where its structure has been there."""
        if kind not in self._blocks:
            self._blocks[kind] = self._found(kind)
        return self._blocks[kind]

    def _found(self, kind: str) -> Block:
        if kind == HEAD:
            last = self._on_last_tokens()
            return last._of(HEAD).minus(last._of(DENSE))
        block, config, plan = self._of(kind), self.program.config, self.plan
        if self.kept == "fp8":
            tokens = self.workload.tokens // plan.cp
            saved = kept_in_fp8(config, tokens, self._has_experts(kind))
            if kind == MTP:
                saved += kept_beside_layer(config, tokens) + 2 * self.block(HEAD).saved
            block = replace(block, saved=saved)
        if plan.mtp and kind in (EMBEDDING, MTP):
            inner = EXPERTS if self._has_experts(EMBEDDING) else DENSE
            block = sharing(plan, kind == MTP, block, self._of(EMBEDDING).minus(self._of(inner)))
        return block

    def _has_experts(self, kind: str) -> bool:
        config = self.program.config
        layer = {EMBEDDING: 0, MTP: config.num_hidden_layers}.get(kind)
        return kind == EXPERTS if layer is None else bool(config.is_moe(layer))

    def _on_last_tokens(self) -> Structure:
        """With the tokens that the head sees: where a prefill wants logits of the last token of
        every sequence alone, that one, or as few as ranks can cut.
        """
        work, plan = self.workload, self.plan
        if work.phase != "prefill" or not self.program.last_logits:
            return self
        few = (2 * plan.cp if plan.cp > 1 else 1) * (plan.tp if plan.cuts_tokens else 1)
        found = copy.copy(self)
        found.workload = replace(work, seq=min(work.seq, few))
        return found

    def _of(self, kind: str) -> Block:
        cut = _cut(self.plan, self.plan.ep if self._has_experts(kind) else 1)
        cut = replace(cut, mtp=kind == MTP)
        return _measured(
            self.program, self.workload, cut, kind, self.network, self.kernels, self.exchange,
            self.load, self._groups(),
        )  # fmt: skip

    def _groups(self) -> tuple[tuple[str, Group], ...]:
        """The groups that a micro-batch's messages go through, on the cluster."""
        groups = groups_on(self.plan, self.network)
        inside = ("tp", "cp", "ep") if self.plan.zero < 2 else tuple(groups)
        return tuple((axis, groups[axis]) for axis in inside)


@functools.lru_cache(maxsize=1024)
def groups_on(plan: Plan, network: Network) -> dict[str, Group]:
    """The groups of rank 0 of a plan on a cluster."""
    found = {}
    for axis, ranks in plan.groups(0).items():
        if axis != "pp":
            found[axis] = strided(len(ranks), ranks.step, network.cluster)
    return found


def routing_of(program: ReferenceProgram, plan: Plan) -> Routing | None:
    """How tokens choose experts, for what they send."""
    config = program.config
    if not config.n_routed_experts:
        return None
    limited = config.topk_method != "greedy" and config.topk_group < config.n_group
    placed = config.n_routed_experts + plan.redundant_experts
    groups = (config.n_group, config.topk_group) if limited else (1, 1)
    if placed % groups[0]:
        groups = (1, 1)
    return Routing(placed, config.num_experts_per_tok, *groups)


def _cut(plan: Plan, ep: int) -> Plan:
    """What of a plan shows in one layer; as few replicas as its expert groups need.

    Where the backward reduces or gathers over data ranks, experts need a second group of them too.
    """
    dp, inner = 1, plan.tp * plan.cp
    if plan.dp > 1:
        dp = 2
        while dp < plan.dp and ((inner * dp) % ep or (plan.zero >= 2 and inner * dp == ep)):
            dp += 1
    return replace(
        plan, ep=ep, dp=dp, pp=1, chunks=1, schedule="1f1b", moments="fp32",
        micro_batches=min(plan.micro_batches, 2),
        zero=plan.zero if plan.zero >= 2 else min(dp, 2) - 1,
        redundant_experts=plan.redundant_experts if ep > 1 else 0,
    )  # fmt: skip


@functools.lru_cache(maxsize=512)
def _measured(
    program: ReferenceProgram, workload: Workload, cut: Plan, kind: str, network: Network,
    kernels: Kernels, exchange: str, load: RankLoad, groups: tuple[tuple[str, Group], ...],
) -> Block:  # fmt: skip
    clocked, held = _clocked(program, workload, cut, kind, network, kernels)
    links = Links(network, dict(groups), routing_of(program, cut), exchange, load)
    return held.block(clocked.passes(links), {axis: group.ranks for axis, group in groups})


@functools.lru_cache(maxsize=256)
def _clocked(
    program: ReferenceProgram, workload: Workload, cut: Plan, kind: str, network: Network,
    kernels: Kernels,
) -> tuple[Clocked, Held]:  # fmt: skip
    short, place = _short(program, kind)
    plan = replace(cut, pp=short.layers + cut.mtp)
    with without_collector():
        trace = rank_trace(
            short, workload, plan, rank=place * plan.ranks_per_stage, stage=place, fold=False
        )
        ledger = kernels.ledger(trace)
        return Clocked(ledger, network, kernels.timing), held_by(ledger, cut)


@functools.lru_cache(maxsize=64)
def _short(program: ReferenceProgram, kind: str) -> tuple[ReferenceProgram, int]:
    """A model of few layers that has `kind`, and which of its stages that is."""
    from ..capture.reference import ReferenceProgram

    config = program.config
    dense = sum(not config.is_moe(i) for i in range(config.num_hidden_layers))
    if kind == MTP:
        layers, first, place = 1, min(dense, 1), 1
    elif kind in (DENSE, HEAD):  # a head on a dense layer: the room that experts need would hide it
        layers, first, place = 3, 3, 2 if kind == HEAD else 1
    else:
        first = min(dense, 2)
        layers = max(first, 1) + 2
        place = 0 if kind == EMBEDDING else max(first, 1)
    short = ReferenceProgram(
        f"{program.name} ({layers} layers)",
        {**program.raw, "num_hidden_layers": layers, "first_k_dense_replace": first},
        program.dtype,
    )
    return short, place


__all__ = ["Kernels", "Sizes", "Structure", "groups_on", "routing_of"]
