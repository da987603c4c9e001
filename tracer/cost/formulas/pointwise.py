"""Elementwise ops: one vector FLOP for every arithmetic step on every output element.

A transcendental counts one, as the special function unit evaluates it in one instruction; compound
functions count their steps. Comparisons and logic count, selection and moving do not. A complex
multiply is 6 steps, a complex add 2. Ops that torch tags as pointwise and that no table here names
count one step an element and are reported as estimated.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import Op, TensorRef
from ..work import COPY, ESTIMATED, EXACT, FREE, POINTWISE, Work
from .common import is_complex
from .moves import CREATES, MOVES, NOTHING

_ONE_STEP = """
    add sub rsub mul div neg abs sign sgn reciprocal sqrt rsqrt square exp exp2 expm1 log log2 log10
    log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh erf erfc erfinv sigmoid
    relu relu6 maximum minimum fmax fmin clamp_min clamp_max floor ceil round trunc frac fmod
    remainder threshold floor_divide copysign digamma lgamma polygamma mvlgamma bitwise_and
    bitwise_or bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__
    __lshift__ __rshift__ __iand__ __ior__ __ixor__ __ilshift__ __irshift__ conj_physical
    _conj_physical deg2rad rad2deg nan_to_num heaviside ldexp frexp eq ne lt le gt ge logical_and
    logical_or logical_not logical_xor isnan isinf isfinite isposinf isneginf signbit pow hypot
    angle nextafter gcd lcm i0 igamma igammac threshold_backward hardtanh_backward
    leaky_relu_backward hardshrink hardshrink_backward softshrink_backward prelu _prelu_kernel
    special_i0e special_i1 special_i1e special_erfcx special_ndtri special_log_ndtr
    special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
    special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
    special_modified_bessel_k1 special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
    special_spherical_bessel_j0 special_airy_ai special_zeta _neg_view_copy
"""

# Vector FLOPs an output element.
FLOPS_PER_ELEMENT: dict[str, int] = {
    **dict.fromkeys(_ONE_STEP.split(), 1),
    "addcmul": 3,  # self + value·a·b: the kernel always multiplies by the value
    "addcdiv": 3,
    "lerp": 3,
    "hardtanh": 2,
    "softshrink": 2,
    "hardsigmoid": 3,
    "hardswish": 4,
    "leaky_relu": 2,
    "elu": 3,
    "celu": 4,
    "_prelu_kernel_backward": 3,  # g·w, and g·x for the weight, selected
    "rrelu_with_noise": 2,
    "rrelu_with_noise_functional": 2,
    "rrelu_with_noise_backward": 1,
    "sigmoid_backward": 3,  # g·y·(1-y)
    "tanh_backward": 3,  # g·(1-y²)
    "logit_backward": 3,
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
    "glu_jvp": 8,
    "glu_backward_jvp": 16,
    "elu_backward": 3,
    "hardswish_backward": 4,
    "hardsigmoid_backward": 2,
    "dropout": 2,
    "native_dropout": 2,  # compare, scale
    "native_dropout_backward": 2,
    "_fused_dropout": 2,
    "_masked_scale": 2,
    "_add_relu": 2,
    "masked_fill": 0,
    "where": 0,
    "complex": 0,
    "polar": 4,  # cosine, sine, two multiplies
    "xlogy": 2,
    "special_xlog1py": 2,
    "special_entr": 3,
    "sinc": 3,
    "logaddexp": 5,  # max, subtract, exponential, log1p, add
    "logaddexp2": 5,
    "linalg_cross": 3,  # two multiplies and a subtraction a component
    "_standard_gamma_grad": 1,
    "_dirichlet_grad": 1,
}

# Real steps of one complex element; what is not here takes six times its real count, estimated.
COMPLEX_FLOPS: dict[str, int] = {
    **dict.fromkeys(
        "add sub rsub neg eq ne isnan isinf isfinite logical_not logical_and logical_or"
        " logical_xor".split(),
        2,
    ),
    "mul": 6,  # four multiplies, two adds
    "div": 11,  # a·conj(b) (6), |b|² (3), two divisions
    "square": 6,
    "reciprocal": 5,  # |b|² (3), two divisions
    "abs": 4,  # two squares, add, square root
    "angle": 1,
    "exp": 5,  # exponential, sine, cosine, two multiplies
    "log": 6,  # abs, logarithm, angle
    "sgn": 6,
    "conj_physical": 1,
    "_conj_physical": 1,
    **dict.fromkeys("masked_fill where complex".split(), 0),
    "polar": 4,
    "addcmul": 8,
    "lerp": 8,
    "native_dropout": 3,
}
_COMPLEX_SLOWDOWN = 6


def lookup(op: Op, tagged: bool) -> Work | None:
    """The work of an elementwise, moving or creating op; None where the name is of another kind.

    `tagged`: torch calls the op pointwise.
    """
    name = _name(op)
    if not knows(op, tagged):
        return None
    base = _base(name)
    work = None
    if base in NOTHING:
        work = Work(kind=FREE)
    elif base in FLOPS_PER_ELEMENT or base == "clamp":
        work = _known(op, base)
    elif base in CREATES:
        work = Work(kind=COPY, read={"*": 0})
    elif base in MOVES:
        # `copy_` and `fill_` write all of `self` without reading it.
        overwrites = base in ("copy", "fill") and (name != base or "_foreach" in op.name)
        work = Work(kind=COPY, read={"self": 0} if overwrites else None)
    elif tagged:
        work = _over_elements(op, 1, ESTIMATED)
    return work


def knows(op: Op, tagged: bool) -> bool:
    """Whether `lookup` has an answer, which the name of the op alone decides."""
    if not op.name.startswith("aten."):
        return False
    base = _base(_name(op))
    return (
        tagged
        or any(base in names for names in (NOTHING, FLOPS_PER_ELEMENT, CREATES, MOVES))
        or base == "clamp"
    )


def _name(op: Op) -> str:
    return op.overload_packet.partition(".")[2].removeprefix("_foreach_")


def _base(name: str) -> str:
    """Without the underscore of an op in place."""
    return name if name in NOTHING or name.startswith("__") else name.rstrip("_")


def _known(op: Op, base: str) -> Work:
    if any(is_complex(ref) for ref in (*op.outputs, *op.inputs())):
        return _complex(op, base)
    return _over_elements(op, _steps(op, base), EXACT)


def _steps(op: Op, base: str) -> int:
    """Steps an element, with the arguments that add one."""
    if base == "clamp":  # a step a bound
        bounds = (*op.args[1:3], op.kwargs.get("min"), op.kwargs.get("max"))
        return max(1, sum(bound is not None for bound in bounds))
    steps = FLOPS_PER_ELEMENT[base]
    if base in ("add", "sub", "rsub"):
        steps += _times_alpha(op)
    return steps


def _times_alpha(op: Op) -> int:
    """1 if the op multiplies its second argument by an alpha that is not 1."""
    alpha: Any = op.args[2] if len(op.args) > 2 else op.kwargs.get("alpha", 1)
    return int(alpha != 1)


def _complex(op: Op, base: str) -> Work:
    steps = COMPLEX_FLOPS.get(base)
    if steps is None:
        return _over_elements(op, _COMPLEX_SLOWDOWN * max(1, _steps(op, base)), ESTIMATED)
    if base in ("mul", "div") and not all(is_complex(value) for value in op.args[:2]):
        steps = 2  # a complex number times a real one
    if base in ("add", "sub", "rsub"):
        steps *= 1 + _times_alpha(op)
    return _over_elements(op, steps, EXACT)


def _over_elements(op: Op, steps: int, confidence: str) -> Work:
    """`steps` on every element of the outputs, or of the arguments written."""
    if op.overload_packet.startswith("aten._foreach"):
        # The in-place lists (`_foreach_*_`) return nothing.
        refs = op.outputs or tuple(r for r in op.inputs() if r.storage in op.mutates)
        elements = sum(ref.numel for ref in refs)
    else:  # a pair of outputs (dropout and its mask) counts the first
        first: TensorRef | None = next(iter(op.outputs), None)
        elements = first.numel if first is not None else 0
    return Work(vector=steps * elements, kind=POINTWISE, confidence=confidence)
