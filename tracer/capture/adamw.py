"""The optimizer of a recorded training step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .remembered import empty_like


class MasterAdamW:
    """AdamW as mixed-precision training runs it: FP32 master weights and moments.

    Gradients are widened, torch's own AdamW (its foreach form, which has meta kernels) updates the
    masters, and the model gets its rounded copy back. A parameter that is FP32 already is its own
    master, one that the step gave no gradient is left alone. States exist before the recorded step,
    as in every step but the first.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        used = [p for p in parameters if p.grad is not None]
        self.rounded: list[Tensor] = [p for p in used if p.dtype != torch.float32]
        self.plain: list[Tensor] = [p for p in used if p.dtype == torch.float32]
        self.copies = [empty_like(p, torch.float32) for p in self.rounded]
        self.masters = [*self.plain, *self.copies]
        self.optimizer = torch.optim.AdamW(self.masters or [torch.empty(0)], foreach=True)
        for master in self.masters:
            self.optimizer.state[master] = {
                "step": torch.tensor(1.0),
                "exp_avg": empty_like(master),
                "exp_avg_sq": empty_like(master),
            }

    def tensors(self) -> list[Tensor]:
        """Master copies and both moments. The widened gradients live only during the step."""
        states = [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return [*self.copies, *states]

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        if not self.masters:
            return
        with torch.no_grad():
            if self.rounded:
                widened = [torch.empty_like(copy) for copy in self.copies]
                torch._foreach_copy_(widened, [p.grad for p in self.rounded if p.grad is not None])
                for copy, gradient in zip(self.copies, widened, strict=True):
                    copy.grad = gradient
                del gradient, widened
            self.optimizer.step()
            for copy in self.copies:
                copy.grad = None
            if self.rounded:
                torch._foreach_copy_(self.rounded, self.copies)
