"""Fused optimizer steps: one kernel over lists of parameters, gradients and states."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import OPTIMIZER, Work

Out = tuple[TensorRef, ...]
Refs = tuple[TensorRef, ...]

ADAM_FLOPS = 16  # two moments (3 + 4), bias corrections, square root, division, decay, update
SGD_FLOPS = 5
ADAGRAD_FLOPS = 7


def _elements(tensors: Refs) -> int:
    return sum(ref.numel for ref in tensors)


@cost("aten::_fused_adam_", "aten::_fused_adamw_", "aten::_fused_adam", "aten::_fused_adamw")
def fused_adam(
    self: Refs, grads: Refs, exp_avgs: Refs, exp_avg_sqs: Refs, max_exp_avg_sqs: Refs,
    state_steps: Refs, *_: Any, out: Out, **__: Any,
) -> Work:  # fmt: skip
    """Adam and AdamW. The schema marks gradients as written; only a gradient scaler does that."""
    return Work(vector=ADAM_FLOPS * _elements(self), kind=OPTIMIZER, write={"grads": 0})


@cost("aten::_fused_sgd_", "aten::_fused_sgd")
def fused_sgd(self: Refs, grads: Refs, *_: Any, out: Out, **__: Any) -> Work:
    """SGD with momentum."""
    return Work(vector=SGD_FLOPS * _elements(self), kind=OPTIMIZER, write={"grads": 0})


@cost("aten::_fused_adagrad_", "aten::_fused_adagrad")
def fused_adagrad(self: Refs, grads: Refs, *_: Any, out: Out, **__: Any) -> Work:
    """Adagrad."""
    return Work(vector=ADAGRAD_FLOPS * _elements(self), kind=OPTIMIZER, write={"grads": 0})
