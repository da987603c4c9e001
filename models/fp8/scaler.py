"""Loss scaling: gradients too small for FP8 (or FP16) are lifted, and brought back before the step.

The same rules as `torch.amp.GradScaler`, in Python floats and without its per-device bookkeeping.
With scales per tensor, row or tile computed from the data, FP8 gradients need it little: the scale
already lifts them. It matters where gradients travel unscaled, and as the guard that skips a step.
"""

import math

import torch


class LossScaler:
    """A factor on the loss that grows while gradients are finite and backs off when they are not.

        loss_scaler.scaled(loss).backward()
        loss_scaler.step(optimizer)  # unscales; skips the step on Inf or NaN
        loss_scaler.update()

    Attributes:
        scale: the factor now.
        skipped: steps not taken so far.
    """

    def __init__(
        self,
        scale: float = 2.0**16,
        growth: float = 2.0,
        backoff: float = 0.5,
        growth_interval: int = 2000,
    ):
        if not (scale > 0 and growth > 1 and 0 < backoff < 1 and growth_interval >= 1):
            raise ValueError(
                f"scale {scale}, growth {growth}, backoff {backoff}, growth_interval "
                f"{growth_interval}; needed are scale > 0, growth > 1, 0 < backoff < 1, interval "
                ">= 1"
            )
        self.scale = scale
        self.growth, self.backoff, self.growth_interval = growth, backoff, growth_interval
        self.skipped = 0
        self._good_steps = 0
        self._found: dict[int, bool] = {}  # by optimizer, since the last update

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to call `backward` on."""
        return loss * self.scale

    @torch.no_grad()
    def unscale_(self, optimizer: torch.optim.Optimizer) -> bool:
        """Divide the gradients once a step; whether one of them is Inf or NaN.

        Call it before clipping; `step` calls it where you did not.
        """
        if id(optimizer) not in self._found:
            grads = [
                parameter.grad
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            ]
            self._found[id(optimizer)] = not all(bool(grad.isfinite().all()) for grad in grads)
            for grad in grads:
                grad.mul_(1.0 / self.scale)
        return self._found[id(optimizer)]

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Unscale and step, or skip the step; whether it was taken."""
        if self.unscale_(optimizer):
            self.skipped += 1
            return False
        optimizer.step()
        return True

    def update(self) -> None:
        """Back off after Inf or NaN, grow after `growth_interval` good steps in a row."""
        if any(self._found.values()):
            self.scale *= self.backoff
            self._good_steps = 0
        else:
            self._good_steps += 1
            if self._good_steps == self.growth_interval:
                if math.isfinite(torch.tensor(self.scale * self.growth).item()):  # in FP32
                    self.scale *= self.growth
                self._good_steps = 0
        self._found.clear()
