"""Rotary positions with YaRN (arXiv 2104.09864, 2309.00071), as real arithmetic.

Shapes: B batch, S new tokens, H heads, R rotary width of a head, P = R/2 pairs.

DeepSeek rotates neighbouring elements (x0, x1), (x2, x3), ... ("interleaved"), not the two
halves of the head.
"""

import math

import torch

from .config import Config


def inverse_frequencies(config: Config) -> list[float]:
    """Angle per position of each rotary pair, P values in radians.

    With YaRN, pairs that turn more than `beta_fast` times in the original context keep their
    frequency, pairs that turn less than `beta_slow` times are slowed by `factor`, and a linear
    ramp joins the two.
    """
    dim, base, yarn = config.qk_rope_head_dim, config.rope_theta, config.yarn
    plain = [base ** (-2 * i / dim) for i in range(dim // 2)]
    if yarn is None:
        return plain

    def pair_that_turns(times: float) -> float:
        original = yarn.original_max_position_embeddings
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), dim - 1)
    width = max(high - low, 0.001)
    slowed = [min(max((i - low) / width, 0.0), 1.0) for i in range(dim // 2)]
    return [f * (1 - s) + f / yarn.factor * s for f, s in zip(plain, slowed, strict=True)]


def cos_sin(
    inv_freq_P: torch.Tensor, position_S: torch.Tensor, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of FP32 positions [S], FP32, each [S, 1, P].

    The unit dimension is that of the heads. `factor` is `Yarn.attention_factor`.
    """
    angle_S1P = position_S[:, None, None] * inv_freq_P
    cos_S1P, sin_S1P = angle_S1P.cos(), angle_S1P.sin()
    if factor != 1.0:
        cos_S1P, sin_S1P = cos_S1P * factor, sin_S1P * factor
    return cos_S1P, sin_S1P


def rotate(x_BSHR: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate the pairs of every head; FP32 inside, because cos and sin are, input dtype outside."""
    cos_S1P, sin_S1P = rope
    even, odd = x_BSHR.unflatten(-1, (-1, 2)).unbind(-1)
    turned = (even * cos_S1P - odd * sin_S1P, even * sin_S1P + odd * cos_S1P)
    return torch.stack(turned, dim=-1).flatten(-2).to(x_BSHR.dtype)
