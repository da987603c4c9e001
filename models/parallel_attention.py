"""Attention of one rank: what of it TP cuts, and what CP ranks gather."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .attention import MLA, Step
from .collectives import copy, gather
from .context_parallel import all_tokens
from .recompute import attention_again

if TYPE_CHECKING:
    from .parallel import Layout


class ParallelMLA(MLA):
    """Attention with 1/TP of the heads, over tokens of which each CP rank has its part.

    CP ranks gather what all heads share, [T, C + R]: with keys and values of every head they would
    gather H·(X + V) a token (DeepSeek-V3: 32,768 elements for 576). So each of them expands the
    latents of all S tokens: rank 0 sees them all, and for it the others would wait.
    """

    def __init__(self, config, layer_idx, precision, device, layout: "Layout"):
        heads = config.num_attention_heads // layout.attention.size
        super().__init__(replace(config, num_attention_heads=heads), layer_idx, precision, device)
        self.layout, self.context = layout, layout.cp

    def forward(self, x_TD: torch.Tensor, step: Step) -> torch.Tensor:
        y_TD = super().forward(x_TD, step)
        return y_TD if self.layout.attention_dp else self.layout.leave(y_TD)

    def _attend(self, *args):
        if self.layout.recompute == "latent" and self.training:
            return attention_again(super()._attend, *args)
        return super()._attend(*args)

    def _shared_by_heads(self, x_TD):
        q_in, c_kv, k_rope = super()._shared_by_heads(x_TD)
        layout = self.layout
        if layout.attention.size == 1:
            return q_in, c_kv, k_rope
        if not self.compress_q:
            q_in = self.q_proj.prepare(layout.enter(x_TD))
            return q_in, *self._spread(c_kv, k_rope)
        return self._spread(q_in, c_kv, k_rope)

    def _spread(self, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`enter` for several tensors in one message."""
        if not self.layout.scattered:
            return copy(self.layout.tp, *parts)
        both = gather(torch.cat(parts, dim=-1), self.layout.tp, partial=True)
        return both.split([part.shape[-1] for part in parts], dim=-1)

    def _naive(self, q_nope_BSHX, q_rope_BSHR, c_kv_TC, k_rope_BS1R):
        if self.context.size > 1:
            batch, seq = q_nope_BSHX.shape[:2]
            latent_Bsd = torch.cat((c_kv_TC, k_rope_BS1R.flatten(0, 2)), dim=-1)
            latent_BSd = all_tokens(latent_Bsd.unflatten(0, (batch, seq)), self.context)
            c_kv_BSC, k_rope_BSR = latent_BSd.split([self.rank, self.rope_dim], dim=-1)
            c_kv_TC, k_rope_BS1R = c_kv_BSC.flatten(0, 1), k_rope_BSR.unsqueeze(2)
        return super()._naive(q_nope_BSHX, q_rope_BSHR, c_kv_TC, k_rope_BS1R)
