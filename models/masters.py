"""FP32 master weights for a model whose parameters are BF16 (arXiv 2412.19437, section 3.3.2).

An update is mostly smaller than half a step of a BF16 weight (2^-9 of it) and would be lost.
"""

from collections.abc import Iterable

import torch
from torch import nn


class MasterWeights:
    """FP32 copies that the optimizer steps on; parameters are their rounded images.

        masters = MasterWeights(model.parameters())
        optimizer = torch.optim.AdamW(masters.weights)
        loss.backward(); masters.take_gradients(); optimizer.step(); masters.write_back()

    Attributes:
        weights: the copies, of the parameters that require a gradient, in their order.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self._parameters = [p for p in parameters if p.requires_grad]
        self.weights = [nn.Parameter(p.detach().float().clone()) for p in self._parameters]

    def take_gradients(self) -> None:
        """Move each parameter's gradient to its copy, in FP32."""
        for parameter, weight in zip(self._parameters, self.weights, strict=True):
            weight.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the copies into the parameters."""
        for parameter, weight in zip(self._parameters, self.weights, strict=True):
            parameter.copy_(weight)
