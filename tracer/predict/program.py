"""The stages of a plan for any model: reference models from blocks, all others from one trace."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ..cost import NAIVE, Conventions, Ledger, price
from ..cost.lowered import in_fp8, saved_weights
from ..errors import UserError
from ..parallel.network import Network
from ..parallel.plan import Plan
from ..parallel.ranks import sizes_of
from ..parallel.sizes import Sizes
from .passes import Links, Passes, Segment, passes_of
from .structure import Block, Kernels, Structure, groups_on, measure

if TYPE_CHECKING:
    from ..capture.program import Program


class Stages(Protocol):
    """What a plan's price asks of a model."""

    def illegal(self, plan: Plan) -> list[str]:
        """Why the plan cannot cut this model."""

    def blocks(self) -> list[Block]:
        """One a stage."""

    def flops(self) -> tuple[float, float]:
        """Published FLOPs of a step: causal pairs, all S^2 pairs."""

    def notes(self) -> list[str]:
        """A line each."""


def stages_of(
    program: Program, plan: Plan, network: Network, kernels: Kernels, *, phase: str,
    seq: int = 4096, context: int = 4096, exchange: str = "normal", skew: float = 1.0,
    weights: str | None = None, kept: str = "trace",
) -> Stages:  # fmt: skip
    """The stages of `plan`; `exchange`, `skew` and `kept` as in `Structure`.

    `weights`: "fp8" serves a transformers model with FP8 linears (see `cost.lowered`).
    """
    from ..capture.reference import ReferenceProgram
    from ..capture.workload import Workload

    work = Workload(phase, plan.micro_batch, seq, context)
    alone = plan.world == 1 and plan.recompute == "none" and kept == "trace"
    if isinstance(program, ReferenceProgram) and not alone:
        if weights is not None:
            raise UserError(f"{program.name}: give --dtype fp8, which it has of its own")
        return ReferenceStages(
            Structure(
                program, work, plan, network, kernels, exchange=exchange, skew=skew, kept=kept
            )
        )
    if kept != "trace":
        raise UserError(f"{program.name}: kept={kept} is known for reference models")
    return WholeStages(program, work, plan, network, kernels, weights)


class ReferenceStages:
    """Stages of a reference model."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure

    def illegal(self, plan: Plan) -> list[str]:
        s = self.structure
        training, tokens = s.workload.phase == "training", s.workload.tokens
        found = plan.illegal(s.sizes, training=training, seq=tokens // s.workload.batch)
        cuts = plan.tp > 1 and not plan.attention_dp and (plan.sequence_parallel or plan.ep > 1)
        if cuts and (tokens // plan.cp) % plan.tp:
            found.append(f"{tokens // plan.cp} tokens of a data rank do not divide by TP={plan.tp}")
        return found

    def blocks(self) -> list[Block]:
        found: dict[int, Block] = {}
        for block, stages in self.structure.alike():
            for stage in stages:
                found[stage] = block
        return [found[stage] for stage in range(self.structure.plan.stages)]

    def flops(self) -> tuple[float, float]:
        s = self.structure
        each = model_flops(s.program, s.workload.phase, s.workload.seq, s.workload.context)
        batch = s.plan.global_batch
        return each[0] * batch, each[1] * batch

    def notes(self) -> list[str]:
        notes = ["stages as sums of layers that were traced one by one"]
        if self.structure.plan.ep > 1 and self.structure.exchange != "nccl":
            notes.append(f"expert exchange: DeepEP's {self.structure.exchange} kernels")
        if self.structure.kept == "fp8":
            notes.append("activations kept as arXiv 2412.19437 says (FP8, E5M6), by hand formula")
        return notes


class WholeStages:
    """A transformers model (or any other) on TP, CP and data-parallel ranks, without stages."""

    def __init__(
        self, program: Program, workload: Any, plan: Plan, network: Network, kernels: Kernels,
        weights: str | None,
    ) -> None:  # fmt: skip
        self.program: Any = program  # programs are hashable, which their protocol does not say
        self.work, self.plan = workload, plan
        self.network, self.kernels, self.weights = network, kernels, weights

    def illegal(self, plan: Plan) -> list[str]:
        found = [
            f"{name}={getattr(plan, name)} is traced for the reference models only"
            for name in ("pp", "ep")
            if getattr(plan, name) > 1
        ]
        if plan.recompute != "none":
            found.append("recompute is traced for the reference models only")
        config = getattr(self.program, "config", None)
        if plan.tp > 1 and config is not None:
            sizes = Sizes.of(config.to_dict())
            found += replace(plan, pp=1, ep=1).illegal(replace(sizes, tied=False))
        seq = self.work.tokens // self.work.batch
        return found + plan.illegal_chunks(seq)

    def blocks(self) -> list[Block]:
        plan = self.plan
        work = self.work
        if plan.cp > 1 and work.phase != "decode":
            work = replace(work, seq=work.seq // plan.cp)
        ledger = _whole(self.program, work, plan.tp, self.kernels)
        saved = 0
        if self.weights == "fp8":
            saved = saved_weights(ledger)
            ledger = in_fp8(ledger)
        links = Links(self.network, groups_on(plan, self.network))
        passes = passes_of(ledger, links, self.kernels.timing, attention=float(plan.cp))
        block = measure(ledger, replace(plan, dp=1, zero=0), passes)
        if work.phase == "training" and not block.parameters:
            count = sum(p.numel for p in ledger.trace.parameters if p.trainable and not p.buffer)
            block = replace(block, parameters={"dp": float(count)})
        block = replace(block, weights=block.weights - saved)
        if plan.zero == 3 and plan.dp > 1 and work.phase == "training":
            block = self._gathered(block)
        return [replace(block, passes=self._with_keys(block.passes))]

    def _gathered(self, block: Block) -> Block:
        """ZeRO 3: parameters gathered before both passes, gradients scattered behind the second."""
        group = groups_on(self.plan, self.network)["dp"]
        nbytes = 2.0 * sum(block.parameters.values())
        gather = self.network.all_gather(nbytes, group)
        scatter = self.network.reduce_scatter(nbytes, group)
        p = block.passes
        ahead = Segment("dp", float(gather.seconds), sms=gather.sms)
        behind = Segment("dp", float(scatter.seconds), sms=scatter.sms)
        passes = replace(p, forward=(ahead, *p.forward), backward=(ahead, *p.backward, behind))
        return replace(block, passes=passes, weights=block.weights / group.ranks)

    def _with_keys(self, passes: Passes) -> Passes:
        """Context parallel: keys and values of all ranks, gathered in every layer and pass."""
        plan, config = self.plan, getattr(self.program, "config", None)
        if plan.cp == 1 or self.work.phase == "decode" or config is None:
            return passes
        group = groups_on(plan, self.network)["cp"]
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        heads = max(
            getattr(config, "num_key_value_heads", config.num_attention_heads) // plan.tp, 1
        )
        nbytes = 2.0 * 2 * heads * width * self.work.seq * self.work.batch
        layers = config.num_hidden_layers
        one = self.network.all_gather(nbytes, group)
        forward = Segment("cp", layers * float(one.seconds), sms=one.sms)
        back = self.network.reduce_scatter(nbytes, group)
        both = layers * float(one.seconds + back.seconds)
        backward = Segment("cp", both, sms=back.sms)
        chain = (backward, *passes.backward) if passes.backward else ()
        return replace(passes, forward=(forward, *passes.forward), backward=chain)

    def flops(self) -> tuple[float, float]:
        each = model_flops(self.program, self.work.phase, self.work.seq, self.work.context)
        batch = self.plan.global_batch
        return each[0] * batch, each[1] * batch

    def notes(self) -> list[str]:
        notes = []
        if self.plan.cp > 1:
            notes.append(
                "CP of a transformers model: each rank has 1/CP of the tokens and of the causal "
                "pairs (zigzag); keys and values are gathered in every layer"
            )
        if self.weights == "fp8":
            notes.append(
                "FP8 linears, the output head in BF16: products at the FP8 rate with per-tensor "
                "scales, the activation rounded in a kernel of its own"
            )
        return notes


@functools.lru_cache(maxsize=16)
def _whole(program: Any, work: Any, tp: int, kernels: Kernels) -> Ledger:
    from ..capture.workload import record

    if tp == 1:
        return kernels.ledger(record(program, work))
    try:
        from ..capture.huggingface.sharded import record_rank
    except ImportError:
        raise UserError(f"{program.name}: TP is traced for the reference models only") from None
    return kernels.ledger(record_rank(program, work, Plan(tp=tp, micro_batch=work.batch)))


@functools.lru_cache(maxsize=64)
def model_flops(program: Any, phase: str, seq: int, context: int) -> tuple[float, float]:
    """Published FLOPs of one sequence, all passes: causal pairs, all pairs.

    An optimizer has none, and which ops run as one kernel does not matter to them.
    """
    from ..capture.workload import Workload, record

    trace = record(program, Workload(phase, 1, seq, context, optimizer="none"))

    def count(causal: str) -> float:
        ledger = price(trace, Conventions(causal=causal), execution=NAIVE)
        return float(ledger.total().total_flops)

    return count("pairs"), count("full")


__all__ = ["ReferenceStages", "Stages", "WholeStages", "model_flops", "sizes_of", "stages_of"]
