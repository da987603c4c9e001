"""Multi-token prediction: an embedding that two stages need, what is kept, what notes say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..capture.records import BACKWARD, FORWARD
from ..errors import UserError
from ..parallel.plan import Plan
from .kept import BF16

if TYPE_CHECKING:
    from ..capture.program import Program
    from .block import Block


class Added(NamedTuple):
    """What an MTP module adds to the last stage for one micro-batch, its pass through the output
    head included: seconds of compute and of messages, and elements that the stage has for it.

    `embedding`: elements of these that are a copy of the first stage's embedding.
    """

    forward: float
    input: float
    weight: float
    forward_messages: float
    backward_messages: float
    parameters: float
    embedding: float

    @property
    def compute(self) -> float:
        """Seconds of its kernels."""
        return self.forward + self.input + self.weight


def added(with_it: Block, without: Block) -> Added:
    """Of a last stage, or the part of it that has the output head, traced with it and without."""
    more = with_it.minus(without)
    p = more.passes
    return Added(
        p.seconds(FORWARD), p.seconds(BACKWARD, weight=False), p.seconds(BACKWARD, weight=True),
        sum(p.messages(FORWARD).values()), sum(p.messages(BACKWARD).values()),
        sum(with_it.parameters.values()) - sum(without.parameters.values()), with_it.copied,
    )  # fmt: skip


def trained_with(program: Program) -> Any:
    """The program with its MTP module.

    Raises:
        UserError: it has none, or its modelling code leaves it out.
    """
    if not hasattr(program, "with_mtp"):
        from ..capture.program import NO_MTP

        raise UserError(f"{program.name}: {NO_MTP}")
    return program.with_mtp()


def sharing(plan: Plan, last: bool, block: Block, embedding: Block) -> Block:
    """The first or the `last` stage's `block`, traced with an embedding, where both need that one.

    Both have it and sum its gradients (`copied`), unless a GPU runs both stages: then it holds the
    first one's (`borrowed`).
    """
    count = sum(embedding.parameters.values())
    if plan.copies_embedding:
        return replace(block, copied=count)
    if not last:
        return block
    parameters = dict(block.parameters)
    for axis, elements in embedding.parameters.items():
        if parameters.get(axis, 0.0) >= elements:
            parameters[axis] -= elements
        else:  # nobody sums gradients, and all elements stand under one axis
            parameters[max(parameters, key=lambda name: parameters[name])] -= elements
    weights = block.weights - embedding.weights
    return replace(block, weights=weights, parameters=parameters, borrowed=count)


def kept_beside_layer(config: Any, tokens: int) -> float:
    """Bytes that an MTP module keeps beside what its layer and its pass through the head keep.

    In BF16, what `enorm` reads, and the two states that `eh_proj` projects, which is no FP8 linear.
    """
    return float(tokens * BF16 * 3 * config.hidden_size)


def notes(plan: Plan, layers: int) -> list[str]:
    """What a plan of a model of so many layers assumes of its MTP module, a line each."""
    if not plan.mtp:
        return []
    found = ["MFU counts the FLOPs of the model without its MTP module, as published figures do"]
    if plan.pp == 1:
        return [*found, "MTP module: shares embedding and output head"]
    last = len(plan.layers_of(plan.stages - 1, layers)) - 1
    where = "the first stage's, on the same GPUs"
    if plan.copies_embedding:
        where = "a copy; first and last stage sum its gradients"
    return [
        *found,
        f"MTP module: in the last stage, with {last} of {layers} layers; it and its pass through "
        f"the output head count as a layer each where layers are split; its embedding is {where}",
    ]
