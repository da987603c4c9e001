"""Loss functions: vector FLOPs an element of the input, and a reduction over all of them."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import ESTIMATED, OTHER, POINTWISE, REDUCTION, ROW, Work
from .common import Out, product

_NONE = 0  # `reduction`: none, mean, sum

# Steps an element, without the add of the reduction.
LOSS_FLOPS: dict[str, int] = {
    "mse_loss": 2,  # subtract, square
    "smooth_l1_loss": 5,  # subtract, abs, square, two factors (or subtract beta/2)
    "huber_loss": 5,
    "binary_cross_entropy": 6,  # log x, log(1 - x), t·a + (1 - t)·b
    "binary_cross_entropy_with_logits": 8,  # max(x, 0) - x·t + log(1 + exp(-|x|))
    "soft_margin_loss": 4,  # log(1 + exp(-t·x))
    "multi_margin_loss": 4,
    "multilabel_margin_loss_forward": 4,
}
LOSS_BACKWARD_FLOPS: dict[str, int] = {
    "mse_loss_backward": 3,  # subtract, two factors
    "smooth_l1_loss_backward": 4,
    "huber_loss_backward": 4,
    "binary_cross_entropy_backward": 6,  # g·(x - t) / (x·(1 - x))
    "soft_margin_loss_backward": 6,
    "multi_margin_loss_backward": 4,
    "multilabel_margin_loss_backward": 4,
}


def _register(name: str, steps: int) -> None:
    @cost(f"aten::{name}")
    def loss(self: TensorRef, target: TensorRef, *rest: Any, out: Out) -> Work:
        reduced = out[0].numel < self.numel
        kind = REDUCTION if reduced else POINTWISE
        return Work(vector=(steps + reduced) * self.numel, kind=kind)

    loss.__doc__ = f"{steps} an element, and 1 where it is reduced."


def _register_backward(name: str, steps: int) -> None:
    @cost(f"aten::{name}")
    def loss_backward(
        grad_output: TensorRef, self: TensorRef, target: TensorRef, *rest: Any, out: Out
    ) -> Work:
        return Work(vector=steps * self.numel, kind=POINTWISE)

    loss_backward.__doc__ = f"{steps} an element."


for _name, _steps in LOSS_FLOPS.items():
    _register(_name, _steps)
for _name, _steps in LOSS_BACKWARD_FLOPS.items():
    _register_backward(_name, _steps)


@cost("aten::nll_loss_forward", "aten::nll_loss2d_forward")
def nll_loss(
    self: TensorRef, target: TensorRef, weight: Any, reduction: int, ignore_index: int, *, out: Out
) -> Work:
    """An add a target.

    Bytes: one log-probability a target.
    """
    kind = ROW if reduction == _NONE else REDUCTION
    return Work(vector=target.numel, kind=kind, read={"self": target.numel * self.itemsize})


@cost("aten::nll_loss_backward", "aten::nll_loss2d_backward")
def nll_loss_backward(
    grad_output: TensorRef, self: TensorRef, target: TensorRef, weight: Any, reduction: int,
    ignore_index: int, total_weight: TensorRef, *, out: Out,
) -> Work:  # fmt: skip
    """A factor a target.

    Bytes: the whole gradient is written, mostly zeros; the log-probabilities are not read.
    """
    return Work(vector=target.numel, kind=ROW, read={"self": 0})


# A step of the forward recursion: the largest of three paths, three exponentials and subtractions,
# two adds, a logarithm, and the emission.
_CTC_STEP = 12


def _ctc_states(log_probs: TensorRef, log_alpha: TensorRef | None, targets: TensorRef) -> int:
    """Places of the trellis: time steps times the blank-padded target, for every sequence."""
    if log_alpha is not None and len(log_alpha.shape) == 3:
        return log_alpha.numel
    steps, batch = log_probs.shape[0], product(log_probs.shape[1:-1])
    longest = targets.shape[-1] if len(targets.shape) == 2 else targets.numel // max(1, batch)
    return steps * batch * (2 * longest + 1)


@cost("aten::_ctc_loss", "aten::_cudnn_ctc_loss", "aten::miopen_ctc_loss")
def ctc_loss(
    log_probs: TensorRef, targets: TensorRef, input_lengths: Any, target_lengths: Any,
    *rest: Any, out: Out,
) -> Work:  # fmt: skip
    """12 for each place of the trellis, time steps times 2·targets + 1.

    Estimated: the lengths of inputs and targets are data.
    """
    alpha = out[1] if len(out) > 1 else None
    vector = _CTC_STEP * _ctc_states(log_probs, alpha, targets)
    return Work(vector=vector, kind=OTHER, confidence=ESTIMATED)


@cost("aten::_ctc_loss_backward")
def ctc_loss_backward(
    grad: TensorRef, log_probs: TensorRef, targets: TensorRef, input_lengths: Any,
    target_lengths: Any, neg_log_likelihood: TensorRef, log_alpha: TensorRef, *rest: Any, out: Out,
) -> Work:  # fmt: skip
    """The recursion backwards (12 a place) and the gradient of each probability (4).

    Estimated: the lengths of inputs and targets are data.
    """
    vector = _CTC_STEP * _ctc_states(log_probs, log_alpha, targets) + 4 * log_probs.numel
    return Work(vector=vector, kind=OTHER, confidence=ESTIMATED)
