"""What the backward computes again: nothing, norms and heads, cheap ops, or whole layers."""

import functools

import torch
from torch.utils import checkpoint as ckpt

from .norm import RMSNorm

_KEPT = (
    "mm", "addmm", "bmm", "_grouped_mm", "_scaled_mm", "grouped_mm", "grouped_mm_fp8_block",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_flash_attention_forward", "_efficient_attention_forward",
    "all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single", "topk",
)  # fmt: skip


def _policy(gathered, again, ctx, op, *args, **kwargs):
    name = op.__name__.partition(".")[0]
    kept = (
        name in _KEPT
        and name not in again
        and not gathered.intersection(arg for arg in args if isinstance(arg, str))
    )
    policies = ckpt.CheckpointPolicy
    return policies.MUST_SAVE if kept else policies.PREFER_RECOMPUTE


def selective(gathered=frozenset(), again=()):
    """The `context_fn` of a checkpoint that keeps products, attention, collectives and routing.

    But not what is gathered over the groups in `gathered`, nor results of the ops in `again`.
    """
    policy = functools.partial(_policy, gathered, again)
    return functools.partial(ckpt.create_selective_checkpoint_contexts, policy)


def _selective(layer, *args):
    """Products, attention, collectives and routing keep their results, all else runs again.

    Parameters that ZeRO gathers are no results to keep.
    """
    layout = layer.self_attn.layout
    contexts = selective({layout.dp.name, layout.edp.name, layout.stage.name})
    return ckpt.checkpoint(
        layer, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )


def _full(layer, *args):
    """Only the layer's inputs are kept."""
    return ckpt.checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False)


def _plain(layer, *args):
    return layer(*args)


# "latent": norms and MLA's up-projections run again, inside of the layer, by the two below.
RECOMPUTES = {"none": _plain, "latent": _plain, "selective": _selective, "full": _full}


class RecomputedNorm(RMSNorm):
    """Keeps its input alone, and runs again in the backward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        return ckpt.checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)


def attention_again(attend, *args):
    """`attend` from the latents, of which only attention's result is kept.

    The latents are small, also those of all CP ranks, which are not gathered again; queries, keys
    and values of all heads are not (arXiv 2412.19437, 3.2.3).
    """
    contexts = functools.partial(ckpt.create_selective_checkpoint_contexts, _attention_kept)
    return ckpt.checkpoint(
        attend, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )


def _attention_kept(ctx, op, *args, **kwargs):
    policies = ckpt.CheckpointPolicy
    name = op.__name__.partition(".")[0]
    kept = name in _KEPT and (name.endswith("_gather_into_tensor") or "attention" in name)
    return policies.MUST_SAVE if kept else policies.PREFER_RECOMPUTE
