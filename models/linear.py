"""Linear layers without bias: BF16/FP16/FP32, FP8 for inference, FP8 for training.

Shapes: M tokens, K input features, N output features; NB, KB the same in tiles of 128.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from . import fp8
from .fp8 import Quantized


@dataclass(frozen=True)
class Precision:
    """What weights are stored in and what the products run in.

    dtype: of activations, and of all weights that are not FP8.
    fp8: the projections of attention and all feed-forward matrices multiply in FP8.
    training: FP8 weights are kept in `dtype` and quantised at every use.
    """

    dtype: torch.dtype
    fp8: bool = False
    training: bool = False


class Linear(nn.Module):
    """x·wᵀ in the dtype of the weight [N, K]."""

    def __init__(
        self, in_dim: int, out_dim: int, *, dtype: torch.dtype, device: torch.device | str
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, dtype=dtype, device=device))

    def prepare(self, x_MK: torch.Tensor) -> torch.Tensor | Quantized:
        """What `forward` of this and of the linears beside it takes; done once for all of them."""
        return x_MK

    def forward(self, x_MK: torch.Tensor) -> torch.Tensor:
        return F.linear(x_MK, self.weight)

    def dequantized(self) -> torch.Tensor:
        """The weight [N, K] as numbers; here the parameter itself."""
        return self.weight

    @torch.no_grad()
    def init_weights(self, std: float, generator: torch.Generator | None) -> None:
        self.weight.normal_(0.0, std, generator=generator)


class Fp8TrainingLinear(Linear):
    """Weight [N, K] in `dtype`, quantised on the fly; all three products in FP8, y in BF16."""

    def prepare(self, x_MK: torch.Tensor) -> Quantized:
        with torch.no_grad():
            return Quantized(x_MK, *fp8.quantize_rows(x_MK))

    def forward(self, x: torch.Tensor | Quantized) -> torch.Tensor:
        x = x if isinstance(x, Quantized) else self.prepare(x)
        return fp8.LinearFn.apply(*x, self.weight)


class Fp8Linear(Linear):
    """Weight [N, K] in E4M3 with the scales of its 128×128 blocks beside it; y in `dtype`.

    `weight_scale_inv` is FP32 [NB, KB]. The name is that of the released checkpoints: it is the
    inverse of the factor applied when quantising, so it multiplies when dequantising.
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, dtype: torch.dtype, device: torch.device | str
    ):
        nn.Module.__init__(self)
        self.dtype = dtype
        weight = torch.empty(out_dim, in_dim, dtype=fp8.E4M3, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        scales = torch.empty(fp8.tiles(out_dim), fp8.tiles(in_dim), device=device)
        self.register_buffer("weight_scale_inv", scales)

    def prepare(self, x_MK: torch.Tensor) -> Quantized:
        return Quantized(None, *fp8.quantize_rows(x_MK))

    def forward(self, x: torch.Tensor | Quantized) -> torch.Tensor:
        x = x if isinstance(x, Quantized) else self.prepare(x)
        return fp8.mm(x.values, x.scales, self.weight, self.weight_scale_inv)

    def dequantized(self) -> torch.Tensor:
        """The weight [N, K] in `dtype`, a new tensor."""
        return fp8.dequantize(self.weight, self.weight_scale_inv).to(self.dtype)

    @torch.no_grad()
    def quantize_(self, weight_NK: torch.Tensor) -> None:
        """Take the values of an unquantised weight [N, K]."""
        values, scales = fp8.quantize_blocks(weight_NK)
        self.weight.copy_(values)
        self.weight_scale_inv.copy_(scales)

    @torch.no_grad()
    def init_weights(self, std: float, generator: torch.Generator | None) -> None:
        weight = torch.empty(self.weight.shape, device=self.weight.device)
        self.quantize_(weight.normal_(0.0, std, generator=generator))


def projection(
    in_dim: int, out_dim: int, precision: Precision, device: torch.device | str
) -> Linear:
    """A linear that is FP8 where the model is (the release keeps head, gate and norms in BF16)."""
    kind = Linear
    if precision.fp8:
        kind = Fp8TrainingLinear if precision.training else Fp8Linear
    return kind(in_dim, out_dim, dtype=precision.dtype, device=device)
