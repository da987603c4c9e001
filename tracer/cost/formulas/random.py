"""Random numbers: one vector FLOP each, as the generator's integer rounds are not counted."""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import ESTIMATED, OTHER, POINTWISE, Work
from .common import Out


@cost("aten::rand", "aten::randn", "aten::randint", "aten::randperm", "aten::rand_like",
      "aten::randn_like", "aten::randint_like")  # fmt: skip
def fresh(*args: Any, out: Out, **_: Any) -> Work:
    """1 a number.

    Bytes: nothing is read; a tensor argument lends its shape.
    """
    return Work(vector=out[0].numel, kind=POINTWISE, read={"*": 0})


@cost("aten::normal_", "aten::uniform_", "aten::random_", "aten::exponential_", "aten::cauchy_",
      "aten::log_normal_", "aten::geometric_", "aten::random", "aten::uniform",
      "aten::exponential", "aten::cauchy", "aten::log_normal", "aten::geometric",
      "aten::normal_functional", "aten::bernoulli.p", "aten::bernoulli_.float",
      "aten::bernoulli.float_out", "aten::_philox_uniform", "aten::_philox_uniform_",
      "aten::_philox_normal", "aten::_philox_normal_")  # fmt: skip
def fill(self: TensorRef, *args: Any, out: Out, **_: Any) -> Work:
    """1 a number.

    Bytes: `self` is overwritten, or lends its shape; it is not read.
    """
    return Work(vector=self.numel, kind=POINTWISE, read={"self": 0})


@cost("aten::bernoulli_.Tensor", "aten::bernoulli.Tensor", "aten::bernoulli.Tensor_out")
def bernoulli_with(self: TensorRef, p: TensorRef, *, out: Out, **_: Any) -> Work:
    """A number and a comparison.

    Bytes: `self` is overwritten, or lends its shape; the probabilities are read.
    """
    return Work(vector=2 * self.numel, kind=POINTWISE, read={"self": 0})


@cost("aten::bernoulli.default", "aten::bernoulli.out", "aten::poisson", "aten::binomial",
      "aten::_standard_gamma", "aten::_sample_dirichlet")  # fmt: skip
def sample(parameter: TensorRef, /, *rest: Any, out: Out, **_: Any) -> Work:
    """A number and a step an element; the parameters are read."""
    return Work(vector=2 * out[0].numel, kind=POINTWISE)


@cost("aten::normal")
def normal(*parameters: Any, out: Out, **_: Any) -> Work:
    """A number, a scale and a shift; parameters that are tensors are read."""
    return Work(vector=3 * out[0].numel, kind=POINTWISE)


@cost("aten::multinomial")
def multinomial(
    self: TensorRef, num_samples: int, replacement: bool = False, *, out: Out, **_: Any
) -> Work:
    """With replacement a running sum and a binary search a sample; else a key and a selection.

    Estimated: kernels differ by size and device.
    """
    steps = max(1, self.shape[-1].bit_length())
    vector = 2 * self.numel + steps * out[0].numel
    return Work(vector=vector, kind=OTHER, confidence=ESTIMATED)
