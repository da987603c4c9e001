"""The stages of a plan for any model: reference models from blocks, all others from one trace."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ..cost import NAIVE, Conventions, price
from ..errors import UserError
from ..parallel.network import Network
from ..parallel.plan import Plan
from ..parallel.ranks import sizes_of
from . import mtp, pieces
from .block import Block
from .kernels import Kernels
from .links import EVEN_LOAD, Links, RankLoad
from .structure import HEAD, MTP, Structure, groups_on

if TYPE_CHECKING:
    from ..capture.program import Program


class Stages(Protocol):
    """What a plan's price asks of a model."""

    def illegal(self, plan: Plan) -> list[str]:
        """Why the plan cannot cut this model."""

    def blocks(self) -> list[Block]:
        """One a stage."""

    def flops(self) -> tuple[float, float]:
        """Published FLOPs of a step: causal pairs, all S^2 pairs; without an MTP module's."""

    def mtp_flops(self) -> tuple[float, float]:
        """Those of the MTP module and its pass through the output head; 0 without."""

    def buffers(self) -> float:
        """Bytes that the exchange of experts' tokens holds on a rank, as far as they are known."""

    def mtp(self) -> mtp.Added | None:
        """What an MTP module adds to the last stage; None without."""

    def notes(self) -> list[str]:
        """A line each."""


def stages_of(
    program: Program, plan: Plan, network: Network, kernels: Kernels, *, phase: str,
    seq: int = 4096, context: int = 4096, exchange: str = "normal",
    load: RankLoad = EVEN_LOAD, weights: str | None = None, kept: str = "trace",
) -> Stages:  # fmt: skip
    """The stages of `plan`; `exchange`, `load` and `kept` as in `Structure`.

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
                program, work, plan, network, kernels, exchange=exchange, load=load, kept=kept
            )
        )
    if kept != "trace":
        raise UserError(f"{program.name}: kept={kept} is known for reference models")
    return WholeStages(program, work, plan, network, kernels, weights, load)


def is_reference(program: Program) -> bool:
    """Whether it is one of the project's own models, which has all of DeepSeek's cuts."""
    from ..capture.reference import ReferenceProgram

    return isinstance(program, ReferenceProgram)


def supported(program: Program, plan: Plan) -> Plan:
    """`plan` without sequence parallelism where no plan of the model's has it (transformers)."""
    return plan if is_reference(program) else replace(plan, sequence_parallel=False)


class ReferenceStages:
    """Stages of a reference model."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure

    def illegal(self, plan: Plan) -> list[str]:
        s = self.structure
        training, tokens = s.workload.phase == "training", s.workload.tokens
        found = plan.illegal(s.sizes, training=training, seq=tokens // s.workload.batch)
        if plan.cuts_tokens and (tokens // plan.cp) % plan.tp:
            found.append(f"{tokens // plan.cp} tokens of a data rank do not divide by TP={plan.tp}")
        return found

    def blocks(self) -> list[Block]:
        found: dict[int, Block] = {}
        for block, stages in self.structure.alike():
            for stage in stages:
                found[stage] = block
        return [found[stage] for stage in range(self.structure.plan.stages)]

    def flops(self) -> tuple[float, float]:
        return step_flops(self.structure.program, self.structure.workload, self.structure.plan)

    def mtp_flops(self) -> tuple[float, float]:
        return more_flops(self.structure.program, self.structure.workload, self.structure.plan)

    def buffers(self) -> float:
        return self.structure.buffers()

    def mtp(self) -> mtp.Added | None:
        s = self.structure
        return mtp.added(s.block(MTP), s.block(HEAD)) if s.plan.mtp else None

    def notes(self) -> list[str]:
        notes = ["stages as sums of layers that were traced one by one"]
        notes += mtp.notes(self.structure.plan, self.structure.sizes.layers)
        if self.structure.plan.ep > 1 and self.structure.exchange != "nccl":
            notes.append(f"expert exchange: DeepEP's {self.structure.exchange} kernels")
        if self.structure.kept == "fp8":
            notes.append("activations kept as arXiv 2412.19437 says (FP8, E5M6), by hand formula")
        return notes


class WholeStages:
    """Stages of a transformers model, see `pieces`; of any other module a copy on every rank."""

    def __init__(
        self, program: Program, workload: Any, plan: Plan, network: Network, kernels: Kernels,
        weights: str | None, load: RankLoad = EVEN_LOAD,
    ) -> None:  # fmt: skip
        self.program: Any = program  # programs are hashable, which their protocol does not say
        self.work, self.plan, self.load = workload, plan, load
        self.network, self.kernels, self.weights = network, kernels, weights
        self.cut = _shown(plan, workload.phase == "training")

    def illegal(self, plan: Plan) -> list[str]:
        training = self.work.phase == "training"
        seq = self.work.tokens // self.work.batch
        if plan.mtp and hasattr(self.program, "with_mtp"):
            return plan.illegal(sizes_of(self.program), training=training, seq=seq)
        extra = plan.sequence_parallel or plan.attention_dp or plan.redundant_experts or plan.mtp
        if pieces.uncut(_shown(plan, training)) and not extra:
            return []
        if not hasattr(self.program, "config"):
            return ["a module of one's own runs on data ranks alone, a copy on each"]
        from ..capture.huggingface.legality import illegal

        sizes = sizes_of(self.program)
        if plan.pp == 1:  # else the two are on different ranks
            sizes = replace(sizes, tied=False)
        found = replace(plan, mtp=False).illegal(sizes, training=training, seq=seq)
        return found or illegal(self.program, self.work, plan)

    def blocks(self) -> list[Block]:
        if self.plan.stages == 1:
            return [self._whole(mtp.trained_with(self.program) if self.plan.mtp else self.program)]
        from ..capture.huggingface.stage import layers_of

        where = layers_of(self.program)
        assert where is not None  # the plan is legal
        found: dict[Any, Block] = {}
        order = []
        for stage in range(self.plan.stages):
            own = self.plan.layers_of(stage, len(where.kinds))
            kinds = where.kinds[own.start : own.stop]
            # Of ranges of layers of the same kinds in one order the first stands for all.
            start = next(i for i in range(own.start + 1) if where.kinds[i : i + len(own)] == kinds)
            ends = stage == 0, stage == self.plan.stages - 1
            order.append((kinds, ends))
            if order[-1] not in found:
                found[order[-1]] = pieces.stage(
                    self.program, self.work, self.cut, range(start, start + len(own)), kinds, ends,
                    self.kernels, self._links(), self.weights == "fp8",
                )  # fmt: skip
        return [found[key] for key in order]

    def _whole(self, program: Any) -> Block:
        """All of a program in one stage."""
        whole = pieces.traced(
            program, self.work, self.cut, 0, None, self.kernels, self.network,
            self.weights == "fp8",
        )  # fmt: skip
        return whole.block(self._links(), self.cut)

    def _links(self) -> Links:
        groups = groups_on(self.plan, self.network)
        return Links(self.network, groups, kernel="nccl", load=self.load)

    def flops(self) -> tuple[float, float]:
        return step_flops(self.program, self.work, self.plan)

    def mtp_flops(self) -> tuple[float, float]:
        return more_flops(self.program, self.work, self.plan)

    def buffers(self) -> float:
        return 0.0  # NCCL's, which has no published size

    def mtp(self) -> mtp.Added | None:
        if not self.plan.mtp:
            return None
        return mtp.added(self._whole(mtp.trained_with(self.program)), self._whole(self.program))

    def notes(self) -> list[str]:
        notes = mtp.notes(self.plan, self.program.layers)
        if self.plan.cp > 1:
            notes.append(
                "CP of a transformers model: two chunks of every sequence a rank (zigzag); keys "
                "and values are gathered in every layer"
            )
        if self.plan.tp > 1:
            from ..capture.huggingface.legality import leaves_layers_whole

            if leaves_layers_whole(self.program):
                notes.append("the model's own plan leaves attention whole on every TP rank")
        if self.plan.ep > 1:
            notes.append(
                "expert exchange: as transformers does it, all rows in one all-to-all, or an "
                "all-reduce where all ranks hold one batch and nothing is trained"
            )
        if self.weights == "fp8":
            kept = (
                "the output head and routed experts" if self._has_experts() else "the output head"
            )
            notes.append(
                f"FP8 linears, {kept} in BF16: products at the FP8 rate with per-tensor "
                "scales, the activation rounded in a kernel of its own"
            )
        return notes

    def _has_experts(self) -> bool:
        return hasattr(self.program, "config") and sizes_of(self.program).experts > 0


def _shown(plan: Plan, training: bool) -> Plan:
    """What of a plan shows in one rank's trace.

    As many stages as there are kinds of them (first, between, last), and as few replicas as hold
    the experts; `fully_shard` cuts by the real number.
    """
    fully = training and plan.zero == 3 and plan.dp * plan.cp > 1
    dp = plan.dp
    if not fully:
        dp = 1
        while (plan.tp * plan.cp * dp) % plan.ep and dp < plan.dp:
            dp += 1
    return Plan(
        tp=plan.tp, ep=plan.ep, pp=3 if plan.stages > 1 else 1, dp=dp, cp=plan.cp,
        zero=3 if fully else 0, micro_batch=plan.micro_batch,
        recompute=plan.recompute if training else "none",
    )  # fmt: skip


def step_flops(program: Any, work: Any, plan: Plan) -> tuple[float, float]:
    """Published FLOPs of a step of `plan`: causal pairs, all pairs."""
    causal, full = model_flops(program, work.phase, work.seq, work.context)
    return causal * plan.global_batch, full * plan.global_batch


def more_flops(program: Any, work: Any, plan: Plan) -> tuple[float, float]:
    """What an MTP module adds to them."""
    if not plan.mtp:
        return 0.0, 0.0
    both = mtp.trained_with(program), program
    with_it, without = (step_flops(p, work, plan) for p in both)
    return with_it[0] - without[0], with_it[1] - without[1]


@functools.lru_cache(maxsize=64)
def model_flops(program: Any, phase: str, seq: int, context: int) -> tuple[float, float]:
    """Published FLOPs of one sequence, all passes: causal pairs, all pairs.

    An optimizer has none, and which ops run as one kernel does not matter to them.
    """
    from ..capture.workload import Workload

    trace = pieces.alone(program, Workload(phase, 1, seq, context, optimizer="none"))

    def count(causal: str) -> float:
        ledger = price(trace, Conventions(causal=causal), execution=NAIVE)
        return float(ledger.total().total_flops)

    return count("pairs"), count("full")


__all__ = [
    "ReferenceStages",
    "Stages",
    "WholeStages",
    "model_flops",
    "sizes_of",
    "stages_of",
    "supported",
]
