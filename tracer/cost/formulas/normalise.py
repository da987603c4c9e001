"""Row-wise kernels: softmax, norms, reductions, scans and losses. Vector FLOPs an input element."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import REDUCTION, ROW, Work

Out = tuple[TensorRef, ...]


def _row(name: str, flops_per_element: int) -> None:
    @cost(name)
    def formula(self: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
        return Work(vector=flops_per_element * self.numel, kind=ROW)


def _reduction(name: str, flops_per_element: int = 1) -> None:
    @cost(name)
    def formula(self: TensorRef, *args: Any, out: Out, **kwargs: Any) -> Work:
        kind = ROW if _over_last(self, out) else REDUCTION
        return Work(vector=flops_per_element * self.numel, kind=kind)


def _over_last(x: TensorRef, out: Out) -> bool:
    """Whether only trailing dimensions were reduced, so that a row stays on one SM."""
    kept = [size for size in out[0].shape if size != 1]
    return bool(kept) and kept == [size for size in x.shape if size != 1][: len(kept)]


# max, subtract, exponential, sum, divide
_row("aten::_softmax", 5)
_row("aten::_safe_softmax", 5)
_row("aten::_log_softmax", 5)
_row("aten::_softmax_backward_data", 4)  # (g - sum(g·y))·y
_row("aten::_log_softmax_backward_data", 4)
_row("aten::cumsum", 1)
_row("aten::cumprod", 1)
_row("aten::logcumsumexp", 3)
_row("aten::cummax", 1)
_row("aten::cummin", 1)

for _name in "sum prod amax amin max min argmax argmin any all nansum count_nonzero".split():
    _reduction(f"aten::{_name}")
_reduction("aten::mean")
_reduction("aten::logsumexp", 3)
_reduction("aten::norm", 2)
_reduction("aten::linalg_vector_norm", 2)
_reduction("aten::var", 4)
_reduction("aten::var_mean", 4)
_reduction("aten::std", 4)
_reduction("aten::aminmax", 2)


@cost("aten::_fused_rms_norm", "aten::rms_norm")
def rms_norm(input: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """Square, sum, scale, weight: 4 an element."""
    return Work(vector=4 * input.numel, kind=ROW)


@cost("aten::_fused_rms_norm_backward")
def rms_norm_backward(grad_out: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """Dx (6 an element) and the weight gradient (2)."""
    return Work(vector=8 * grad_out.numel, kind=ROW)


@cost("aten::native_layer_norm", "aten::native_group_norm")
def layer_norm(input: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """Mean (1), variance (3), normalise (2), affine (2)."""
    return Work(vector=8 * input.numel, kind=ROW)


@cost("aten::native_layer_norm_backward", "aten::native_group_norm_backward")
def layer_norm_backward(grad_out: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """Dx (10 an element), weight and bias gradients (3)."""
    return Work(vector=13 * grad_out.numel, kind=ROW)


@cost(
    "aten::native_batch_norm",
    "aten::_native_batch_norm_legit",
    "aten::_native_batch_norm_legit_functional",
    "aten::_native_batch_norm_legit_no_training",
    "aten::_batch_norm_with_update",
    "aten::_batch_norm_no_update",
    "aten::cudnn_batch_norm",
)
def batch_norm(input: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """Statistics over batch and space, then the affine map: a reduction across rows."""
    return Work(vector=8 * input.numel, kind=REDUCTION)


@cost(
    "aten::native_batch_norm_backward",
    "aten::batch_norm_backward",
    "aten::cudnn_batch_norm_backward",
)
def batch_norm_backward(grad_out: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """dx, weight and bias gradients."""
    return Work(vector=13 * grad_out.numel, kind=REDUCTION)


@cost("aten::nll_loss_forward", "aten::nll_loss2d_forward")
def nll_loss(self: TensorRef, target: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """Reads one log-probability a row."""
    return Work(vector=target.numel, kind=REDUCTION, read={"self": target.numel * self.itemsize})


@cost("aten::nll_loss_backward", "aten::nll_loss2d_backward")
def nll_loss_backward(
    grad_output: TensorRef, self: TensorRef, target: TensorRef, *_: Any, out: Out, **__: Any
) -> Work:
    """Writes the whole gradient, mostly zeros; the log-probabilities are not read."""
    return Work(vector=target.numel, kind=ROW, read={"self": 0})


@cost("aten::avg_pool2d", "aten::_adaptive_avg_pool2d", "aten::max_pool2d_with_indices",
      "aten::avg_pool1d", "aten::avg_pool3d", "aten::max_pool3d_with_indices",
      "aten::_adaptive_avg_pool3d", "aten::adaptive_max_pool2d",
      "aten::upsample_nearest2d", "aten::upsample_bilinear2d",
      "aten::upsample_bicubic2d")  # fmt: skip
def pool(self: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """An operation for every element that goes in or comes out, whichever are more."""
    return Work(vector=max(self.numel, out[0].numel), kind=REDUCTION)


@cost("aten::avg_pool2d_backward", "aten::_adaptive_avg_pool2d_backward",
      "aten::max_pool2d_with_indices_backward", "aten::avg_pool3d_backward",
      "aten::upsample_nearest2d_backward", "aten::upsample_bilinear2d_backward",
      "aten::upsample_bicubic2d_backward")  # fmt: skip
def pool_backward(grad_output: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """An operation for every element of the larger side."""
    return Work(vector=max(grad_output.numel, out[0].numel), kind=REDUCTION)
