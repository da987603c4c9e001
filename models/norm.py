"""RMSNorm (arXiv 1910.07467)."""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension, in FP32 inside, input dtype outside."""

    def __init__(self, dim: int, eps: float, *, dtype: torch.dtype, device: torch.device | str):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim, dtype=dtype, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    @torch.no_grad()
    def init_weights(self) -> None:
        self.weight.fill_(1.0)
