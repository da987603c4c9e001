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
* Multi-token prediction: the last stage also has the MTP module, cut as a layer is, with `eh_proj`
  whole on every rank, as down-projections are; and an embedding, which the first stage has as well.
* Context parallel: see `context_parallel`. Each rank has two chunks of every sequence; S tokens of
  a sequence are then S / CP here, and only attention looks beyond them.

The model itself sends nothing between stages: `collectives.send` and `receive` do.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .attention import MLA
from .cache import KVCache
from .collectives import (
    ALONE,
    Group,
    all_reduce,
    copy,
    gather,
    raw_all_reduce,
    raw_gather,
    scatter_sum,
)
from .config import Config
from .deepseek import Transformer
from .linear import Precision
from .parallel_layers import (
    ParallelEmbedding,
    ParallelHead,
    ParallelLayer,
    ParallelMTP,
    ParallelNorm,
)
from .recompute import RECOMPUTES
from .zero import units_of


@dataclass(frozen=True)
class Layout:
    """The process groups of this rank and how it uses them.

    tp, ep, cp: cut heads and widths, spread experts, spread the tokens of a sequence.
    dp, edp, stage: ranks with the same cut weights, with the same experts, of the same stage:
        gradients are summed over one of them, so CP ranks belong to all three.
    embedding: this rank's counterparts in the first and the last stage, where both have the
        embedding (see `reduce_embedding`).
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
    embedding: Group = ALONE
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


class ParallelTransformer(Transformer):
    """The layers `layers` of the model, with the embedding if they are its first ones, and with the
    final norm if they are its last. Paths count layers within the stage.

    With `mtp` the module of multi-token prediction stands behind the last layers, as layer number
    `num_hidden_layers`; its path is `mtp`.
    """

    def __init__(self, config, precision, device, layout: Layout, layers: range, mtp: bool = False):
        nn.Module.__init__(self)
        self.config, self.layout, self.context = config, layout, layout.cp
        main = config.num_hidden_layers
        self.first, last = layers.start == 0, layers.stop == main + mtp
        place = {"dtype": precision.dtype, "device": device}
        embeds = self.first or (last and mtp)
        self.embed_tokens = ParallelEmbedding(config, layout=layout, **place) if embeds else None
        self.layers = nn.ModuleList(
            ParallelLayer(config, place_, config.is_moe(index), precision, device, layout)
            for place_, index in enumerate(range(layers.start, min(layers.stop, main)))
        )
        drafts, index = last and mtp, len(self.layers)
        self.mtp = ParallelMTP(config, index, precision, device, layout) if drafts else None
        norm = ParallelNorm(config.hidden_size, config.rms_norm_eps, **place)
        self.norm = norm if last else None
        inv_freq = torch.empty(config.qk_rope_head_dim // 2, device=device)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.fill_inv_freq()

    def forward(self, x, shape: tuple[int, int], cache: KVCache | None = None) -> torch.Tensor:
        """Token ids [B, S] or hidden states [T, D] to hidden states; `shape` is (B, S)."""
        step = self.step(*shape, cache)
        x_TD = self.embed_tokens(x.flatten()) if self.first else x
        for layer in self.layers:
            x_TD = self._run(layer, x_TD, step)
        if cache is not None:
            cache.advance(shape[1])
        return x_TD if self.norm is None else self.norm(x_TD)

    def drafted(self, hidden_TD: torch.Tensor, next_ids_BS: torch.Tensor) -> torch.Tensor:
        """Hidden states of the MTP module from those behind the final norm, and the next tokens."""
        step = self.step(*next_ids_BS.shape, None)
        next_embed_TD = self.embed_tokens(next_ids_BS.flatten())
        return self._run(self.mtp, next_embed_TD, hidden_TD, step)

    def _run(self, layer: nn.Module, *args) -> torch.Tensor:
        again = self.layout.recompute if self.training else "none"
        return RECOMPUTES[again](layer, *args)


class ParallelDeepSeek(nn.Module):
    """One rank's part of one pipeline stage.

    Args:
        config: sizes of the whole model.
        precision: of weights and products.
        layout: this rank's groups.
        layers: the layers of the stage; with `mtp` the last stage has one more, the MTP module.
        mtp: the model is trained with its MTP module.
        device: of the weights, allocated but not filled.
    """

    def __init__(
        self, config: Config, precision: Precision, layout: Layout, *,
        layers: range | None = None, mtp: bool = False, device: torch.device | str = "meta",
    ):  # fmt: skip
        super().__init__()
        layers = range(config.num_hidden_layers + mtp) if layers is None else layers
        self.config, self.layout = config, layout
        self.model = ParallelTransformer(config, precision, device, layout, layers, mtp)
        last = self.model.norm is not None
        head = ParallelHead(config, precision.dtype, device, layout) if last else None
        self.lm_head = head
        if self.model.first and last and config.tie_word_embeddings:
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
        self, x: torch.Tensor, cache: KVCache | None = None, shape: tuple[int, int] | None = None,
        next_ids_BS: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Logits [B, S, V/TP] of the last stage, hidden states [T, D] of any other.

        Args:
            x: token ids [B, S] in the first stage, hidden states in any other.
            cache: latents of the stage's layers, counted within the stage.
            shape: (B, S), where x does not say it.
            next_ids_BS: the token after each one of this rank. With it, training with MTP: the
                last stage returns (logits, MTP logits).
        """
        shape = tuple(x.shape) if shape is None else shape
        hidden_TD = self.model(x, shape, cache)
        if self.lm_head is None:
            return hidden_TD
        main = self.lm_head(hidden_TD).unflatten(0, shape)
        if next_ids_BS is None:
            return main
        return main, self.lm_head(self.model.drafted(hidden_TD, next_ids_BS)).unflatten(0, shape)

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


@torch.no_grad()
def reduce_embedding(model: ParallelDeepSeek) -> None:
    """Sum the gradients of an embedding that the first and the last stage both have.

    Whole gradients, in front of `reduce_gradients`, as Megatron's embedding group does; with ZeRO 2
    and 3 the slices that the backward has left.
    """
    group, unit = model.layout.embedding, model.model.embed_tokens
    if unit is None or group.size == 1:
        return
    for bucket in unit.buckets:
        shard = unit.sharded(bucket)
        whole = shard is None or unit.level < 2
        for p in [unit.get_parameter(path) for path, _ in bucket.entries] if whole else [shard]:
            p.grad = raw_all_reduce(p.grad, group)
