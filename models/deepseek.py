"""DeepSeek-V2, V3, R1, Moonlight and Kimi K2 as one plain PyTorch model.

arXiv 2412.19437. Module names are those of the released checkpoints, so that keys map one to
one; only the routed experts are stacked.

Shapes: B batch, S new tokens a sequence, T = B·S, D hidden size, V vocabulary. The residual stream
is [T, D]; only attention looks at sequences.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .attention import MLA, Step
from .cache import KVCache
from .collectives import ALONE, Group
from .config import Config
from .context_parallel import positions
from .linear import Linear, Precision
from .moe import Experts, FeedForward, Gate, MoE
from .norm import RMSNorm
from .rope import cos_sin, inverse_frequencies


class Embedding(nn.Module):
    """Rows of `weight` [V, D] by token id."""

    def __init__(self, vocab: int, dim: int, *, dtype: torch.dtype, device: torch.device | str):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, dim, dtype=dtype, device=device))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight)

    @torch.no_grad()
    def init_weights(self, std: float, generator: torch.Generator | None) -> None:
        self.weight.normal_(0.0, std, generator=generator)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); dense or MoE by `layer_idx`."""

    def __init__(
        self, config: Config, layer_idx: int, precision: Precision, device: torch.device | str
    ):
        super().__init__()
        dim = config.hidden_size
        norm = {"eps": config.rms_norm_eps, "dtype": precision.dtype, "device": device}
        self.input_layernorm = RMSNorm(dim, **norm)
        self.self_attn = MLA(config, layer_idx, precision, device)
        self.post_attention_layernorm = RMSNorm(dim, **norm)
        if config.is_moe(layer_idx):
            self.mlp = MoE(config, precision, device)
        else:
            self.mlp = FeedForward(dim, config.intermediate_size, precision, device)

    def forward(self, x_TD: torch.Tensor, step: Step) -> torch.Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), step)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


MTP_WEIGHT = 0.3  # of its loss beside the main one; 0.1 behind 10 T of 14.8 T tokens (section 4.2)


class SharedHead(nn.Module):
    """The norm in front of the output head that an MTP layer shares with the main model."""

    def __init__(self, dim: int, eps: float, *, dtype: torch.dtype, device: torch.device | str):
        super().__init__()
        self.norm = RMSNorm(dim, eps, dtype=dtype, device=device)


class MTPLayer(DecoderLayer):
    """One multi-token-prediction depth (section 2.2): a decoder layer behind a joint projection."""

    def __init__(
        self, config: Config, layer_idx: int, precision: Precision, device: torch.device | str
    ):
        super().__init__(config, layer_idx, precision, device)
        dim, place = config.hidden_size, {"dtype": precision.dtype, "device": device}
        self.enorm = RMSNorm(dim, config.rms_norm_eps, **place)
        self.hnorm = RMSNorm(dim, config.rms_norm_eps, **place)
        self.eh_proj = Linear(2 * dim, dim, **place)  # BF16 in the release, also with FP8
        self.shared_head = SharedHead(dim, config.rms_norm_eps, **place)

    def forward(
        self, next_embed_TD: torch.Tensor, hidden_TD: torch.Tensor, step: Step
    ) -> torch.Tensor:
        both = torch.cat((self.enorm(next_embed_TD), self.hnorm(hidden_TD)), dim=-1)
        return self.shared_head.norm(super().forward(self.eh_proj(both), step))


class Transformer(nn.Module):
    """Embedding, layers and final norm. MTP layers, if any, stand behind the main ones."""

    context: Group = ALONE  # the ranks over which the tokens of a sequence are spread

    def __init__(self, config: Config, precision: Precision, mtp: bool, device: torch.device | str):
        super().__init__()
        self.config = config
        dim, place = config.hidden_size, {"dtype": precision.dtype, "device": device}
        self.embed_tokens = Embedding(config.vocab_size, dim, **place)
        main = config.num_hidden_layers
        layers = [DecoderLayer(config, i, precision, device) for i in range(main)]
        for i in range(config.num_nextn_predict_layers if mtp else 0):
            layers.append(MTPLayer(config, main + i, precision, device))
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(dim, config.rms_norm_eps, **place)
        inv_freq = torch.empty(config.qk_rope_head_dim // 2, device=device)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.fill_inv_freq()

    def fill_inv_freq(self) -> None:
        """Set the rotary frequencies, which no checkpoint holds."""
        if not self.inv_freq.is_meta:
            self.inv_freq.copy_(torch.tensor(inverse_frequencies(self.config)))

    def step(self, batch: int, seq: int, cache: KVCache | None) -> Step:
        """Positions, mask and cache of one forward, computed once for all layers."""
        past = 0 if cache is None else cache.length
        yarn = self.config.yarn
        factor = yarn.attention_factor if yarn else 1.0
        absorbed = past > 0
        mask = None
        if absorbed and seq > 1:
            # The last query is the last key: bottom-right aligned.
            shape = (seq, past + seq)
            mask = torch.ones(shape, dtype=torch.bool, device=self.inv_freq.device).tril(past)
        place = {"dtype": torch.float32, "device": self.inv_freq.device}
        position_S = positions(seq, self.context, start=past, **place)
        rope = cos_sin(self.inv_freq, position_S, factor)
        return Step(batch, seq, rope, cache, absorbed, mask)

    def forward(self, ids_BS: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Hidden states behind the final norm, [T, D]."""
        batch, seq = ids_BS.shape
        step = self.step(batch, seq, cache)
        x_TD = self.embed_tokens(ids_BS.flatten())
        for layer in self.layers:
            if not isinstance(layer, MTPLayer):
                x_TD = layer(x_TD, step)
        if cache is not None:
            cache.advance(seq)
        return self.norm(x_TD)


class DeepSeek(nn.Module):
    """The language model.

    Args:
        config: sizes.
        precision: of weights and products.
        mtp: build the MTP layers too.
        device: of the weights, which are allocated but not filled (see `init_weights`).
    """

    def __init__(
        self,
        config: Config,
        precision: Precision,
        *,
        mtp: bool = False,
        device: torch.device | str = "meta",
    ):
        super().__init__()
        self.config = config
        self.model = Transformer(config, precision, mtp, device)
        self.lm_head = Linear(
            config.hidden_size, config.vocab_size, dtype=precision.dtype, device=device
        )
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids_BS: torch.Tensor,
        cache: KVCache | None = None,
        logits: Literal["all", "last"] = "all",
        next_ids_BS: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, S, V] of the next token, in the dtype of the model.

        Args:
            input_ids_BS: INT64 token ids.
            cache: latents of earlier tokens; the new ones are added. An empty cache is prefill
                (naive attention), a filled one decode (absorbed), for any S.
            logits: "last" computes them for the last position only, [B, 1, V].
            next_ids_BS: the token after each input token. With it, training with MTP: the result
                is (logits, MTP logits), the second of the token after the next one.

        Raises:
            ValueError: `logits` is something else, or the tokens do not fit in the cache.
            RuntimeError: FP8 weights and a filled cache, but `prepare_decode` was not called.
        """
        if logits not in ("all", "last"):
            raise ValueError(f"logits is {logits!r}, not 'all' or 'last'")
        hidden_TD = self.model(input_ids_BS, cache)
        main = self.logits(hidden_TD, input_ids_BS.shape, logits)
        if next_ids_BS is None:
            return main
        return main, self.mtp_logits(hidden_TD, next_ids_BS)

    def logits(
        self, hidden_TD: torch.Tensor, shape: tuple[int, int], which: str = "all"
    ) -> torch.Tensor:
        """Output head over hidden states of B sequences of S tokens; `shape` is (B, S)."""
        if which == "last":
            hidden_BD = hidden_TD.unflatten(0, shape)[:, -1]
            return self.lm_head(hidden_BD).unsqueeze(1)
        return self.lm_head(hidden_TD).unflatten(0, shape)

    def mtp_logits(
        self,
        hidden_TD: torch.Tensor,
        next_ids_BS: torch.Tensor,
        cache: KVCache | None = None,
        depth: int = 0,
    ) -> torch.Tensor:
        """Logits [B, S, V] of the token after the next one, from an MTP layer.

        Args:
            hidden_TD: what `model.model(...)` returned, behind its final norm, as servers
                (vLLM, SGLang) pass it.
            next_ids_BS: the token after each of those positions, known or drafted.
            cache: the layer's own cache, `KVCache(..., layers=[num_hidden_layers + depth])`.
            depth: which MTP layer; releases have one.

        Raises:
            ValueError: the model was built without that MTP layer.
        """
        layers = [layer for layer in self.model.layers if isinstance(layer, MTPLayer)]
        if depth >= len(layers):
            raise ValueError(f"no MTP layer {depth}: the model was built with {len(layers)}")
        batch, seq = next_ids_BS.shape
        step = self.model.step(batch, seq, cache)
        next_embed_TD = self.model.embed_tokens(next_ids_BS.flatten())
        drafted_TD = layers[depth](next_embed_TD, hidden_TD, step)
        if cache is not None:
            cache.advance(seq)
        return self.logits(drafted_TD, (batch, seq))

    def prepare_decode(self) -> "DeepSeek":
        """Dequantise W_UK and W_UV of FP8 weights once, for the absorbed form; returns self.

        Call it after loading weights. Nothing happens in BF16, FP16 and FP32, or when training.
        """
        for module in self.modules():
            if isinstance(module, MLA):
                module.prepare_decode()
        return self

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> "DeepSeek":
        """Fill all weights: normal with `initializer_range`, norms 1, gate biases 0; returns self.

        Not for meta tensors, which have nothing to fill.
        """
        device = self.lm_head.weight.device
        generator = torch.Generator(device).manual_seed(seed)
        self.model.fill_inv_freq()
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.init_weights()
            elif isinstance(module, Linear | Embedding | Gate | Experts):
                module.init_weights(self.config.initializer_range, generator)
        return self
