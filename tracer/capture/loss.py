"""The scalar that a training step starts its backward from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .compat import tree_leaves


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in FP32 of [B, S, V] logits against [B, S] token ids."""
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def any_loss(output: Any) -> Tensor:
    """The output's own `.loss`, else the sum of its floating tensors that carry a gradient.

    Raises:
        UserError: nothing in the output depends on a parameter.
    """
    loss = getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss.sum()
    sums = [tensor.sum() for tensor in floating(output) if tensor.requires_grad]
    if not sums:
        raise UserError("training: no floating output depends on a parameter that requires grad")
    return torch.stack([value.float() for value in sums]).sum() if len(sums) > 1 else sums[0]


def floating(output: Any) -> list[Tensor]:
    """Floating tensors anywhere in an output: tuples, dicts, dataclasses, model outputs."""
    tree = output
    if hasattr(output, "to_tuple"):
        tree = output.to_tuple()
    elif hasattr(output, "__dict__") and not isinstance(output, Tensor):
        tree = vars(output)
    found = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [t for t in dict.fromkeys(found) if t.is_floating_point()]
