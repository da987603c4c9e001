"""A model with the ways to run it: what a workload needs to know and a bare module does not say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from ..errors import UserError, did_you_mean
from .configs import find_config
from .inputspec import InputSpec

TRAINING, PREFILL, DECODE, INFERENCE = "training", "prefill", "decode", "forward"
WORKLOADS = (TRAINING, PREFILL, DECODE, INFERENCE)
DTYPES = ("bf16", "fp8")


NO_MTP = (
    "transformers' modelling code has no module of multi-token prediction, "
    "the reference models have one"
)


def no_state() -> Iterable[Tensor]:
    """The `Run.state` of a model without caches."""
    return ()


def alone(parameters: Sequence[nn.Parameter]) -> None:
    """The `Run.reduce` of a program that has no other ranks."""


class Run(NamedTuple):
    """One call of a program, with its inputs made, ready to be recorded.

    Attributes:
        forward: calls the module; under the recorder.
        loss: the scalar of a training step, from what `forward` returned; of a stage that is not
            the last one what it sent on, whose gradient comes from elsewhere.
        state: tensors that the caches hold now; asked before and after the call.
        batch, seq, context: the sizes in force, where the model has its own (an image is 1 token).
        notes: what the reader must know about how the inputs were made.
        reduce: sums gradients over ranks, behind the backward of a training step; it is given what
            this rank has of `module.parameters()`, in their order.
    """

    forward: Callable[[], Any]
    loss: Callable[[Any], Tensor]
    state: Callable[[], Iterable[Tensor]]
    batch: int
    seq: int
    context: int
    notes: tuple[str, ...] = ()
    reduce: Callable[[Sequence[nn.Parameter]], None] = alone


class Program(Protocol):
    """What `workload.record` asks of a model.

    `phases` are the workloads that the model can run and `grounds` where it can be run, in the
    order in which to try. `module` is what to trace for a phase: a training step keeps FP8 weights
    in BF16, a server does not. `layers` is the length of the stack of layers that may be folded, 0
    for none; `longest` the tokens that its learned positions serve, None for any number;
    `shortest` the tokens of the smallest run that shows all of it. `cures` says what `adapt` did.
    `compiles`: whether its code may call torch's compiler, which is long to import.
    """

    name: str
    source: str  # where the architecture comes from, for headers
    dtype: str
    layers: int
    cures: list[str]
    compiles: bool

    @property
    def phases(self) -> tuple[str, ...]: ...

    @property
    def grounds(self) -> tuple[str, ...]: ...

    @property
    def longest(self) -> int | None: ...

    @property
    def shortest(self) -> int: ...

    def module(self, phase: str, ground: str) -> nn.Module: ...

    def prepare(self, phase: str, ground: str, batch: int, seq: int, context: int) -> Run: ...

    def adapt(self, error: Exception) -> bool:
        """Change something that may cure `error`: the run is repeated if so. Ends with False."""


def load_program(
    model: str, *, dtype: str = "bf16", layers: int | None = None, remote_code: bool = False,
    inputs: Sequence[InputSpec] = (), mtp: bool = False,
) -> Program:  # fmt: skip
    """The program of a Hugging Face id, a folder with a `config.json`, or a JSON file.

    Ids of the DeepSeek-V3 family are bundled and need no network and no transformers. Everything
    else goes through `AutoConfig`.

    Args:
        model: the id, folder or file.
        dtype: "bf16", or "fp8" for block-quantised linears where the reference model has them.
        layers: keep only this many layers.
        remote_code: let transformers run code from the model's repository.
        inputs: named inputs of a transformers model, beside or in place of those it is given.
        mtp: with its module of multi-token prediction, which is trained and not served.

    Raises:
        UserError: nothing is known under this name (near matches are listed), a key is missing from
            the config (named), or the dtype is not available for the model.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if layers is not None and layers < 1:
        raise UserError(f"layers={layers}: give at least 1")
    from tracer.models import ConfigError, supports

    config, name = find_config(model)
    if config is not None and supports(config):
        from .reference import ReferenceProgram

        if inputs:
            raise UserError(f"--input: {name} takes token ids of --batch by --seq, nothing else")
        try:
            return ReferenceProgram(name, config, dtype, layers, mtp)
        except ConfigError as error:
            raise UserError(str(error)) from error
    from .huggingface import HuggingFaceProgram

    if mtp:
        raise UserError(f"--mtp: {model}: {NO_MTP}")
    return HuggingFaceProgram.load(model, dtype, layers, remote_code, tuple(inputs))


def unknown_model(model: str, reason: str) -> UserError:
    """The error for a name that neither the bundled configs nor transformers know."""
    from tracer.models import bundled_ids

    return UserError(
        f"model {model!r} is not bundled and {reason}; {did_you_mean(model, bundled_ids())} "
        "(a folder with a config.json works too)"
    )
