"""The latent KV cache of MLA.

Shapes: B batch, S new tokens, L tokens in the cache, C = kv_lora_rank (512), R = rotary width
(64). A token costs C + R elements a layer, whatever the number of heads: 1152 bytes in BF16.
"""

from collections.abc import Iterable

import torch

from .config import Config


class KVCache:
    """One latent tensor [B, capacity, C + R] per layer, written in place.

    Args:
        config: sizes.
        batch: number of sequences; all hold the same number of tokens.
        capacity: tokens a sequence can hold.
        dtype, device: of the tensors. They are allocated, not filled.
        length: tokens that already count as held. With a `meta` device this stands for a context
            that was never computed: decode at context L is `length=L-1` plus one new token.
        layers: layer indices that have a slot; default all main layers. An MTP layer drafts with
            a cache of its own: `layers=[config.num_hidden_layers]`.

    Raises:
        ValueError: `length` is beyond `capacity`.
    """

    def __init__(
        self,
        config: Config,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "meta",
        *,
        length: int = 0,
        layers: Iterable[int] | None = None,
    ):
        if length > capacity:
            raise ValueError(f"KV cache length {length} is beyond its capacity {capacity}")
        self.rank = config.kv_lora_rank
        self.batch = batch
        self.capacity = capacity
        self.length = length
        shape = (batch, capacity, config.latent_dim)
        self.latents = {
            idx: torch.empty(shape, dtype=dtype, device=device)
            for idx in (range(config.num_hidden_layers) if layers is None else layers)
        }

    def append(
        self, layer_idx: int, c_kv_BSC: torch.Tensor, k_rope_BSR: torch.Tensor
    ) -> torch.Tensor:
        """Write the new tokens of one layer and return all that it holds, a view [B, L, C + R].

        `length` stays as it is until every layer has written; then the model calls `advance`.

        Raises:
            ValueError: the layer has no slot, or the tokens do not fit.
        """
        if layer_idx not in self.latents:
            raise ValueError(f"KV cache has no slot for layer {layer_idx}")
        start, stop = self.length, self.length + c_kv_BSC.shape[1]
        if stop > self.capacity:
            raise ValueError(f"KV cache of capacity {self.capacity} cannot hold {stop} tokens")
        latent = self.latents[layer_idx]
        latent[:, start:stop, : self.rank] = c_kv_BSC
        latent[:, start:stop, self.rank :] = k_rope_BSR
        return latent[:, :stop]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more per sequence as held; every layer has written them."""
        self.length += tokens

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(t.numel() * t.element_size() for t in self.latents.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token of one sequence, over all layers (70272 for V3 in BF16)."""
        return sum(t.shape[-1] * t.element_size() for t in self.latents.values())
