"""Which module is running: a stack kept by global module hooks, so that no model is patched.

Forward ops belong to the innermost module call on the stack. A backward op belongs to the call
whose forward created its autograd node: the node's sequence number, noted in forward, finds it
again (torch's own trackers guess from hooks and are off by factors on MLA).
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Iterator
from pathlib import PurePath
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.nn.modules import module as nn_module

from . import compat
from .records import Call

OUTSIDE_TASK = -2  # no module call is open (a graph task has a number from 0, none is -1)
OUTSIDE = 0  # the call of ops that no module ran: `calls[0]`, path ""


_thread = threading.local()  # .stack: the one that follows this thread's calls


def running() -> nn.Module | None:
    """The innermost module whose call is being recorded in this thread."""
    stack: ModuleStack | None = getattr(_thread, "stack", None)
    return stack._stack[-1][0] if stack is not None and stack._stack else None


@contextlib.contextmanager
def inside(module: nn.Module | None) -> Iterator[None]:
    """What runs here belongs to a call of `module`, though nobody calls it.

    Checkpoints that run a layer's `forward` again go past the hooks of its call.
    """
    stack: ModuleStack | None = getattr(_thread, "stack", None)
    if stack is None or module is None:
        yield
        return
    stack._enter(module, ())
    try:
        yield
    finally:
        stack._leave(module, (), None)


class ModuleStack:
    """Follows the calls of every module inside `model`, and of strangers by their class name."""

    def __init__(self, model: nn.Module | None) -> None:
        self.calls: list[Call] = [Call("", type(model).__name__ if model is not None else "", 0)]
        self.current = OUTSIDE
        self.task = OUTSIDE_TASK  # the graph task in which the innermost open call was entered
        self._paths: dict[nn.Module, str] = {}
        self.classes: dict[str, type[nn.Module]] = {}  # by name, the first of each
        if model is not None:
            for path, module in model.named_modules():
                self._paths[module] = path
                self.classes.setdefault(type(module).__name__, type(module))
        # Modules that live only for a while must be free to die.
        self._strangers: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._stack: list[tuple[nn.Module, int, int]] = []
        self._times: dict[str, int] = {}
        # Layers of a folded list, and how many each stands for. What their owner does after one of
        # them, before the next, it does as many times: such ops get a call of their own.
        self.folded: dict[str, int] = {}
        self.times: dict[int, int] = {}  # call -> times, for the calls made so
        self._handles: list[Any] = []
        self._thread = threading.get_ident()

    def __enter__(self) -> Self:
        _thread.stack = self
        self._handles = [
            nn_module.register_module_forward_pre_hook(self._enter),
            # always_call: non-reentrant checkpointing leaves its recompute by raising through the
            # modules, and a user's module may raise too; the stack must unwind all the same.
            nn_module.register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _thread.stack = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack.clear()
        self._paths.clear()  # a finished trace does not keep the model alive
        self.current, self.task = OUTSIDE, OUTSIDE_TASK

    def sources(self) -> dict[str, str]:
        """Class name -> where its `forward` is: file and line, the file below its package."""
        found = {}
        for name, kind in self.classes.items():
            forward = inspect.unwrap(kind.forward)
            written = getattr(forward, "__code__", None)
            if written is not None:
                package = (getattr(forward, "__module__", None) or "").replace(".", "/")
                file = PurePath(written.co_filename)
                place = f"{package}.py" if PurePath(package).name == file.stem else file.name
                found[name] = f"{place}:{written.co_firstlineno}"
        return found

    # The hooks return None: any other value would replace the module's input or output.

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        path = self._paths.get(module)
        if path is None:
            path = self._strangers.get(module) or self._stranger(module)
        nth = self._times.get(path, 0)
        self._times[path] = nth + 1
        self._stack.append((module, self.current, self.task))
        self.current = len(self.calls)
        self.task = compat.current_graph_task_id()
        self.calls.append(Call(path, type(module).__name__, nth))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        while self._stack:
            top, self.current, self.task = self._stack.pop()
            if self.folded and self._paths.get(top) in self.folded:
                self._between(self.folded[self._paths[top]])
            if top is module:
                return

    def _between(self, times: int) -> None:
        self.calls.append(self.calls[self.current])
        self.current = len(self.calls) - 1
        self.times[self.current] = times

    def _stranger(self, module: nn.Module) -> str:
        """A module that is not in the model's tree: named by its class under its caller."""
        parent = self.calls[self.current].module
        path = f"{parent}.<{type(module).__name__}>" if parent else f"<{type(module).__name__}>"
        self._strangers[module] = path
        return path
