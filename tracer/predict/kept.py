"""Activations as DeepSeek-V3 was trained with: bytes by hand, where the reference model keeps more.

The reference model keeps the results of experts and the inputs of SwiGLU in BF16, which is more
than a GPU of 80 GB has room for under DualPipe. arXiv 2412.19437 (sections 3.2.3 and 3.3.3) says
what is kept instead:

* inputs of linears in FP8 with a scale for every 128 elements, shared by linears with one input;
* the input of the linear behind attention in E5M6, 12 bits, from which attention's backward also
  takes its output;
* inputs of SwiGLU in FP8; its output is computed again, as are RMSNorm and MLA's up-projections;
* what norms read, in BF16.
"""

from __future__ import annotations

from typing import Any

from ..errors import UserError

FP8 = 1 + 4 / 128
E5M6 = 1.5
BF16 = 2.0


def kept_in_fp8(config: Any, tokens: int, moe: bool) -> float:
    """Bytes of one layer for one micro-batch of `tokens`, on a rank that cuts nothing by heads.

    A routed row counts on the rank it is sent to: as many come as go.
    """
    hidden, latent = config.hidden_size, config.kv_lora_rank
    if config.q_lora_rank is None:
        raise UserError("activations in FP8 are known for models with a compressed query")
    heads = config.num_attention_heads
    norms = BF16 * (2 * hidden + config.q_lora_rank + latent + config.qk_rope_head_dim)
    attention = FP8 * (hidden + config.q_lora_rank + latent)
    attention += E5M6 * heads * config.v_head_dim + 4 * heads  # and the sums of exponentials
    if not moe:
        wide = FP8 * (hidden + 2 * config.intermediate_size)
        return float(tokens * (norms + attention + wide))
    width, k = config.moe_intermediate_size, config.num_experts_per_tok
    shared = config.n_shared_experts or 0
    experts = FP8 * (hidden + k * hidden + 2 * (k + shared) * width)
    choice = 4.0 * config.n_routed_experts + 16.0 * k  # scores; rows and weights
    return float(tokens * (norms + attention + experts + choice))
