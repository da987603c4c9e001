"""Multi-head latent attention (MLA), arXiv 2405.04434 section 2.1, in both of its forms.

Shapes: B batch, S new tokens a sequence, T = B·S, L keys, D hidden size, H heads, C latent rank
(512), R rotary width (64), X = nope width (128), V value width (128).

Names as in the paper: c_kv is the compressed latent that is cached, W_UK and W_UV the two halves
of `kv_b_proj`, which expand it to keys and values.

* naive: expand, then ordinary attention with H heads, q·k of X + R. For training and prefill.
* absorbed: (q W_UK)·c_kv = q·(W_UK c_kv), so W_UK moves to the query, once per new token instead
  of once per cached one; W_UV moves behind the softmax. What is left is multi-query attention: H
  queries of C + R over one key, whose first C elements are also the value. For decode.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .cache import KVCache
from .collectives import ALONE, Group
from .config import Config
from .context_parallel import causal_attention
from .fp8 import Quantized
from .linear import Precision, projection
from .norm import RMSNorm
from .rope import rotate

# The norms on the latents take RMSNorm's default in every release, not `rms_norm_eps`.
LATENT_EPS = 1e-6


@dataclass(frozen=True)
class Step:
    """What is the same for every layer of one forward.

    batch, seq: B and S; the residual stream itself is [B·S, D].
    rope: cos and sin of the new positions, FP32 [S, 1, R/2] each.
    cache: where latents go, None in training.
    absorbed: the cache held tokens before this forward.
    mask: BOOL [S, L], true where a query may look, for S > 1 over a filled cache; otherwise None:
        one query sees all keys, and without a past causality needs no mask.
    """

    batch: int
    seq: int
    rope: tuple[torch.Tensor, torch.Tensor]
    cache: KVCache | None = None
    absorbed: bool = False
    mask: torch.Tensor | None = None


class MLA(nn.Module):
    """Attention of one layer, [T, D] -> [T, D]."""

    context: Group = ALONE  # the ranks over which the tokens of a sequence are spread

    def __init__(
        self, config: Config, layer_idx: int, precision: Precision, device: torch.device | str
    ):
        super().__init__()
        self.layer_idx = layer_idx
        self.heads = config.num_attention_heads
        self.rank = config.kv_lora_rank
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.v_dim = config.v_head_dim
        self.scale = config.softmax_scale
        self.fp8_weights = precision.fp8 and not precision.training

        dim, q_dim = config.hidden_size, self.heads * config.qk_head_dim
        norm = {"eps": LATENT_EPS, "dtype": precision.dtype, "device": device}
        self.compress_q = config.q_lora_rank is not None
        if self.compress_q:
            self.q_a_proj = projection(dim, config.q_lora_rank, precision, device)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, **norm)
            self.q_b_proj = projection(config.q_lora_rank, q_dim, precision, device)
        else:
            self.q_proj = projection(dim, q_dim, precision, device)
        self.kv_a_proj_with_mqa = projection(dim, config.latent_dim, precision, device)
        self.kv_a_layernorm = RMSNorm(self.rank, **norm)
        kv_dim = self.heads * (self.nope_dim + self.v_dim)
        self.kv_b_proj = projection(self.rank, kv_dim, precision, device)
        self.o_proj = projection(self.heads * self.v_dim, dim, precision, device)
        # Filled by `prepare_decode` where the weights are FP8, else views of kv_b_proj are used.
        self.register_buffer("w_uk_HXC", None, persistent=False)
        self.register_buffer("w_uv_HVC", None, persistent=False)

    def forward(self, x_TD: torch.Tensor, step: Step) -> torch.Tensor:
        return self.o_proj(self._attend(*self._shared_by_heads(x_TD), step))

    def _attend(self, q_in, c_kv_TC, k_rope_TR, step: Step) -> torch.Tensor:
        """What is done for each head, from the latents to [T, H·V]."""
        q = self.q_b_proj(q_in) if self.compress_q else self.q_proj(q_in)
        q_BSHd = q.view(step.batch, step.seq, self.heads, self.nope_dim + self.rope_dim)
        q_nope_BSHX, q_rope_BSHR = q_BSHd.split([self.nope_dim, self.rope_dim], dim=-1)
        q_rope_BSHR = rotate(q_rope_BSHR, step.rope)

        k_rope_BS1R = rotate(k_rope_TR.view(step.batch, step.seq, 1, self.rope_dim), step.rope)

        cached_BLd = None
        if step.cache is not None:
            c_kv_BSC = c_kv_TC.view(step.batch, step.seq, self.rank)
            cached_BLd = step.cache.append(self.layer_idx, c_kv_BSC, k_rope_BS1R.squeeze(2))
        if step.absorbed:
            return self._absorbed(q_nope_BSHX, q_rope_BSHR, cached_BLd, step.mask)
        return self._naive(q_nope_BSHX, q_rope_BSHR, c_kv_TC, k_rope_BS1R)

    def _shared_by_heads(self, x_TD: torch.Tensor) -> tuple[torch.Tensor | Quantized, ...]:
        """The query's latent [T, Q] (x where it has none), c_kv [T, C], the bare rotary key [T, R].

        What comes behind is done for each head.
        """
        x = self.kv_a_proj_with_mqa.prepare(x_TD)
        q_in = self.q_a_layernorm(self.q_a_proj(x)) if self.compress_q else x
        latent_TC, k_rope_TR = self.kv_a_proj_with_mqa(x).split([self.rank, self.rope_dim], dim=-1)
        return q_in, self.kv_a_layernorm(latent_TC), k_rope_TR

    def _naive(self, q_nope_BSHX, q_rope_BSHR, c_kv_TC, k_rope_BS1R) -> torch.Tensor:
        """Attention among the new tokens alone, [T, H·V]."""
        batch, seq = q_nope_BSHX.shape[:2]
        kv_BSHd = self.kv_b_proj(c_kv_TC).view(batch, -1, self.heads, self.nope_dim + self.v_dim)
        k_nope_BSHX, v_BSHV = kv_BSHd.split([self.nope_dim, self.v_dim], dim=-1)
        q_BSHd = torch.cat((q_nope_BSHX, q_rope_BSHR), dim=-1)
        k_rope_BSHR = k_rope_BS1R.expand(-1, -1, self.heads, -1)
        k_BSHd = torch.cat((k_nope_BSHX, k_rope_BSHR), dim=-1)
        o_BHSV = causal_attention(
            q_BSHd.transpose(1, 2),
            k_BSHd.transpose(1, 2),
            v_BSHV.transpose(1, 2),
            self.scale,
            self.context,
        )
        return o_BHSV.transpose(1, 2).reshape(batch * seq, self.heads * self.v_dim)

    def _absorbed(self, q_nope_BSHX, q_rope_BSHR, cached_BLd, mask_SL) -> torch.Tensor:
        """Attention over the whole cache without expanding it, [T, H·V]."""
        batch, seq = q_nope_BSHX.shape[:2]
        w_uk_HXC, w_uv_HVC = self._absorbed_weights()
        q_HTX = q_nope_BSHX.flatten(0, 1).transpose(0, 1)
        q_latent_HTC = torch.bmm(q_HTX, w_uk_HXC)
        q_latent_BSHC = q_latent_HTC.transpose(0, 1).unflatten(0, (batch, seq))
        q_BSHd = torch.cat((q_latent_BSHC, q_rope_BSHR), dim=-1)
        # All heads share the one key, so they are rows of a single head's query, as in FlashMLA:
        # no kernel has to know about grouped heads, and the cache is read once.
        key_B1Ld = cached_BLd.unsqueeze(1)
        if mask_SL is not None:
            mask_SL = mask_SL.repeat_interleave(self.heads, dim=0)
        o_B1rC = F.scaled_dot_product_attention(
            q_BSHd.flatten(1, 2).unsqueeze(1),
            key_B1Ld,
            key_B1Ld[..., : self.rank],
            attn_mask=mask_SL,
            scale=self.scale,
        )
        o_HTC = o_B1rC.view(batch * seq, self.heads, self.rank).transpose(0, 1)
        o_HTV = torch.bmm(o_HTC, w_uv_HVC.transpose(1, 2))
        return o_HTV.transpose(0, 1).reshape(batch * seq, self.heads * self.v_dim)

    def _absorbed_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.w_uk_HXC is not None:
            return self.w_uk_HXC, self.w_uv_HVC
        if self.fp8_weights:
            raise RuntimeError("FP8 decode needs model.prepare_decode() once after loading weights")
        return self._split_kv_b(self.kv_b_proj.weight)

    def _split_kv_b(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """W_UK [H, X, C] and W_UV [H, V, C] as views of kv_b_proj's weight."""
        per_head = weight.view(self.heads, self.nope_dim + self.v_dim, self.rank)
        return per_head.split([self.nope_dim, self.v_dim], dim=1)

    @torch.no_grad()
    def prepare_decode(self) -> None:
        """Keep W_UK and W_UV dequantised, as servers do; nothing to do unless they are FP8."""
        if self.fp8_weights:
            self.w_uk_HXC, self.w_uv_HVC = self._split_kv_b(self.kv_b_proj.dequantized())
