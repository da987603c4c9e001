"""What multi-token prediction adds to a training step."""

from __future__ import annotations

from ...predict.detail import KERNELS
from ...predict.training import TrainingStep
from ..blocks import Column, Section, Text, section_of, table_of
from ..plan_study import PlanStudy
from ..text import seconds


def section(study: PlanStudy) -> Section | None:
    """Absent of a plan without it."""
    detail, step = study.detail, study.step
    more = detail.mtp
    if more is None or not isinstance(step, TrainingStep):
        return None
    plan = step.plan
    a_step = more.compute * plan.micro_batches / len(step.pipeline.busy)
    copy = ""
    if more.embedding:
        copy = (
            f" Of its parameters {more.embedding:,.0f} are a copy of the embedding, which the "
            "first stage has on other GPUs: both sum its gradients at the end of a step (group "
            "`embedding`)."
        )
    passes = (
        ("forward", more.forward, more.forward_messages),
        ("input gradient", more.input, more.backward_messages),
        ("weight gradient", more.weight, None),
    )
    return section_of(
        "Multi-token prediction",
        Text(
            "The MTP module (two norms, a projection of the state and the next token's embedding, "
            "one layer, a norm), its pass through the output head and its loss take "
            f"{seconds(a_step)} of kernels a step, the mean over the pipeline's ranks: "
            f"{a_step / detail.compute[KERNELS]:.1%} of all. They are "
            f"{step.flops_mtp / step.flops:.1%} on top of the model's FLOPs"
            + (", which alone count in MFU, as in published figures." if step.feasible else ".")
            + copy
        ),
        table_of(
            "mtp",
            "What the last stage has more of for one micro-batch, messages that nothing hides "
            "apart. In the tables of kernels its own modules stand under `model.mtp`; its "
            "embedding and its pass through the output head, where those of the model are."
            + study.if_it_fit,
            (Column("pass", "pass"), Column("seconds", "compute", "s"),
             Column("messages", "messages", "s")),
            [row for row in passes if row[1] or row[2]],
            ("all", more.compute, more.forward_messages + more.backward_messages),
        ),
        table_of(
            "mtp_counts",
            "And what it has to hold and to compute.",
            (Column("what", "what"), Column("value", "value", "number")),
            [
                ("parameters of a rank of the last stage", more.parameters),
                ("of them a copy of the embedding", more.embedding or None),
                ("FLOPs of a step, all GPUs", step.flops_mtp),
                ("FLOPs of the model without it", step.flops),
            ],
        ),
    )  # fmt: skip
