"""What was asked: the model, the cluster, and the plan axis by axis."""

from __future__ import annotations

from ...parallel.network import network_of
from ...predict.structure import groups_on
from ...predict.training import TrainingStep
from ..blocks import Column, Section, Table, Text, code, table_of
from ..plan_study import PlanStudy
from ..text import plural, si, size


def section(study: PlanStudy) -> Section:
    """The run and the axes."""
    return Section(
        "What was asked",
        (
            Text(
                "The program of a rank was traced under this plan, without data and without a GPU; "
                "its kernels and messages were priced on the cluster"
                + (", and stages run through the pipeline's schedule"
                   if study.step.plan.pp > 1 else "")
                + ". Nothing about the model was typed in."
            ),
            Table(
                "run", "The run that this report was made from.",
                (Column("what", "what"), Column("value", "value", "code")), _run(study),
            ),
            *filter(None, (_axes(study),)),
        ),
    )  # fmt: skip


def _run(study: PlanStudy) -> list[tuple[str, str]]:
    step, chip = study.step, study.step.cluster.chip
    rates = ", ".join(
        f"{p} {si(chip.peak_for(p))}FLOP/s" for p in ("bf16", "fp8") if p in chip.peak
    )
    rows = [
        ("model", step.model), ("traced as", study.source), ("precision", study.dtype),
        ("cluster", f"{step.cluster.id}: {step.cluster.name}"),
        ("chip", f"{chip.name}: {rates}, {si(chip.memory_bandwidth)}B/s, "
                 f"{size(chip.memory_capacity)}; programs get {size(chip.memory_given)}"),
        ("GPUs", f"{step.plan.world:,}"), ("phase", study.phase), ("plan", str(step.plan)),
    ]  # fmt: skip
    if isinstance(step, TrainingStep):
        rows.append(("tokens a step", f"{step.tokens:,}: {step.plan.global_batch:,} sequences of "
                                      f"{step.seq:,}"))  # fmt: skip
    else:
        keys = f"{step.context:,} keys" if step.phase == "decode" else f"{step.seq:,} tokens"
        batch = plural(step.batch, "sequence")
        rows.append(("a data rank", f"{batch} of {keys}; {plural(step.plan.data_ranks, 'rank')}"))
    rows += [("command", study.command),
             ("versions", ", ".join(f"{k} {v}" for k, v in study.versions.items()))]  # fmt: skip
    return rows


def _axes(study: PlanStudy) -> Table | None:
    """Axes above 1, what each cuts, and how its groups lie in the cluster."""
    step, plan = study.step, study.step.plan
    groups = groups_on(plan, network_of(step.cluster))
    layers = sum(stage.layers for stage in study.detail.stages) - plan.mtp
    training = isinstance(step, TrainingStep)
    cuts = {
        "tp": "dense feed-forwards; every rank has attention whole and sequences of its own"
        if plan.attention_dp
        else "heads, feed-forward columns and the vocabulary"
        + (", tokens between them" if plan.sequence_parallel else ""),
        "cp": "the tokens of a sequence, two chunks a rank",
        "dp": "the sequences" + (f" of a step; {_ZERO[plan.zero]}" if training else ""),
        "ep": "the routed experts, over ranks of one stage"
        + (f", and {plan.redundant_experts} copies" if plan.redundant_experts else ""),
        "pp": f"{layers} layers"
        + (" and the MTP module" if plan.mtp else "")
        + f" into {plural(plan.stages, 'stage')}"
        + (f", {plan.chunks} a rank" if plan.chunks > 1 else "")
        + (f"; {plan.schedule}, {plural(plan.micro_batches, 'micro-batch', 'micro-batches')}"
           if training else ""),
    }  # fmt: skip
    rows = []
    for axis, cut in cuts.items():
        ranks = getattr(plan, axis)
        if ranks > 1:
            group = groups.get(axis)
            lie = "one node" if group and group.domains == 1 else None
            if group and group.domains > 1:
                lie = f"{group.domains} nodes, {group.per_domain} in each"
            rows.append((axis, ranks, cut, lie))
    return table_of(
        "axes",
        f"{code(plan)}: {plan.world:,} GPUs are tp * cp * dp * pp; ep is spread over ranks of "
        "tp, cp and dp. A node is a scale-up domain.",
        (Column("axis", "axis", "code"), Column("ranks", "ranks", "size"),
         Column("cuts", "cuts"), Column("lie", "a group lies in")),
        rows,
    )  # fmt: skip


_ZERO = (
    "ranks repeat parameters, gradients and optimizer state",
    "optimizer state is cut too (ZeRO 1)",
    "optimizer state and gradients are cut too (ZeRO 2)",
    "optimizer state, gradients and parameters are cut too (ZeRO 3)",
)
