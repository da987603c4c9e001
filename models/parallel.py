"""One rank's part of a DeepSeek model: the program that every GPU of a plan runs.

Shapes as in `deepseek` and `moe`; T tokens of this rank's sequences, t = T / TP where tokens are
cut among the ranks of a TP group.

* Tensor parallel: heads, feed-forward widths and the vocabulary are cut. MLA's two down-projections
  make what all heads share, so every rank has them whole and repeats them; so it does the latent
  cache. Two all-reduces [T, D] a layer, or with `sequence_parallel` an all-gather and a
  reduce-scatter for each, and norms, gate and down-projections on t tokens. There attention gathers
  what it has compressed, [T, Q + C + R], not the hidden states.
* Attention data parallel: the ranks of a TP group have sequences of their own and attention whole;
  dense feed-forwards are cut, with an all-gather and a reduce-scatter around them.
* Expert parallel: see `expert_parallel`. The gate and the shared expert are whole and see the
  tokens of the rank, a slice of them where TP ranks share tokens.
* Pipeline: a stage has some layers, the first also the embedding, the last norm and head.
* Context parallel: see `context_parallel`. Each rank has two chunks of every sequence; S tokens of
  a sequence are then S / CP here, and only attention looks beyond them.

The model itself sends nothing between stages: `collectives.send` and `receive` do.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from .attention import MLA, Step
from .cache import KVCache
from .collectives import (
    ALONE,
    Group,
    all_reduce,
    copy,
    gather,
    raw_gather,
    scatter_sum,
    split,
)
from .config import Config
from .deepseek import DecoderLayer, Embedding, Transformer
from .expert_parallel import travelling
from .linear import Linear, Precision
from .moe import FeedForward, Gate, MoE
from .norm import RMSNorm
from .parallel_attention import ParallelMLA
from .recompute import RECOMPUTES, RecomputedNorm
from .zero import Unit, units_of


@dataclass(frozen=True)
class Layout:
    """The process groups of this rank and how it uses them.

    tp, ep, cp: cut heads and widths, spread experts, spread the tokens of a sequence.
    dp, edp, stage: ranks with the same cut weights, with the same experts, of the same stage:
        gradients are summed over one of them, so CP ranks belong to all three.
    sequence_parallel, attention_dp: as in the module's docstring.
    redundant_experts: copies beside the model's own experts.
    zero: level, see `zero`.
    recompute: "none", "latent", "selective" or "full" (see `recompute`).
    """

    tp: Group = ALONE
    ep: Group = ALONE
    cp: Group = ALONE
    dp: Group = ALONE
    edp: Group = ALONE
    stage: Group = ALONE
    sequence_parallel: bool = False
    attention_dp: bool = False
    redundant_experts: int = 0
    zero: int = 0
    recompute: str = "none"

    @property
    def scattered(self) -> bool:
        """Whether the hidden states between blocks are this rank's own tokens alone."""
        return self.tp.size > 1 and (self.sequence_parallel or self.attention_dp)

    @property
    def attention(self) -> Group:
        """The ranks among which heads are cut."""
        return ALONE if self.attention_dp else self.tp

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """In front of what is cut by columns: every token, [T, D]."""
        return gather(x, self.tp, partial=True) if self.scattered else copy(self.tp, x)[0]

    def leave(self, y: torch.Tensor) -> torch.Tensor:
        """Behind what is cut by rows: the sum, of this rank's tokens."""
        return scatter_sum(y, self.tp) if self.scattered else all_reduce(y, self.tp)

    def shares(self, path: str) -> tuple[str, Group]:
        """The ranks that have the same parameter `path`, and the name of that group.

        A parameter that is whole is "stage" where TP ranks use it for different tokens, and its
        gradients are partial; "dp" where they all compute the same.
        """
        if self.ep.size > 1 and ".experts." in path:
            return "edp", self.edp
        if self.tp.size == 1 or self._is_cut(path):
            return "dp", self.dp
        partial = self.scattered or ".gate." in path or ".shared_experts." in path
        return ("stage", self.stage) if partial else ("dp", self.dp)

    def _is_cut(self, path: str) -> bool:
        if ".experts." in path:
            return True
        if ".mlp." in path and ".gate." not in path:
            return ".shared_experts." not in path or self.ep.size == 1
        heads = ("q_proj", "q_b_proj", "kv_b_proj", "o_proj", "embed_tokens", "lm_head")
        return not self.attention_dp and any(f".{name}." in path for name in heads)


class ParallelFeedForward(FeedForward):
    """A feed-forward with 1/TP of its width."""

    def __init__(self, dim, width, precision, device, layout: Layout):
        super().__init__(dim, width // layout.tp.size, precision, device)
        self.layout = layout

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.layout.leave(super().forward(self.layout.enter(x_TD)))


class ParallelMoE(MoE):
    """Experts spread over EP ranks; without EP each is cut by its width, as the shared one is."""

    def __init__(self, config: Config, precision: Precision, device, layout: Layout):
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

    def __init__(self, config, layer_idx, moe: bool, precision, device, layout: Layout):
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

    def forward(self, x_TD: torch.Tensor, step: Step) -> torch.Tensor:
        with self.whole():
            return super().forward(x_TD, step)


class ParallelEmbedding(Unit, Embedding):
    """Rows of a part of the vocabulary; what other ranks have is zero here and summed."""

    def __init__(self, config: Config, dtype, device, layout: Layout):
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

    def __init__(self, config: Config, dtype, device, layout: Layout):
        vocab = config.vocab_size // layout.attention.size
        super().__init__(config.hidden_size, vocab, dtype=dtype, device=device)
        self.layout = layout

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        with self.whole():
            return super().forward(x_TD if self.layout.attention_dp else self.layout.enter(x_TD))


class ParallelTransformer(Transformer):
    """The layers `layers` of the model, with the embedding if they are its first ones, and with the
    final norm if they are its last. Paths count layers within the stage.
    """

    def __init__(self, config, precision, device, layout: Layout, layers: range, first, last):
        nn.Module.__init__(self)
        self.config, self.layout, self.context = config, layout, layout.cp
        place = {"dtype": precision.dtype, "device": device}
        self.embed_tokens = ParallelEmbedding(config, layout=layout, **place) if first else None
        self.layers = nn.ModuleList(
            ParallelLayer(config, place_, config.is_moe(index), precision, device, layout)
            for place_, index in enumerate(layers)
        )
        norm = ParallelNorm(config.hidden_size, config.rms_norm_eps, **place)
        self.norm = norm if last else None
        inv_freq = torch.empty(config.qk_rope_head_dim // 2, device=device)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.fill_inv_freq()

    def forward(self, x, shape: tuple[int, int], cache: KVCache | None = None) -> torch.Tensor:
        """Token ids [B, S] or hidden states [T, D] to hidden states; `shape` is (B, S)."""
        batch, seq = shape
        step = self.step(batch, seq, cache)
        x_TD = x if self.embed_tokens is None else self.embed_tokens(x.flatten())
        run = RECOMPUTES[self.layout.recompute] if self.training else RECOMPUTES["none"]
        for layer in self.layers:
            x_TD = run(layer, x_TD, step)
        if cache is not None:
            cache.advance(seq)
        return x_TD if self.norm is None else self.norm(x_TD)


class ParallelDeepSeek(nn.Module):
    """One rank's part of one pipeline stage.

    Args:
        config: sizes of the whole model.
        precision: of weights and products.
        layout: this rank's groups.
        layers: the layers of the stage.
        device: of the weights, allocated but not filled.
    """

    def __init__(
        self, config: Config, precision: Precision, layout: Layout, *,
        layers: range | None = None, device: torch.device | str = "meta",
    ):  # fmt: skip
        super().__init__()
        layers = range(config.num_hidden_layers) if layers is None else layers
        first, last = layers.start == 0, layers.stop == config.num_hidden_layers
        self.config, self.layout = config, layout
        self.model = ParallelTransformer(config, precision, device, layout, layers, first, last)
        head = ParallelHead(config, precision.dtype, device, layout) if last else None
        self.lm_head = head
        if first and last and config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def shard_(self) -> "ParallelDeepSeek":
        """Lay trainable parameters out for ZeRO; returns self. Weights are filled before."""
        layout = self.layout
        names = {module: path for path, module in self.named_modules()}
        for unit in list(units_of(self)):
            prefix = f".{names[unit]}."
            unit.shard_(
                layout.zero, lambda path, prefix=prefix: layout.shares(prefix + path + "."),
                layout.recompute == "none",
            )  # fmt: skip
        return self

    def forward(
        self, x: torch.Tensor, cache: KVCache | None = None, shape: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Logits [B, S, V/TP] of the last stage, hidden states [T, D] of any other.

        Args:
            x: token ids [B, S] in the first stage, hidden states in any other.
            cache: latents of the stage's layers, counted within the stage.
            shape: (B, S), where x does not say it.
        """
        shape = tuple(x.shape) if shape is None else shape
        hidden_TD = self.model(x, shape, cache)
        if self.lm_head is None:
            return hidden_TD
        return self.lm_head(hidden_TD).unflatten(0, shape)

    def whole_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of the whole vocabulary from those of a part, as sampling needs them."""
        group = self.layout.attention
        if group.size == 1:
            return logits
        rows = logits.flatten(0, -2)
        parts = raw_gather(rows, group).unflatten(0, (group.size, -1))
        return parts.transpose(0, 1).flatten(1).unflatten(0, logits.shape[:-1])

    def prepare_decode(self) -> "ParallelDeepSeek":
        """As `DeepSeek.prepare_decode`."""
        for module in self.modules():
            if isinstance(module, MLA):
                module.prepare_decode()
        return self
