"""The three workloads: one training step, one prefill, one decode step, recorded on meta."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from .capture import Capture
from .program import DECODE, PREFILL, TRAINING, WORKLOADS, Program
from .records import Trace

OPTIMIZERS = ("adamw", "none")


@dataclass(frozen=True, slots=True)
class Workload:
    """What to run.

    Attributes:
        phase: "training" (forward, backward, optimizer step on `batch` × `seq` tokens), "prefill"
            (forward of `batch` × `seq` tokens into an empty cache, logits at every position) or
            "decode" (one new token for each of `batch` sequences, attending `context` keys, its
            own included).
        batch: sequences.
        seq: tokens a sequence in training and prefill.
        context: keys that a decoded token attends.
        optimizer: of training: "adamw" (FP32 master weights and moments) or "none".
    """

    phase: str
    batch: int = 1
    seq: int = 4096
    context: int = 4096
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if self.phase not in WORKLOADS:
            raise UserError(f"phase {self.phase!r}: choose one of {', '.join(WORKLOADS)}")
        for name in ("batch", "seq", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name}={value}: give a whole number of at least 1")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer {self.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")

    @property
    def tokens(self) -> int:
        """Tokens that one step processes."""
        return self.batch * (1 if self.phase == DECODE else self.seq)


def record(
    program: Program, workload: Workload, *, attention: str = "fused", fold: bool = True
) -> Trace:
    """Run `workload` once without data and return its trace.

    Raises:
        UserError: the program has no such phase (names those it has), or the model's code raised
            (names the error and the line; the error itself is the cause).
    """
    if workload.phase not in program.phases:
        raise UserError(
            f"{program.name} cannot run phase {workload.phase!r}: "
            f"it has {', '.join(program.phases)}"
        )
    run = {TRAINING: _training, PREFILL: _prefill, DECODE: _decode}[workload.phase]
    try:
        trace = run(program, workload, attention, fold)
    except UserError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise UserError(_model_failed(program, workload, error)) from error
    trace.header |= {
        "model": program.name,
        "phase": workload.phase,
        "batch": workload.batch,
        "seq": workload.seq,
        "context": workload.context,
    }
    return trace


def _model_failed(program: Program, workload: Workload, error: Exception) -> str:
    """One line: what ran, what was raised, and the last line of the model's own code."""
    own = Path(__file__).parent.parent
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if "/torch/" not in frame.filename and own not in Path(frame.filename).parents:
            place = f" at {frame.filename}:{frame.lineno}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return (
        f"{program.name}: {workload.phase} with batch {workload.batch}, seq {workload.seq}, "
        f"context {workload.context} fails on the meta device{place}: "
        f"{type(error).__name__}: {reason}"
    )


def _ids(program: Program, batch: int, tokens: int) -> Tensor:
    return torch.zeros(batch, tokens, dtype=torch.long, device="meta")


def _prefill(program: Program, work: Workload, attention: str, fold: bool) -> Trace:
    model = program.module(PREFILL).eval()
    ids = _ids(program, work.batch, work.seq)
    cache = program.new_cache(PREFILL, work.batch, work.seq, 0)
    return _forward(program, model, PREFILL, ids, cache, attention, fold)


def _decode(program: Program, work: Workload, attention: str, fold: bool) -> Trace:
    model = program.module(DECODE).eval()
    ids = _ids(program, work.batch, 1)
    # The new token is the last of the `context` keys: the cache holds the others.
    cache = program.new_cache(DECODE, work.batch, work.context, work.context - 1)
    return _forward(program, model, DECODE, ids, cache, attention, fold)


def _forward(
    program: Program, model: nn.Module, phase: str, ids: Tensor, cache: object, attention: str,
    fold: bool,
) -> Trace:  # fmt: skip
    layers = program.layers if fold else 0
    with torch.no_grad(), Capture(model, attention=attention, fold=layers) as capture:
        capture.mark("kv", program.cache_tensors(cache))
        logits = program.logits(phase, ids, cache)
        capture.mark("kv", program.cache_tensors(cache))  # caches that grow hold new tensors now
        del logits
    return capture.trace


def _training(program: Program, work: Workload, attention: str, fold: bool) -> Trace:
    model = program.module(TRAINING).train()
    ids = _ids(program, work.batch, work.seq)
    targets = _ids(program, work.batch, work.seq)
    step = _MasterAdamW(model) if work.optimizer == "adamw" else None
    try:
        layers = program.layers if fold else 0
        with Capture(model, attention=attention, fold=layers) as capture:
            logits = program.logits(TRAINING, ids, None)
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten()
            )
            del logits
            torch.autograd.backward(loss)
            del loss
            capture.unfold()
            with capture.paused():
                _fill_gradients(model)
            if step is not None:
                capture.mark("optimizer", step.tensors())
                with capture.optimizer_step():
                    step.step()
        return capture.trace
    finally:
        for parameter in model.parameters():
            parameter.grad = None


def _fill_gradients(model: nn.Module) -> None:
    """Layers that folding left out get the gradient that their like got."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)


class _MasterAdamW:
    """AdamW as mixed-precision training runs it: FP32 master weights and moments.

    Gradients are widened, torch's own AdamW (its foreach form, which has meta kernels) updates the
    masters, and the model gets its rounded copy back. States exist before the recorded step, as in
    every step but the first.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.masters = [torch.empty_like(p, dtype=torch.float32) for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.masters, foreach=True)
        for master in self.masters:
            self.optimizer.state[master] = {
                "step": torch.tensor(1.0),
                "exp_avg": torch.empty_like(master),
                "exp_avg_sq": torch.empty_like(master),
            }

    def tensors(self) -> list[Tensor]:
        """Masters and both moments. The widened gradients live only during the step."""
        states = [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return [*self.masters, *states]

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        with torch.no_grad():
            widened = [torch.empty_like(master) for master in self.masters]
            torch._foreach_copy_(widened, [p.grad for p in self.parameters if p.grad is not None])
            for master, gradient in zip(self.masters, widened, strict=True):
                master.grad = gradient
            del gradient, widened
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            torch._foreach_copy_(self.parameters, self.masters)
