"""One stage of a transformers model on one rank, as a program that the workloads can record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..inputspec import InputSpec
from ..program import TRAINING, Run
from .config import text_config
from .program import HuggingFaceProgram

_EXPERTS = ".experts."  # of parameters that expert-parallel ranks do not share


class Place(NamedTuple):
    """Where a stage is: `before` and `after` are ranks of the pipeline, None at its ends."""

    before: int | None
    after: int | None


class Sent(NamedTuple):
    """What a stage that is not the last one returns: hidden states [B, S, D], sent on."""

    states: Tensor
    past_key_values: Any


class Adapted(Exception):  # a request, not an error
    """The program was changed to cure an error: cut it again."""


class RankProgram(HuggingFaceProgram):
    """A cut copy of a program.

    Args:
        whole: the program; cures are its own.
        model: its copy, cut; on meta or with fake tensors.
        ground: which of the two.
        place: of the stage.
        groups: of the rank, by axis.
        inputs: beside those that the program is given anyway.
        reduces: whether gradients are summed over ranks behind the backward.
    """

    def __init__(
        self, whole: HuggingFaceProgram, model: Any, ground: str, place: Place,
        groups: Mapping[str, Any], inputs: tuple[InputSpec, ...] = (), reduces: bool = False,
    ) -> None:  # fmt: skip
        vars(self).update(vars(whole))  # built already: only what is cut differs
        self.whole, self.place, self.pipeline = whole, place, groups["pp"]
        self.groups, self.reduces = groups, reduces
        self.grounds = (ground,)
        self._modules = {ground: model}
        self.config = model.config
        self._given = (*whole._given, *inputs)
        self.layers = text_config(model.config).num_hidden_layers

    def module(self, phase: str, ground: str) -> nn.Module:
        """The copy."""
        found: nn.Module = self._modules[ground]
        return found

    def _module(self, ground: str) -> Any:
        return self._modules[ground]

    def prepare(self, phase: str, ground: str, batch: int, seq: int, context: int) -> Run:
        """As the whole program's, with gradients summed behind it."""
        run = super().prepare(phase, ground, batch, seq, context)
        return run._replace(reduce=self._reduce) if phase == TRAINING and self.reduces else run

    def adapt(self, error: Exception) -> bool:
        """The whole program's cures."""
        if self.whole.adapt(error):
            raise Adapted from error
        return False

    def _call(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Receive, run, and send."""
        from tracer.models.collectives import receive, send

        if self.place.before is not None:
            inputs = dict(inputs)
            ids = inputs.pop("input_ids")
            width = text_config(self.config).hidden_size
            buffer = torch.empty(*ids.shape, width, dtype=model.dtype, device=ids.device)
            buffer.requires_grad_(torch.is_grad_enabled())
            inputs["inputs_embeds"] = receive(buffer, self.place.before, self.pipeline)
        if self.place.after is None:
            return model(**inputs)
        out = model.base_model(**{k: v for k, v in inputs.items() if k != "logits_to_keep"})
        states = send(out.last_hidden_state, self.place.after, self.pipeline)
        return Sent(states, getattr(out, "past_key_values", None))

    def _loss(self, model: Any, inputs: dict[str, Any]) -> Callable[[Any], Tensor]:
        if self.place.after is not None:
            return lambda out: out.states
        loss: Callable[[Any], Tensor] = super()._loss(model, inputs)
        return loss

    def _reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients summed over the ranks that share the parameter, in place, one by one."""
        (model,) = self._modules.values()
        names = [name for name, _ in model.named_parameters()]
        for name, parameter in zip(names, parameters, strict=True):
            axis = "edp" if self.groups["ep"].size > 1 and _EXPERTS in name else "dp"
            group = self.groups[axis]
            if parameter.grad is not None and group.size > 1:
                torch.ops._c10d_functional.all_reduce_(parameter.grad, "sum", group.name)
