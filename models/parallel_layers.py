"""The layers of one rank, each a unit that ZeRO gathers and shards; see `parallel` for the cuts."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from .collectives import gather, split
from .config import Config
from .deepseek import DecoderLayer, Embedding, MTPLayer, SharedHead
from .expert_parallel import travelling
from .linear import Linear, Precision
from .moe import FeedForward, Gate, MoE
from .norm import RMSNorm
from .parallel_attention import ParallelMLA
from .recompute import RecomputedNorm
from .zero import Unit

if TYPE_CHECKING:
    from .parallel import Layout


class ParallelFeedForward(FeedForward):
    """A feed-forward with 1/TP of its width."""

    def __init__(self, dim, width, precision, device, layout: "Layout"):
        super().__init__(dim, width // layout.tp.size, precision, device)
        self.layout = layout

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.layout.leave(super().forward(self.layout.enter(x_TD)))


class ParallelMoE(MoE):
    """Experts spread over EP ranks; without EP each is cut by its width, as the shared one is."""

    def __init__(self, config: Config, precision: Precision, device, layout: "Layout"):
        ep, tp = layout.ep.size, layout.tp.size
        if ep == 1:
            super().__init__(
                replace(config, moe_intermediate_size=config.moe_intermediate_size // tp),
                precision, device,
            )  # fmt: skip
        else:
            nn.Module.__init__(self)
            self.gate = Gate(config, dtype=precision.dtype, device=device)
            slots = (config.n_routed_experts + layout.redundant_experts) // ep
            self.experts = travelling(precision)(
                replace(config, n_routed_experts=slots), precision, device, layout.ep,
                layout.redundant_experts,
            )  # fmt: skip
            self.shared_experts = None
            if config.n_shared_experts:
                width = config.n_shared_experts * config.moe_intermediate_size
                self.shared_experts = FeedForward(config.hidden_size, width, precision, device)
        self.layout = layout

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        layout = self.layout
        if layout.ep.size == 1:
            return layout.leave(super().forward(layout.enter(x_TD)))
        if layout.scattered:
            return super().forward(x_TD)
        return gather(super().forward(split(x_TD, layout.tp)), layout.tp, partial=False)


class ParallelLayer(Unit, DecoderLayer):
    """One decoder layer. `layer_idx` counts within the stage, `moe` says of which kind it is."""

    def __init__(self, config, layer_idx, moe: bool, precision, device, layout: "Layout"):
        nn.Module.__init__(self)
        dim = config.hidden_size
        norm = {"eps": config.rms_norm_eps, "dtype": precision.dtype, "device": device}
        kind = RecomputedNorm if layout.recompute == "latent" else RMSNorm
        self.input_layernorm = kind(dim, **norm)
        self.self_attn = ParallelMLA(config, layer_idx, precision, device, layout)
        self.post_attention_layernorm = kind(dim, **norm)
        if moe:
            self.mlp = ParallelMoE(config, precision, device, layout)
        else:
            self.mlp = ParallelFeedForward(dim, config.intermediate_size, precision, device, layout)

    def forward(self, *args) -> torch.Tensor:
        with self.whole():
            return super().forward(*args)


class ParallelMTP(ParallelLayer, MTPLayer):
    """The MTP module, gathered and sharded as one layer: the next tokens' embeddings and hidden
    states to hidden states behind its own norm.
    """

    def __init__(self, config, layer_idx, precision, device, layout: "Layout"):
        moe = config.is_moe(config.num_hidden_layers)
        super().__init__(config, layer_idx, moe, precision, device, layout)
        dim, place = config.hidden_size, {"dtype": precision.dtype, "device": device}
        self.enorm = RMSNorm(dim, config.rms_norm_eps, **place)
        self.hnorm = RMSNorm(dim, config.rms_norm_eps, **place)
        self.eh_proj = Linear(2 * dim, dim, **place)
        self.shared_head = SharedHead(dim, config.rms_norm_eps, **place)


class ParallelEmbedding(Unit, Embedding):
    """Rows of a part of the vocabulary; what other ranks have is zero here and summed."""

    def __init__(self, config: Config, dtype, device, layout: "Layout"):
        self.rows = config.vocab_size // layout.attention.size
        super().__init__(self.rows, config.hidden_size, dtype=dtype, device=device)
        self.layout = layout

    def forward(self, ids_T: torch.Tensor) -> torch.Tensor:
        group = self.layout.attention
        with self.whole():
            if group.size == 1:
                return super().forward(ids_T)
            ids_T = ids_T - group.rank * self.rows
            elsewhere_T = (ids_T < 0) | (ids_T >= self.rows)
            x_TD = super().forward(ids_T.masked_fill(elsewhere_T, 0))
            return self.layout.leave(x_TD.masked_fill(elsewhere_T.unsqueeze(1), 0))


class ParallelNorm(Unit, RMSNorm):
    """The final norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.whole():
            return super().forward(x)


class ParallelHead(Unit, Linear):
    """Logits [T, V/TP] of a part of the vocabulary."""

    def __init__(self, config: Config, dtype, device, layout: "Layout"):
        vocab = config.vocab_size // layout.attention.size
        super().__init__(config.hidden_size, vocab, dtype=dtype, device=device)
        self.layout = layout

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        with self.whole():
            return super().forward(x_TD if self.layout.attention_dp else self.layout.enter(x_TD))
