"""Fused optimizer steps: one kernel over lists of parameters, gradients and states.

Vector FLOPs an element follow the update rule as it is configured. The `_foreach_*` ops are
elementwise and live with those. The schemas mark gradients as written; only a gradient scaler does
that, and it divides them (1).
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import OPTIMIZER, Work
from .common import Out, Refs, elements, given

# m + (1-b1)·(g - m) (3), v·b2 + (1-b2)·g² (4), sqrt(v)/c + eps (3), p - s·m/d (3).
ADAM_FLOPS = 13
ADAGRAD_FLOPS = 7  # sum + g² (2), sqrt + eps (2), p - lr·g/d (3)


def _work(params: Refs, steps: int, grad_scale: Any) -> Work:
    scaled = given(grad_scale)
    write: dict[int | str, int] = {} if scaled else {"grads": 0}
    return Work(vector=(steps + scaled) * elements(params), kind=OPTIMIZER, write=write)


@cost("aten::_fused_adam_", "aten::_fused_adam")
def fused_adam(
    self: Refs, grads: Refs, exp_avgs: Refs, exp_avg_sqs: Refs, max_exp_avg_sqs: Refs,
    state_steps: Refs, *, lr: Any, beta1: float, beta2: float, weight_decay: float, eps: float,
    amsgrad: bool, maximize: bool, grad_scale: TensorRef | None = None, found_inf: Any = None,
    out: Out,
) -> Work:  # fmt: skip
    """13 an element; weight decay into the gradient 2, AMSGrad's maximum 1, maximize 1.

    Bytes: gradients are read, and written only where a scaler divides them.
    """
    steps = ADAM_FLOPS + 2 * bool(weight_decay) + bool(amsgrad) + bool(maximize)
    return _work(self, steps, grad_scale)


@cost("aten::_fused_adamw_", "aten::_fused_adamw")
def fused_adamw(
    self: Refs, grads: Refs, exp_avgs: Refs, exp_avg_sqs: Refs, max_exp_avg_sqs: Refs,
    state_steps: Refs, *, lr: Any, beta1: float, beta2: float, weight_decay: float, eps: float,
    amsgrad: bool, maximize: bool, grad_scale: TensorRef | None = None, found_inf: Any = None,
    out: Out,
) -> Work:  # fmt: skip
    """13 an element; weight decay of the parameter 1, AMSGrad's maximum 1, maximize 1.

    Bytes: gradients are read, and written only where a scaler divides them.
    """
    steps = ADAM_FLOPS + bool(weight_decay) + bool(amsgrad) + bool(maximize)
    return _work(self, steps, grad_scale)


@cost("aten::_fused_sgd_", "aten::_fused_sgd")
def fused_sgd(
    self: Refs, grads: Refs, momentum_buffer_list: Refs, *, weight_decay: float, momentum: float,
    lr: Any, dampening: float, nesterov: bool, maximize: bool, is_first_step: bool,
    grad_scale: TensorRef | None = None, found_inf: Any = None, out: Out,
) -> Work:  # fmt: skip
    """The update, p - lr·g, is 2 an element; weight decay 2, momentum 3, Nesterov 2.

    Bytes: gradients are read, and written only where a scaler divides them; the first step does
    not read the momentum.
    """
    steps = 2 + 2 * bool(weight_decay) + bool(maximize)
    if momentum:
        steps += (0 if is_first_step else 3) + 2 * bool(nesterov)
    work = _work(self, steps, grad_scale)
    return work._replace(read={"momentum_buffer_list": 0}) if is_first_step else work


@cost("aten::_fused_adagrad_", "aten::_fused_adagrad")
def fused_adagrad(
    self: Refs, grads: Refs, state_sums: Refs, state_steps: Refs, *, lr: Any, lr_decay: float,
    weight_decay: float, eps: float, maximize: bool, grad_scale: TensorRef | None = None,
    found_inf: Any = None, out: Out,
) -> Work:  # fmt: skip
    """7 an element; weight decay 2, maximize 1.

    Bytes: gradients are read, and written only where a scaler divides them.
    """
    return _work(self, ADAGRAD_FLOPS + 2 * bool(weight_decay) + bool(maximize), grad_scale)


@cost("aten::_amp_foreach_non_finite_check_and_unscale_",
      "aten::_amp_foreach_non_finite_check_and_unscale")  # fmt: skip
def unscale(self: Refs, found_inf: TensorRef, inv_scale: TensorRef, *, out: Out) -> Work:
    """A check and a multiply: 2 an element of every gradient."""
    return Work(vector=2 * elements(self), kind=OPTIMIZER)


@cost("aten::_amp_update_scale_", "aten::_amp_update_scale")
def update_scale(
    self: TensorRef, growth_tracker: TensorRef, found_inf: TensorRef, scale_growth_factor: float,
    scale_backoff_factor: float, growth_interval: int, *, out: Out,
) -> Work:  # fmt: skip
    """A few steps on single numbers."""
    return Work(vector=3, kind=OPTIMIZER)
