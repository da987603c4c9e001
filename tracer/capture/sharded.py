"""One rank's own program: what a GPU of a plan runs in one pipeline stage, collectives included.

The reference model only; see `huggingface/sharded.py` for any other. A trace holds one micro-batch
(receive, forward, send, and in training receive, backward, send) and in training the end of a step:
gradients reduced where ZeRO has not done it in the backward, the optimizer on what this rank owns,
parameters gathered. Which of it overlaps, and how micro-batches of all stages follow one another,
is for a schedule to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .adamw import MasterAdamW
from .capture import Capture
from .grounds import META
from .groups import ShardingPlan, groups_of, name_groups_by_axis
from .program import DECODE, PREFILL, TRAINING
from .records import Trace
from .reference import ReferenceProgram
from .workload import Workload, fill_gradients

PHASES = (TRAINING, PREFILL, DECODE)


def record_rank(
    program: ReferenceProgram, workload: Workload, plan: ShardingPlan, *, rank: int = 0,
    stage: int | None = None, attention: str = "fused", fold: bool = True,
) -> Trace:  # fmt: skip
    """The trace of what `rank` runs in `stage`.

    Its header holds, beside what `workload.record` writes, `plan`, `rank`, `stage`, `layers` (first
    and behind the last) and `groups` by axis, which is also how collectives name their group.

    Args:
        program: the model.
        workload: `batch` is that of one data rank, the plan's `micro_batch`.
        plan: legal for the model and the workload (`Plan.illegal`).
        rank: whose program. Ranks differ in slices and peers, not in sizes; CP ranks also in how
            many keys either of their chunks sees, but not in the sum.
        stage: one of those that the rank's place in the pipeline has; by default its first.
        attention: as in `workload.record`.
        fold: as there.

    Raises:
        UserError: the workload does not divide over the ranks, or its batch is not the plan's; the
            stage is elsewhere; a process group is in force already.
    """
    _check(program, workload, plan)
    place = rank * plan.pp // plan.world
    stage = place if stage is None else stage
    layers = plan.layers_of(stage, program.layers)
    if stage % plan.pp != place:
        raise UserError(f"stage {stage} is on pipeline rank {stage % plan.pp}, rank {rank} is not")
    with groups_of(plan, rank) as groups:
        run = _Rank(program, workload, plan, groups, stage, layers)
        trace = run.training(attention, fold) if run.trained else run.serving(attention, fold)
    name_groups_by_axis(trace)
    if "ep" in trace.header["groups"]:
        config = program.config
        limited = config.topk_method != "greedy" and config.topk_group < config.n_group
        trace.header["groups"]["ep"] |= {
            "experts_per_token": config.num_experts_per_tok,
            "expert_groups_per_token": config.topk_group if limited else None,
        }
    trace.header |= {
        "model": program.name,
        "phase": workload.phase,
        "batch": workload.batch,
        "seq": workload.seq,
        "context": workload.context,
        "ground": META,
        "notes": run.notes,
        "plan": str(plan),
        "rank": rank,
        "stage": stage,
        "layers": [layers.start, layers.stop],
    }
    return trace


def _check(program: ReferenceProgram, workload: Workload, plan: ShardingPlan) -> None:
    if workload.phase not in PHASES:
        raise UserError(
            f"{program.name} cannot run phase {workload.phase!r}: it has {', '.join(PHASES)}"
        )
    if workload.batch != plan.micro_batch:
        raise UserError(
            f"batch {workload.batch}: a data rank of this plan runs micro_batch={plan.micro_batch} "
            "sequences at once"
        )
    tokens = workload.tokens // plan.cp
    if plan.cuts_tokens and tokens % plan.tp:
        raise UserError(f"{tokens} tokens of a data rank do not divide by TP={plan.tp}")


class _Rank:
    """A stage of the model on meta, and how to run it."""

    def __init__(
        self, program: ReferenceProgram, workload: Workload, plan: ShardingPlan,
        groups: Mapping[str, Any], stage: int, layers: range,
    ) -> None:  # fmt: skip
        from tracer.models.builder import DTYPES
        from tracer.models.linear import Precision
        from tracer.models.parallel import Layout, ParallelDeepSeek

        self.work, self.plan, self.groups = workload, plan, groups
        self.trained = workload.phase == TRAINING
        self.config = program.config
        self.stage = stage
        self.first, self.last = stage == 0, stage == plan.stages - 1
        self.drafts = plan.mtp and self.last
        self.layers = len(layers) - self.drafts
        self.notes: list[str] = []
        fp8 = program.dtype == "fp8"
        precision = Precision(DTYPES[program.dtype], fp8=fp8, training=self.trained)
        self.dtype = precision.dtype
        layout = Layout(
            **{axis: group for axis, group in groups.items() if axis != "pp"},
            sequence_parallel=plan.sequence_parallel,
            attention_dp=plan.attention_dp,
            redundant_experts=plan.redundant_experts,
            zero=plan.zero if self.trained else 0,
            recompute=plan.recompute if self.trained else "none",
        )
        self.layout = layout
        self.model = ParallelDeepSeek(
            self.config, precision, layout, layers=layers, mtp=plan.mtp, device=META
        )
        if self.trained:
            self.model.train().shard_()
        else:
            self.model.eval().requires_grad_(False)
            self.model.prepare_decode()
        if layout.ep.size > 1:
            self.notes.append(
                f"EP={plan.ep}: routing taken as balanced, every rank sends as many rows to each"
            )

    @property
    def seq(self) -> int:
        """New tokens of a sequence that this rank sees."""
        return 1 if self.work.phase == DECODE else self.work.seq // self.plan.cp

    def input(self) -> Tensor:
        """Token ids of the first stage; of any other a buffer for the stage before to fill."""
        batch = self.work.batch
        if self.first:
            return torch.zeros(batch, self.seq, dtype=torch.long, device=META)
        cut = self.layout.tp.size if self.plan.sequence_parallel else 1
        shape = (batch * self.seq // cut, self.config.hidden_size)
        return torch.empty(shape, dtype=self.dtype, device=META, requires_grad=self.trained)

    def forward(self, x: Tensor, cache: Any = None, next_ids: Tensor | None = None) -> Any:
        """Receive, run, and send; logits in the last stage, with `next_ids` of MTP too."""
        from tracer.models.collectives import receive, send

        group = self.groups["pp"]
        if not self.first:
            x = receive(x, (self.stage - 1) % self.plan.pp, group)
        out = self.model(x, cache, (self.work.batch, self.seq), next_ids)
        if not self.last:
            out = send(out, (self.stage + 1) % self.plan.pp, group)
        elif cache is not None and self.layout.attention.size > 1:
            self.model.whole_logits(out[:, -1:])  # what the next token is sampled from
        return out

    def _watched(self, attention: str, fold: bool) -> Capture:
        layers = self.layers if fold else 0
        return Capture(self.model, attention=attention, fold=layers)

    def serving(self, attention: str, fold: bool) -> Trace:
        """A prefill or a decode step."""
        from tracer.models import KVCache

        decode = self.work.phase == DECODE
        capacity = self.work.context if decode else self.seq
        cache = KVCache(
            self.config, self.work.batch, capacity, device=META,
            length=capacity - 1 if decode else 0, layers=range(self.layers),
        )  # fmt: skip
        x = self.input()
        with torch.no_grad(), self._watched(attention, fold) as capture:
            capture.mark("kv", cache.latents.values())
            out = self.forward(x, cache)
            del out
        return capture.trace

    def training(self, attention: str, fold: bool) -> Trace:
        """One micro-batch, and what ends a step."""
        from tracer.models.parallel import reduce_embedding
        from tracer.models.zero import gather_parameters, owned, reduce_gradients

        model = self.model
        x = self.input()
        targets = torch.zeros(self.work.batch, self.seq, dtype=torch.long, device=META)
        with self._watched(attention, fold) as capture:
            out = self.forward(x, next_ids=targets if self.drafts else None)
            if self.last:
                out = self._loss(out, targets)
                torch.autograd.backward(out)
            else:
                with capture.paused():
                    unread = torch.empty_like(out)
                torch.autograd.backward(out, unread)
                del unread
            del out, x
            capture.unfold()
            with capture.paused():
                fill_gradients(model.parameters())
            grads = (p.grad for p in model.parameters() if p.grad is not None)
            capture.mark("gradients", grads)
            with capture.optimizer_step():
                reduce_embedding(model)
                reduce_gradients(model)
            if self.work.optimizer == "adamw":
                with capture.paused():
                    step = MasterAdamW(owned(model))
                capture.mark("optimizer", step.tensors())
                with capture.optimizer_step():
                    step.step()
                    gather_parameters(model)
        return capture.trace

    def _loss(self, out: Any, targets: Tensor) -> Tensor:
        """Of the last stage's logits against the next tokens; with MTP also of the second ones."""
        from tracer.models.deepseek import MTP_WEIGHT
        from tracer.models.parallel_loss import vocab_parallel_loss

        share = 1 / (self.plan.data_ranks * self.plan.cp * self.plan.micro_batches)
        main, drafted = out if self.drafts else (out, None)
        loss: Tensor = vocab_parallel_loss(main, targets, self.layout.attention, share)
        if drafted is None:
            return loss
        share *= MTP_WEIGHT
        drafts: Tensor = vocab_parallel_loss(drafted, targets, self.layout.attention, share)
        return loss + drafts
