"""Context parallelism: the tokens of every sequence spread over the ranks of a group.

Shapes: B batch, S tokens of a whole sequence, n ranks, c = S / 2n tokens of a chunk, s = 2c tokens
of a sequence that one rank holds.

A sequence is cut into 2n chunks, and rank r has chunks r and 2n-1-r ("zig-zag"): a query of a late
chunk sees more keys than one of an early chunk, and these pairs of chunks see equally many. Keys
are gathered (arXiv 2407.21783 section 3.3.2), and each chunk then is one call of causal attention
over the keys up to its own last one: (c+1)c/2 pairs and c² for each chunk before it, so that
(2n-1)c² + (c+1)c pairs a rank, S(S+1)/2 over all.
"""

import torch
import torch.nn.functional as F

from .collectives import ALONE, Group, gather


def chunks_of(group: Group) -> tuple[int, int]:
    """Which two of the 2n chunks this rank has, the earlier one first."""
    return group.rank, 2 * group.size - 1 - group.rank


def own_tokens(x_BS: torch.Tensor, group: Group) -> torch.Tensor:
    """This rank's tokens [B, s, ...] of whole sequences [B, S, ...]."""
    if group.size == 1:
        return x_BS
    parts = x_BS.chunk(2 * group.size, dim=1)
    return torch.cat([parts[i] for i in chunks_of(group)], dim=1)


def positions(seq: int, group: Group, *, start: int = 0, **options) -> torch.Tensor:
    """Positions [s] of the `seq` tokens of a sequence that this rank has; `options` of `arange`.

    `start`: of the first one, where the group is of one rank.
    """
    if group.size == 1:
        return torch.arange(start, start + seq, **options)
    c = seq // 2
    return torch.cat([torch.arange(i * c, (i + 1) * c, **options) for i in chunks_of(group)])


def all_tokens(x_Bsd: torch.Tensor, group: Group) -> torch.Tensor:
    """The tokens of all ranks in the order of the sequence, [B, S, d]; gradients are summed."""
    if group.size == 1:
        return x_Bsd
    batch, seq = x_Bsd.shape[:2]
    every = gather(x_Bsd.flatten(0, 1), group, partial=True)
    ranks = every.view(group.size, batch, 2, seq // 2, *x_Bsd.shape[2:]).unbind(0)
    early, late = zip(*(rank.unbind(1) for rank in ranks), strict=True)
    return torch.cat([*early, *reversed(late)], dim=1)


_library = torch.library.Library("deepseek", "FRAGMENT")
_library.define("suffix_attention(Tensor q, Tensor k, Tensor v, float? scale) -> Tensor")


@torch.library.impl(_library, "suffix_attention", "CompositeImplicitAutograd")
def _suffix_attention(q_BHsd, k_BHLd, v_BHLd, scale):
    """Causal attention of the last s tokens over all L keys, in which the last query sees the last
    key. An op of its own because SDPA knows no such causality but as a mask, and kernels do.
    """
    queries, keys = q_BHsd.shape[2], k_BHLd.shape[2]
    mask = torch.ones(queries, keys, dtype=torch.bool, device=q_BHsd.device).tril(keys - queries)
    return F.scaled_dot_product_attention(
        q_BHsd, k_BHLd, v_BHLd, attn_mask=mask, scale=scale,
        enable_gqa=q_BHsd.shape[1] != k_BHLd.shape[1],
    )  # fmt: skip


def causal_attention(
    q_BHsd: torch.Tensor, k_BHSd: torch.Tensor, v_BHSd: torch.Tensor, scale: float | None,
    group: Group = ALONE,
) -> torch.Tensor:  # fmt: skip
    """This rank's queries over the keys of whole sequences, [B, H, s, V]."""
    grouped = q_BHsd.shape[1] != k_BHSd.shape[1]
    if group.size == 1:
        return F.scaled_dot_product_attention(
            q_BHsd, k_BHSd, v_BHSd, is_causal=True, scale=scale, enable_gqa=grouped
        )
    found = []
    c = q_BHsd.shape[2] // 2
    for index, q_BHcd in zip(chunks_of(group), q_BHsd.split(c, dim=2), strict=True):
        seen = (index + 1) * c
        keys, values = k_BHSd[:, :, :seen], v_BHSd[:, :, :seen]
        found.append(torch.ops.deepseek.suffix_attention(q_BHcd, keys, values, scale))
    return torch.cat(found, dim=2)
