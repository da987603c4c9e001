"""A linear layer with FP32 master weights whose three products run in FP8, by a free recipe.

Shapes: M tokens, N output features, K input features. y = x·wᵀ contracts K, dx = dy·w contracts N,
dw = dyᵀ·x contracts M; each operand is quantised along the contraction of its product.

What two roundings may cost, for the tests and for readers. An operand a comes back as a + e, with
|e| ≤ max(u·|a|, z): u = 2^-(m + 1) for m mantissa bits (2^-4 in E4M3, 2^-3 in E5M2), z half of the
smallest subnormal times the scale. Hence |Δ(Σ a·b)| ≤ Σ (|a| + |e_a|)(|b| + |e_b|) - |a|·|b|, about
(u_a + u_b) Σ|a·b|: a gradient in E5M2 against E4M3 is within 20 % of Σ|dy·w|, in E4M3 within 13 %.
Errors of random sign leave far less: √(r_a² + r_b²) of the norm, with r of `error.norm_error`.

`Fp8TrainingLinear` of the reference model is the recipe "block" with E4M3 gradients, made lean: it
keeps x in E4M3 and rounds it again for dw, where this layer keeps x as it came.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from . import tiles
from .scaling import Accumulate, Fp8Error, Scaled, check_choice, product, quantize
from .tiles import E4M3, E5M2

Scaling = Literal["tensor", "row", "block"]


@dataclass(frozen=True)
class Recipe:
    """How the products of one linear are made.

    scaling: "tensor" and "row" for both operands; "block" is the paper's, 1×128 tiles for x and dy
        (along tokens in dw) and 128×128 blocks for w.
    gradient: format of dy, E4M3 (the paper) or E5M2 (what was usual before it).
    power_of_two: scales are powers of two.
    accumulate: see `scaling.product`.

    Raises:
        Fp8Error: something else.
    """

    scaling: Scaling = "block"
    gradient: torch.dtype = E4M3
    power_of_two: bool = False
    accumulate: Accumulate = "fp32"

    def __post_init__(self) -> None:
        check_choice("scaling", self.scaling, Scaling)
        check_choice("accumulate", self.accumulate, Accumulate)
        if self.gradient not in (E4M3, E5M2):
            raise Fp8Error(f"gradient is {self.gradient}; supported are {E4M3} and {E5M2}")
        if self.scaling == "block" and self.accumulate == "hopper":
            raise Fp8Error("scaling 'block' promotes every 128: it has no accumulate 'hopper'")

    def tokens(self, x_MK: torch.Tensor, dtype: torch.dtype = E4M3) -> Scaled:
        """An activation or a gradient, for a product over its features."""
        scheme = "tile" if self.scaling == "block" else self.scaling
        return quantize(x_MK, scheme, dtype, power_of_two=self.power_of_two)

    def features(self, x_MK: torch.Tensor, dtype: torch.dtype = E4M3) -> Scaled:
        """The same transposed [K, M], for a product over its tokens."""
        if self.scaling == "block":
            return Scaled(*tiles.quantize_columns(x_MK, dtype, self.power_of_two), "tile")
        return self.tokens(x_MK.t().contiguous(), dtype)

    def weight(self, w_NK: torch.Tensor) -> Scaled:
        """A weight."""
        return quantize(w_NK, self.scaling, E4M3, power_of_two=self.power_of_two)


class _MasterLinearFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_MK, w_NK, recipe):
        ctx.save_for_backward(x_MK, w_NK)
        ctx.recipe = recipe
        x, w = recipe.tokens(x_MK), recipe.weight(w_NK)
        return product(x, w, x_MK.dtype, recipe.accumulate)

    @staticmethod
    def backward(ctx, dy_MN):
        x_MK, w_NK = ctx.saved_tensors
        recipe = ctx.recipe
        dx_MK = dw_NK = None
        if ctx.needs_input_grad[0]:
            dy, w = recipe.tokens(dy_MN, recipe.gradient), recipe.weight(w_NK.t().contiguous())
            dx_MK = product(dy, w, x_MK.dtype, recipe.accumulate)
        if ctx.needs_input_grad[1]:
            dy, x = recipe.features(dy_MN, recipe.gradient), recipe.features(x_MK)
            dw_NK = product(dy, x, torch.float32, recipe.accumulate)
        return dx_MK, dw_NK, None


class MasterLinear(nn.Module):
    """x·wᵀ with an FP32 weight [N, K], quantised at every use.

    y and dx have the dtype of x (BF16 in training), the weight's gradient is FP32.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        recipe: Recipe | None = None,
        *,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.recipe = recipe or Recipe()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, device=device))
        nn.init.normal_(self.weight, std=in_dim**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [..., K] to [..., N]."""
        y = _MasterLinearFn.apply(x.flatten(0, -2), self.weight, self.recipe)
        return y.unflatten(0, x.shape[:-1])
