"""The context that records: module stack, attention reroute, optimizer hooks and dispatch hook."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ..collector import without_collector
from ..errors import UserError
from . import compat, compat_fakes, compat_fsdp, remembered
from . import fold as folding
from .attention import decomposed_attention, fused_attention
from .modules import ModuleStack
from .recorder import Recorder
from .records import Fold, Op, Parameter, Trace
from .stand_ins import runner, without_whole_slices
from .symbolic import Sizes


class Capture:
    """Record every op that runs in the `with` block; `capture.trace` holds the result after it.

    Args:
        model: the module whose tree names the ops. It is not patched or moved. None records all
            ops under the empty path.
        attention: "fused" sends SDPA on meta and fake tensors to the fused op a GPU would run;
            "naive" keeps its decomposition into matmuls and softmax.
        fold: trace a few layers of each kind of the list that holds this many, and count them for
            all (see `fold.py`); 0 traces every layer.
        sizes: the symbols of a run on fake tensors (see `symbolic.py`).

    Raises:
        UserError: for a compiled module, whose ops torch hides from every dispatch mode.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        attention: str = "fused",
        fold: int = 0,
        sizes: Sizes | None = None,
    ) -> None:
        if attention not in ("fused", "naive"):
            raise UserError(f"attention={attention!r}: choose 'fused' or 'naive'")
        if hasattr(model, "_orig_mod"):
            raise UserError(
                "a torch.compile'd module runs as one opaque graph: "
                "trace the module that you gave to torch.compile (its ._orig_mod)"
            )
        self._trace: Trace | None = None
        self._done = False
        self._lazy = False  # some parameters do not exist before the first call
        self._model = model
        self._fold = fold
        self._sizes = sizes
        self._attention = attention
        self._stack = ModuleStack(model)
        self._recorder = Recorder(self._stack)
        if sizes is not None:
            self._recorder.simplify = without_whole_slices
            self._recorder.runner = runner
        self._context = contextlib.ExitStack()
        self._unfold = contextlib.ExitStack()
        self._folds: tuple[Fold, ...] = ()
        self._parameters: list[Parameter] = []
        self._groups: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._model is not None:
            self._parameters = list(self._inventory(self._model))
            if self._fold:
                self._folds = self._unfold.enter_context(folding.folded(self._model, self._fold))
                self._stack.folded = {fold.module: fold.layers for fold in self._folds}
        enter = self._context.enter_context
        enter(self._unfold)
        enter(self._stack)
        enter(_optimizer_hooks(self))
        below = compat.dispatch_mode()
        if self._sizes is None and below is None:
            self._recorder.runner = remembered.runner  # nobody below waits to see every op
        elif self._sizes is not None and self._sizes.is_mode(below):
            known = self._sizes.remembered
            self._recorder.runner = lambda func: known.runner(func, runner(func))
        enter(fused_attention() if self._attention == "fused" else decomposed_attention())
        enter(self._recorder)
        tensors = self._recorder.tensors
        enter(compat_fsdp.fully_shard_memory(tensors.freed, tensors.allocated))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Also when the model raised midway: what ran stays readable.
        self._context.close()
        self._groups = compat.process_groups()
        self._mark_gradients()
        if self._model is not None and self._lazy:
            known = {parameter.name for parameter in self._parameters}
            self._parameters += [p for p in self._inventory(self._model) if p.name not in known]
        self._recorder.tensors.detach()
        self._model = None  # a finished capture does not keep the model alive
        self._done = True

    @property
    def trace(self) -> Trace:
        """What was recorded: empty before the `with` block ends, made into records when first read.

        The notes that the hook took are whole by then; only their form changes here.
        """
        if not self._done:
            return Trace()
        if self._trace is None:
            with without_collector():
                self._trace = self._records()
        return self._trace

    def unfold(self) -> None:
        """Put the folded layers back before the block ends, as an optimizer step needs them."""
        self._unfold.close()

    def mark(self, role: str, tensors: Iterable[Tensor]) -> None:
        """Tell what `tensors` are ("kv", "gradients", "optimizer") where no storage shows it."""
        for tensor in tensors:
            self._recorder.tensors.identify(compat.local_tensor(tensor), role)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Ops in this block are not part of the program (filling in what folding left out)."""
        self._recorder.paused = True
        try:
            yield
        finally:
            self._recorder.paused = False

    @contextlib.contextmanager
    def at_numbers(self, parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
        """A block for what no symbol is in, such as an optimizer step.

        With symbols, it is on meta tensors over the storages of `parameters` and their gradients,
        and in no fake mode; otherwise, and if a gradient has symbols, nothing is other than before.
        """
        given, recorder = list(parameters), self._recorder
        plain = None if self._sizes is None else _on_meta(given)
        if plain is None:
            yield given
            return
        before = recorder.runner, recorder.simplify
        recorder.runner, recorder.simplify = remembered.runner, None
        try:
            with compat_fakes.outside_fake_mode():
                yield plain
        finally:
            recorder.runner, recorder.simplify = before

    @contextlib.contextmanager
    def optimizer_step(self) -> Iterator[None]:
        """Ops in this block belong to the optimizer phase, as those of `Optimizer.step` do."""
        self._recorder.optimizers += 1
        try:
            yield
        finally:
            self._recorder.optimizers -= 1

    # -- internals ---------------------------------------------------------------------------------

    def _inventory(self, model: nn.Module) -> Iterator[Parameter]:
        """Parameters and buffers, a shared one once; their storages get the role "weights"."""
        named: list[tuple[str, Tensor, bool]] = [
            (name, tensor, False) for name, tensor in model.named_parameters()
        ]
        named += [(name, tensor, True) for name, tensor in model.named_buffers()]
        for name, tensor, buffer in named:
            if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                self._lazy = True
                continue  # a lazy module makes it on its first call, and it is taken in then
            local = compat.local_tensor(tensor)
            sid = self._recorder.tensors.identify(local, "weights")
            yield Parameter(
                name,
                tuple(local.shape),
                str(tensor.dtype).removeprefix("torch."),
                sid,
                not buffer and tensor.requires_grad,
                buffer,
                int(local.storage_offset()) if local.layout == torch.strided else 0,
            )

    def _mark_gradients(self) -> None:
        if self._model is not None:
            self.mark("gradients", (p.grad for p in self._model.parameters() if p.grad is not None))

    def _records(self) -> Trace:
        recorder = self._recorder
        resolve = None if self._sizes is None else self._sizes.resolve
        return Trace(
            ops=_with_counts(recorder.ops(resolve), self._stack),
            calls=self._stack.calls,
            storages=recorder.tensors.storages(resolve),
            scope=None if self._sizes is None else self._sizes.scope,
            parameters=self._parameters,
            folds=tuple(fold for fold in self._folds if fold.layers > 1),
            pointwise=frozenset(recorder.pointwise),
            header={
                "model": self._stack.calls[0].kind,
                "attention": self._attention,
                "torch": str(torch.__version__),
                **({"groups": self._groups} if self._groups else {}),
                "sources": self._stack.sources(),
            },
        )


def _on_meta(parameters: list[nn.Parameter]) -> list[nn.Parameter] | None:
    """Meta tensors over the storages of fake parameters and gradients; None if one has symbols."""
    tensors = [t for p in parameters for t in (p, p.grad) if t is not None]
    if not all(compat_fakes.is_plain_fake(t) and not compat_fakes.has_symbols(t) for t in tensors):
        return None
    made = []
    for parameter in parameters:
        twin = nn.Parameter(compat_fakes.meta_of(parameter), requires_grad=parameter.requires_grad)
        if parameter.grad is not None:
            twin.grad = compat_fakes.meta_of(parameter.grad)
        made.append(twin)
    return made


def _with_counts(ops: list[Op], stack: ModuleStack) -> list[Op]:
    """Give the ops of a folded layer the number of layers that it stands for."""
    if not stack.folded:
        return ops
    times = []
    for number, call in enumerate(stack.calls):
        found = stack.times.get(number, 1)
        for module, layers in stack.folded.items():
            if call.module == module or call.module.startswith(module + "."):
                found = layers
        times.append(found)
    return [op if times[op.call] == 1 else op._replace(times=times[op.call]) for op in ops]


@contextlib.contextmanager
def _optimizer_hooks(capture: Capture) -> Iterator[None]:
    """Gradients and states that any `Optimizer.step` of this thread meets get their roles."""
    thread = threading.get_ident()

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == thread:
            capture._mark_gradients()

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == thread:
            for state in optimizer.state.values():
                capture.mark("optimizer", (v for v in state.values() if isinstance(v, Tensor)))

    handles = (register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
