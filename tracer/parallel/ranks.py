"""The programs that the GPUs of a plan run: one trace for all stages that are alike."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..capture.records import Trace
from ..errors import UserError
from .plan import Plan
from .sizes import Sizes

if TYPE_CHECKING:
    from ..capture.huggingface import HuggingFaceProgram
    from ..capture.program import Program
    from ..capture.reference import ReferenceProgram
    from ..capture.workload import Workload


class StageTrace(NamedTuple):
    """What every rank of `stages` runs: they hold as many layers of each kind, in one order."""

    trace: Trace
    stages: tuple[int, ...]


def sizes_of(program: Program) -> Sizes:
    """The sizes of a program that a plan divides.

    Raises:
        UserError: the program has no `config` to read them from.
    """
    config: Any = getattr(program, "config", None)
    if config is None:
        raise UserError(f"{program.name}: a plan cuts models with a config.json")
    return Sizes.of(config.to_dict() if hasattr(config, "to_dict") else asdict(config))


def check(program: ReferenceProgram | HuggingFaceProgram, workload: Workload, plan: Plan) -> None:
    """Refuse a plan that cannot run the model.

    Raises:
        UserError: with all reasons in one line.
    """
    seq = 1 if workload.phase == "decode" else workload.seq
    training = workload.phase == "training"
    reasons = plan.illegal(sizes_of(program), training=training, seq=seq)
    if reasons:
        raise UserError(f"plan {plan}: {'; '.join(reasons)}")


def rank_trace(
    program: ReferenceProgram | HuggingFaceProgram, workload: Workload, plan: Plan, *,
    rank: int = 0, stage: int | None = None, attention: str = "fused", fold: bool = True,
) -> Trace:  # fmt: skip
    """The program of one rank in one stage, see `capture.sharded.record_rank`.

    A transformers model is cut by its own plans (`capture.huggingface.sharded`).

    Raises:
        UserError: the plan cannot run this model or workload; says why.
    """
    from ..capture.reference import ReferenceProgram
    from ..capture.sharded import record_rank

    check(program, workload, plan)
    if not isinstance(program, ReferenceProgram):
        from ..capture.huggingface.sharded import record_rank as record_cut

        return record_cut(
            program, workload, plan, rank=rank, stage=stage, attention=attention, fold=fold
        )
    return record_rank(
        program, workload, plan, rank=rank, stage=stage, attention=attention, fold=fold
    )


def stage_traces(
    program: ReferenceProgram, workload: Workload, plan: Plan, *, attention: str = "fused",
    fold: bool = True,
) -> tuple[StageTrace, ...]:  # fmt: skip
    """The programs of all stages, one trace for those that are alike, in order of first stages.

    The ranks of a stage run one program: they differ in which slices they hold. Traces are kept:
    a plan that differs in nothing that a rank's program shows costs no new one.

    Raises:
        UserError: the plan cannot run this model or workload; says why.
    """
    check(program, workload, plan)
    config = program.config
    alike: dict[object, list[int]] = {}
    for stage in range(plan.stages):
        kinds = tuple(config.is_moe(i) for i in plan.layers_of(stage, program.layers))
        ends = (stage == 0, stage == plan.stages - 1)
        alike.setdefault((kinds, ends), []).append(stage)
    # The schedule and the moments' type do not show; of micro-batches, whether there is one.
    # With MTP the schedule says whether first and last stage sum an embedding's gradients.
    schedule = plan.schedule if plan.mtp else "1f1b"
    shown = replace(
        plan, schedule=schedule, moments="fp32", micro_batches=min(plan.micro_batches, 2)
    )
    found = []
    for stages in alike.values():
        trace = _recorded(program, workload, shown, stages[0], attention, fold)
        notes = list(trace.header["notes"])
        if plan.moments == "bf16" and workload.phase == "training":
            notes.append(
                "the optimizer's step is traced with FP32 moments: in BF16 it moves 8 bytes an "
                "element less"
            )
        header = {**trace.header, "plan": str(plan), "stages": stages, "notes": notes}
        found.append(StageTrace(replace(trace, header=header), tuple(stages)))
    return tuple(found)


@functools.lru_cache(maxsize=64)
def _recorded(
    program: ReferenceProgram, workload: Workload, plan: Plan, stage: int, attention: str,
    fold: bool,
) -> Trace:  # fmt: skip
    from ..capture.sharded import record_rank

    rank = stage % plan.pp * plan.ranks_per_stage
    return record_rank(
        program, workload, plan, rank=rank, stage=stage, attention=attention, fold=fold
    )
