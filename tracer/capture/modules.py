"""Which module is running: a stack kept by global module hooks, so that no model is patched.

Forward ops belong to the innermost module call on the stack. A backward op belongs to the call
whose forward created its autograd node: the node's sequence number, noted in forward, finds it
again (torch's own trackers guess from hooks and are off by factors on MLA).
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.nn.modules import module as nn_module

from .records import Call

OUTSIDE = 0  # the call of ops that no module ran: `calls[0]`, path ""


class ModuleStack:
    """Follows the calls of every module inside `model`, and of strangers by their class name."""

    def __init__(self, model: nn.Module | None) -> None:
        self.calls: list[Call] = [Call("", type(model).__name__ if model is not None else "", 0)]
        self.current = OUTSIDE
        self._paths: dict[nn.Module, str] = {}
        if model is not None:
            for path, module in model.named_modules():
                self._paths[module] = path
        self._stack: list[tuple[nn.Module, int]] = []
        self._times: dict[str, int] = {}
        self._handles: list[Any] = []
        self._thread = threading.get_ident()

    def __enter__(self) -> Self:
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
        for handle in self._handles:
            handle.remove()
        self._stack.clear()
        self.current = OUTSIDE

    # The hooks return None: any other value would replace the module's input or output.

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        path = self._paths.get(module)
        if path is None:
            path = self._stranger(module)
        nth = self._times.get(path, 0)
        self._times[path] = nth + 1
        self._stack.append((module, self.current))
        self.current = len(self.calls)
        self.calls.append(Call(path, type(module).__name__, nth))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        while self._stack:
            top, before = self._stack.pop()
            self.current = before
            if top is module:
                return

    def _stranger(self, module: nn.Module) -> str:
        """A module that is not in the model's tree: named by its class under its caller."""
        parent = self.calls[self.current].module
        path = f"{parent}.<{type(module).__name__}>" if parent else f"<{type(module).__name__}>"
        self._paths[module] = path
        return path

    @property
    def inside(self) -> bool:
        """Whether some module call is open."""
        return bool(self._stack)
