"""The workloads: a training step, a prefill, a decode step, a plain forward, recorded without data.

Each is tried on meta tensors first; where a model asks for data that they do not have, on the next
ground that can answer (see `grounds.py`), and the trace's header says so.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import UserError
from . import compat
from .adamw import MasterAdamW
from .capture import Capture
from .grounds import META, SYMBOLIC, VALUES, NotTried, asks_for_data, on
from .modules import OUTSIDE
from .program import DECODE, INFERENCE, PREFILL, TRAINING, WORKLOADS, Program, Run
from .records import FORWARD, Trace
from .remembered import empty_like
from .symbolic import NotSymbolic, Sizes
from .uncompiled import uncompiled

OPTIMIZERS = ("adamw", "none")
_LOOP = 48  # times that one op runs in one call of one module, at least, to be taken for a loop


@dataclass(frozen=True, slots=True)
class Workload:
    """What to run.

    Attributes:
        phase: "training" (forward, backward, optimizer step on `batch` × `seq` tokens), "prefill"
            (forward of `batch` × `seq` tokens into an empty cache, logits at every position),
            "decode" (one new token for each of `batch` sequences, attending `context` keys, its
            own included) or "forward" (inference of an encoder, a vision or audio model, or a
            module of one's own).
        batch: sequences, images or clips.
        seq: tokens a sequence in training, prefill and forward; of an encoder-decoder's decode,
            those of the encoder.
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

    def as_run(self, trace: Trace) -> Workload:
        """With the sizes that `trace` really has: an image is one token, real tensors are few."""
        return replace(self, **{name: trace.header[name] for name in ("batch", "seq", "context")})


def record(
    program: Program, workload: Workload, *, attention: str = "fused", fold: bool = True
) -> Trace:
    """Run `workload` once without data and return its trace.

    Its header holds the model, the phase, the sizes in force, the ground it ran on, and `notes`.

    Raises:
        UserError: the program has no such phase (names those it has), or the model's code raised
            (names the error and the line; the error itself is the cause).
    """
    if workload.phase not in program.phases:
        raise UserError(
            f"{program.name} cannot run phase {workload.phase!r}: "
            f"it has {', '.join(program.phases)}"
        )
    while True:
        try:
            with _torch_for(program):
                return _climb(program, workload, attention, fold)
        except UserError:
            raise
        except Exception as error:  # whatever the model's own code raises
            if not program.adapt(error):
                raise UserError(_model_failed(program, workload, error)) from error


def record_symbolic(
    program: Program, workload: Workload, *, attention: str = "fused", fold: bool = True
) -> Trace:
    """As `record`, with the sizes of `workload` as symbols: B and S, or B and L in decode.

    The trace's costs are expressions. They hold where `trace.scope` says: at least around the
    sizes of `workload`, where branches that depend on a size were taken. A size of 1 stays 1.

    Raises:
        NotSymbolic: some op or branch needs numbers; says which and where.
        UserError: as `record`.
    """
    if workload.phase not in program.phases:
        raise UserError(f"{program.name} has {', '.join(program.phases)}, not {workload.phase!r}")
    while True:
        try:
            with _torch_for(program):
                return _symbolic(program, workload, attention, fold)
        except NotSymbolic as error:
            raise NotSymbolic(
                f"{program.name}: no closed form of {workload.phase}: {error}"
            ) from error
        except UserError:
            raise
        except Exception as error:  # whatever the model's own code raises
            if not program.adapt(error):
                raise NotSymbolic(_model_failed(program, workload, error)) from error


def _torch_for(program: Program) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if program.compiles else uncompiled()


def _symbolic(program: Program, workload: Workload, attention: str, fold: bool) -> Trace:
    names = _SYMBOLS[workload.phase]
    sizes = {n: getattr(workload, field) for n, field in names.items()}
    symbols = Sizes({n: size for n, size in sizes.items() if size > 1})
    symbolic = _Sizes(
        **{f: symbols.values.get(n, sizes[n]) for n, f in names.items()},
        **{f: getattr(workload, f) for f in _FIELDS - set(names.values())},
    )
    with symbols.run(program.module(workload.phase, SYMBOLIC)):
        trace, run = _record(
            program, workload, SYMBOLIC, attention, fold, sizes=symbols, at=symbolic
        )
    trace.header |= {
        "model": program.name,
        "phase": workload.phase,
        "batch": symbols.resolve(run.batch),
        "seq": symbols.resolve(run.seq),
        "context": symbols.resolve(run.context),
        "ground": SYMBOLIC,
        "notes": [*program.cures, *run.notes],
    }
    return trace


_FIELDS = {"batch", "seq", "context"}
_SYMBOLS = {
    TRAINING: {"B": "batch", "S": "seq"},
    PREFILL: {"B": "batch", "S": "seq"},
    DECODE: {"B": "batch", "L": "context"},
    INFERENCE: {"B": "batch", "S": "seq"},
}


class _Sizes(NamedTuple):
    """Sizes of a run, ints or torch's symbols."""

    batch: Any
    seq: Any
    context: Any


def _climb(program: Program, workload: Workload, attention: str, fold: bool) -> Trace:
    """The trace on the first ground that serves.

    Raises:
        Exception: the model's own error, or, if all that failed was to have data, the first one.
    """
    first: Exception | None = None
    for ground in program.grounds:
        try:
            with on(ground) as assumed:
                trace, run = _record(program, workload, ground, attention, fold)
        except UserError:
            raise
        except NotTried:
            continue
        except Exception as error:
            if ground in (META, VALUES) and not asks_for_data(error):
                raise
            first = first or error  # what fake or real tensors complain of is not the cause
            continue
        trace.header |= {
            "model": program.name,
            "phase": workload.phase,
            "batch": run.batch,
            "seq": run.seq,
            "context": run.context,
            "ground": ground,
            "notes": [*program.cures, *assumed, *run.notes, *_loops(trace)],
        }
        return trace
    assert first is not None
    raise first


def _record(
    program: Program,
    work: Workload,
    ground: str,
    attention: str,
    fold: bool,
    sizes: Sizes | None = None,
    at: _Sizes | None = None,
) -> tuple[Trace, Run]:
    model = program.module(work.phase, ground)
    run = program.prepare(work.phase, ground, *(at or (work.batch, work.seq, work.context)))
    options: dict[str, Any] = {
        "attention": attention, "fold": program.layers if fold else 0, "sizes": sizes,
    }  # fmt: skip
    if work.phase == TRAINING:
        return _training(model, run, work.optimizer, options), run
    with torch.no_grad(), Capture(model.eval(), **options) as capture:
        capture.mark("kv", run.state())
        output = run.forward()
        capture.mark("kv", run.state())  # caches that grow hold new tensors now
        del output
    return capture.trace, run


def _training(model: nn.Module, run: Run, optimizer: str, options: dict[str, Any]) -> Trace:
    model.train()
    try:
        with Capture(model, **options) as capture:
            output = run.forward()
            loss = run.loss(output)
            del output
            unread = None
            if loss.dim():  # a stage's result: its gradient is received, whatever stands here
                with capture.paused():
                    unread = torch.empty_like(loss)
            torch.autograd.backward(loss, unread)
            del loss, unread
            capture.unfold()
            with torch.no_grad(), capture.optimizer_step():  # views of slices are its own
                own = [_local(parameter) for parameter in model.parameters()]
            with capture.at_numbers(own) as parameters:
                with capture.paused():
                    if options["fold"]:
                        fill_gradients(parameters)
                with torch.no_grad(), capture.optimizer_step():
                    run.reduce(parameters)
                capture.mark("gradients", (p.grad for p in parameters if p.grad is not None))
                with capture.paused():
                    step = MasterAdamW(parameters) if optimizer == "adamw" else None
                if step is not None:
                    capture.mark("optimizer", step.tensors())
                    with capture.optimizer_step():
                        step.step()
        return capture.trace
    finally:
        for parameter in model.parameters():
            parameter.grad = None


def _local(parameter: nn.Parameter) -> nn.Parameter:
    """What this rank has of a parameter, with its gradient: itself, unless it is a DTensor."""
    local = compat.local_tensor(parameter)
    if local is parameter:
        return parameter
    own = nn.Parameter(local.detach(), requires_grad=parameter.requires_grad)
    own.grad = compat.local_gradient(parameter)
    return own


def fill_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Layers that folding left out get the gradient that their like got."""
    for parameter in parameters:
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = empty_like(parameter)


def _loops(trace: Trace) -> list[str]:
    """Notes on modules that walk tokens or chunks in Python, as a recurrence without a kernel."""
    steps = Counter((op.call, op.name) for op in trace.ops if op.phase == FORWARD)
    most: dict[str, int] = {}
    for (call, _), count in steps.items():
        if call != OUTSIDE and count >= _LOOP:
            kind = trace.calls[call].kind
            most[kind] = max(most.get(kind, 0), count)
    return [
        f"{kind}: a loop in Python, up to {count:,} launches of one op in one call; "
        "a kernel written for it is one launch"
        for kind, count in sorted(most.items())
    ]


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
