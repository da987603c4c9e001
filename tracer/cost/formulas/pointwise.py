"""Elementwise ops: one vector FLOP for every arithmetic step on every output element.

Ops that torch tags as pointwise and that no table here names count one FLOP an element and are
reported as estimated.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import Op, TensorRef
from ..registry import cost
from ..work import COPY, ESTIMATED, EXACT, FREE, POINTWISE, Work

Out = tuple[TensorRef, ...]

_ONE_STEP = """
    add sub rsub mul div neg abs sign sgn reciprocal sqrt rsqrt square exp exp2 expm1 log log2 log10
    log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh erf erfc erfinv sigmoid
    relu relu6 maximum minimum fmax fmin clamp clamp_min clamp_max hardtanh floor ceil round trunc
    frac fmod remainder threshold floor_divide copysign digamma lgamma bitwise_and bitwise_or
    bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __lshift__
    __rshift__ real imag conj_physical deg2rad rad2deg nan_to_num heaviside ldexp eq ne lt le gt ge
    logical_and logical_or logical_not logical_xor isnan isinf isfinite signbit pow hypot xlogy
    special_expit special_erf special_log_softmax threshold_backward hardtanh_backward
    leaky_relu_backward
"""

# Vector FLOPs an output element. A transcendental counts one, as the special function unit
# evaluates it in one instruction; compound functions count their steps.
FLOPS_PER_ELEMENT: dict[str, int] = {
    **dict.fromkeys(_ONE_STEP.split(), 1),
    "addcmul": 3,
    "addcdiv": 3,
    "lerp": 3,
    "hardsigmoid": 3,
    "hardswish": 3,
    "leaky_relu": 3,
    "elu": 3,
    "prelu": 3,
    "sigmoid_backward": 3,  # g·y·(1-y)
    "tanh_backward": 3,  # g·(1-y²)
    "silu": 4,  # negate, exponential, add, divide
    "silu_backward": 8,  # sigmoid again, then g·s·(1 + x·(1-s))
    "gelu": 8,  # cubic, tanh or erf, scale
    "gelu_backward": 14,
    "softplus": 3,
    "softplus_backward": 4,
    "mish": 6,
    "mish_backward": 10,
    "logit": 3,
    "log_sigmoid_forward": 4,
    "log_sigmoid_backward": 5,
    "glu": 5,
    "glu_backward": 8,
    "elu_backward": 3,
    "hardswish_backward": 4,
    "hardsigmoid_backward": 2,
    "dropout": 2,
    "native_dropout": 2,
    "native_dropout_backward": 2,
    "masked_fill": 0,
    "where": 0,
    "mse_loss": 3,
    "mse_loss_backward": 3,
    "polar": 3,
}

# No arithmetic: bytes only.
MOVES = frozenset(
    """
    clone _to_copy to contiguous cat stack repeat constant_pad_nd flip roll tril triu fill copy
    _unsafe_masked_index expand_copy view_copy permute_copy repeat_interleave pixel_shuffle
    pixel_unshuffle reflection_pad1d reflection_pad2d replication_pad2d split_with_sizes_copy
    slice_scatter select_scatter slice_backward select_backward unfold_backward diagonal_copy rot90
    unsafe_chunk resize_as channel_shuffle im2col col2im
    """.split()
)

# Written once, nothing read.
CREATES = frozenset(
    """
    zeros zeros_like ones ones_like full full_like arange linspace logspace eye new_zeros new_ones
    new_full scalar_tensor rand rand_like randn randn_like randint randint_like randperm
    tril_indices triu_indices zero
    """.split()
)

# No kernel at all.
NOTHING = frozenset(
    """
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided detach alias
    lift_fresh lift set_ resize_ sym_size sym_stride sym_numel record_stream is_same_size
    _local_scalar_dense item _assert_async _assert_scalar _nested_tensor_size
    """.split()
)


def pointwise_work(op: Op, flops_per_element: int, confidence: str = EXACT) -> Work:
    """`flops_per_element` on every element of the outputs, or of the arguments written."""
    refs = op.outputs or tuple(ref for ref in op.inputs() if ref.storage in op.mutates)
    elements = sum(ref.numel for ref in refs)
    # In-place lists (`_foreach_*_`) return nothing; a pair of outputs (dropout and its mask) counts
    # the first.
    if op.outputs and not op.overload_packet.startswith("aten._foreach"):
        elements = op.outputs[0].numel
    return Work(vector=flops_per_element * elements, kind=POINTWISE, confidence=confidence)


def lookup(op: Op, tagged: bool) -> Work | None:
    """The work of an elementwise, moving or creating op; None where the name is of another kind.

    `tagged`: torch calls the op pointwise.
    """
    namespace, _, name = op.overload_packet.partition(".")
    if namespace != "aten":
        return None
    name = name.removeprefix("_foreach_")
    base = name if name in NOTHING or name.startswith("__") else name.rstrip("_")
    work = None
    if base in NOTHING:
        work = Work(kind=FREE)
    elif base in FLOPS_PER_ELEMENT:
        work = pointwise_work(op, FLOPS_PER_ELEMENT[base])
    elif base in CREATES:
        work = Work(kind=COPY, read={"*": 0})
    elif base in MOVES:
        # `copy_` and `fill_` write all of `self` without reading it.
        overwrites = base in ("copy", "fill") and name != base
        work = Work(kind=COPY, read={"self": 0} if overwrites else None)
    elif tagged:
        work = pointwise_work(op, 1, ESTIMATED)
    return work


@cost("aten::normal_", "aten::uniform_", "aten::bernoulli_", "aten::random_", "aten::exponential_")
def random_fill(self: TensorRef, *_: Any, out: Out, **__: Any) -> Work:
    """Random numbers written over `self`, which is not read."""
    return Work(vector=self.numel, kind=POINTWISE, read={"self": 0})


@cost("aten::scaled_dot_product_attention")
def undecomposed_sdpa(*_: Any, out: Out, **__: Any) -> Work:
    """Never dispatched whole outside of subclasses; named so that it cannot pass as free."""
    return Work(kind=POINTWISE, confidence=ESTIMATED)
