"""The loss where every rank has a part of the vocabulary."""

import torch
import torch.nn.functional as F

from .collectives import Group, all_reduce, raw_all_reduce


def vocab_parallel_loss(
    logits: torch.Tensor, targets: torch.Tensor, group: Group, share: float = 1.0
) -> torch.Tensor:
    """Mean cross-entropy in FP32 of logits [B, S, V/n] of which every rank has a part.

    Three messages of T numbers: maximum, sum of exponentials, the target's logit. `share` scales
    the mean: 1 over the ranks and micro-batches that see different tokens, so that gradients add.
    """
    logits, targets = logits.float().flatten(0, 1), targets.flatten()
    if group.size == 1:
        loss = F.cross_entropy(logits, targets)
        return loss if share == 1.0 else loss * share
    top_T = raw_all_reduce(logits.detach().amax(dim=-1), group, "max")
    logits = logits - top_T.unsqueeze(1)
    sum_T = all_reduce(logits.exp().sum(dim=-1), group)
    mine_T = targets - group.rank * logits.shape[1]
    elsewhere_T = (mine_T < 0) | (mine_T >= logits.shape[1])
    hit_T = logits.gather(1, mine_T.masked_fill(elsewhere_T, 0).unsqueeze(1)).squeeze(1)
    hit_T = all_reduce(hit_T.masked_fill(elsewhere_T, 0.0), group)
    return (sum_T.log() - hit_T).mean() * share
