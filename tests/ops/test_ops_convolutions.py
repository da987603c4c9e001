"""Convolutions against a count of every multiplication, for random shapes and every backend name.

The count walks over output positions and kernel taps as the definition of a convolution does. Taps
on padding are counted, as published counts do.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_records import ledger_of, meta, moved, record, ref, work
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


def output_size(size, kernel, stride, padding, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def multiplications(batch, c_in, c_out, groups, sizes, kernels, strides, paddings, dilations):
    """One for every output element, input channel of its group, and kernel tap, one by one."""
    outputs = [
        output_size(*each)
        for each in zip(sizes, kernels, strides, paddings, dilations, strict=True)
    ]
    count = 0
    for _ in range(batch):
        for _ in itertools.product(*map(range, outputs)):
            for channel in range(c_out):
                group = channel // (c_out // groups)
                for source in range(c_in):
                    if source // (c_in // groups) == group:
                        count += sum(1 for _ in itertools.product(*map(range, kernels)))
    return count, outputs


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))

    def each(low, high):
        return [draw(st.integers(low, high)) for _ in range(dims)]

    return {
        "batch": draw(st.integers(1, 2)),
        "c_in": groups * draw(st.integers(1, 2)),
        "c_out": groups * draw(st.integers(1, 2)),
        "groups": groups,
        "sizes": each(4, 6),
        "kernels": each(1, 2),
        "strides": each(1, 3),
        "paddings": each(0, 1),
        "dilations": each(1, 2),
    }


FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@settings(deadline=None, max_examples=40)
@given(convolutions())
def test_forward_and_backward_of_random_shapes(c):
    count, _ = multiplications(**c)
    x = meta(c["batch"], c["c_in"], *c["sizes"], grad=True)
    w = meta(c["c_out"], c["c_in"] // c["groups"], *c["kernels"], grad=True)
    b = meta(c["c_out"], grad=True)

    def step():
        convolve = FUNCTIONS[len(c["sizes"])]
        y = convolve(x, w, b, c["strides"], c["paddings"], c["dilations"], c["groups"])
        y.sum().backward()

    ledger = ledger_of(step)
    assert ledger.total("forward").total_flops == 2 * count
    assert ledger.total("backward").total_flops == 2 * 2 * count


@settings(deadline=None, max_examples=40)
@given(convolutions())
def test_a_transposed_convolution_multiplies_as_often_as_the_one_it_undoes(c):
    """It takes the forward's output back to its input: the same pairs, each met once."""
    count, outputs = multiplications(**c)
    x = meta(c["batch"], c["c_out"], *outputs, grad=True)
    w = meta(c["c_out"], c["c_in"] // c["groups"], *c["kernels"], grad=True)

    # Without padding, as padding crops the result and leaves the work.
    def step():
        convolve = TRANSPOSED[len(outputs)]
        y = convolve(x, w, None, c["strides"], 0, 0, c["groups"], c["dilations"])
        y.sum().backward()

    ledger = ledger_of(step)
    assert ledger.total("forward").total_flops == 2 * count
    assert ledger.total("backward").total_flops == 4 * count


# N, C_in, C_out, groups, H, W; kernel 3x2, stride 2, padding 1.
N, CI, CO, G, H, W = 2, 6, 4, 2, 7, 8
OH, OW = (7 + 2 - 3) // 2 + 1, (8 + 2 - 2) // 2 + 1
COUNT = N * CO * OH * OW * (CI // G) * 3 * 2


def tensors():
    x, w = ref(N, CI, H, W), ref(CO, CI // G, 3, 2)
    return x, w, ref(CO), ref(N, CO, OH, OW)


FORWARD = {
    "convolution": ("input", {"groups": G}),
    "_convolution": ("input", {"groups": G}),
    "convolution_overrideable": ("input", {"groups": G}),
    "cudnn_convolution": ("self", {"groups": G}),
    "cudnn_convolution_relu": ("self", {"groups": G}),
    "cudnn_convolution_add_relu": ("self", {"groups": G}),
    "mkldnn_convolution": ("self", {"groups": G}),
    "miopen_convolution": ("self", {"groups": G}),
    "miopen_convolution_relu": ("self", {"groups": G}),
    "miopen_convolution_add_relu": ("self", {"groups": G}),
    "miopen_depthwise_convolution": ("self", {"groups": G}),
    "_mps_convolution": ("self", {"groups": G}),
    "_conv_depthwise2d": ("self", {"kernel_size": (3, 2)}),
    "_slow_conv2d_forward": ("self", {"kernel_size": (3, 2)}),
    "slow_conv_dilated2d": ("self", {"kernel_size": (3, 2)}),
    "_nnpack_spatial_convolution": ("input", {}),
}


@pytest.mark.parametrize("name", FORWARD)
def test_every_backend_counts_the_same(name):
    """Their argument orders differ; the arguments are placed by the real schema."""
    x, w, b, y = tensors()
    first, extra = FORWARD[name]
    overload = getattr(aten, name).default
    arguments = {first: x, "weight": w, "stride": (2, 2), "padding": (1, 1), **extra}
    if any(argument.name == "bias" for argument in overload._schema.arguments):
        arguments["bias"] = b
    done = work(record(overload, y, **arguments))
    assert done.flops == 2 * COUNT
    relu = name.endswith("relu")
    added = relu and "add" in name
    bias = "bias" in arguments
    assert done.vector == y.numel * (bias + relu + added)


TRANSPOSED_NAMES = {
    "convolution": {"transposed": True, "groups": G},
    "cudnn_convolution_transpose": {"groups": G},
    "miopen_convolution_transpose": {"groups": G},
    "_mps_convolution_transpose": {"groups": G},
    "slow_conv_transpose2d": {"kernel_size": (3, 2)},
}


@pytest.mark.parametrize("name", TRANSPOSED_NAMES)
def test_every_transposed_backend_counts_input_positions(name):
    """[N, CO, OH, OW] back to [N, CI, H, W]: the pairs of the forward, 2 FLOPs each."""
    x, w, _, y = tensors()
    overload = getattr(aten, name).default
    first = "input" if name == "convolution" else "self"
    arguments = {first: y, "weight": w, "stride": (2, 2), "padding": (1, 1)}
    arguments |= {"output_padding": (0, 1), **TRANSPOSED_NAMES[name]}
    assert work(record(overload, x, **arguments)).flops == 2 * COUNT


BACKWARD = {
    "convolution_backward": "input",
    "convolution_backward_overrideable": "input",
    "mps_convolution_backward": "self",
}


@pytest.mark.parametrize("name", BACKWARD)
@pytest.mark.parametrize("mask", list(itertools.product([True, False], repeat=3)))
def test_backward_does_what_the_mask_asks_for(name, mask):
    x, w, _, dy = tensors()
    dx, dw, db = mask
    outputs = [t for t, flag in zip((x, w, ref(CO)), mask, strict=True) if flag]
    arguments = {"grad_output": dy, BACKWARD[name]: x, "weight": w, "groups": G}
    op = record(getattr(aten, name).default, *outputs, output_mask=mask, **arguments)
    done = work(op)
    assert done.flops == 2 * COUNT * (dx + dw)
    assert done.vector == dy.numel * db
    # The input gradient needs the weight, the weight gradient the input; both need dy.
    read = {item.storage for item in moved(op).reads}
    assert (w.storage in read, x.storage in read, dy.storage in read) == (dx, dw, True)


def test_slow_backward():
    x, w, _, dy = tensors()
    op = record(
        aten._slow_conv2d_backward.output_mask, x, w,
        grad_output=dy, self=x, weight=w, kernel_size=(3, 2), output_mask=(True, True, False),
    )  # fmt: skip
    assert work(op).flops == 4 * COUNT


def test_time_batch_channel_convolution():
    """[T, B, C_in] with a kernel of 3 and no padding: T - 2 steps."""
    steps, batch, c_in, c_out = 7, 2, 3, 5
    x, w, b = torch.randn(steps, batch, c_in), torch.randn(3, c_in, c_out), torch.randn(c_out)
    ledger = ledger_of(torch.conv_tbc, x, w, b)
    assert ledger.total().total_flops == 2 * (steps - 2) * batch * c_out * c_in * 3
    assert ledger.total().vector_flops == (steps - 2) * batch * c_out  # the bias


def test_depthwise_costs_one_channel_an_output():
    ledger = ledger_of(F.conv2d, meta(1, 32, 8, 8), meta(32, 1, 3, 3), padding=1, groups=32)
    assert ledger.total().total_flops == 2 * 32 * 8 * 8 * 9


def test_a_complex_multiply_add_is_eight():
    """Four multiplies and four adds."""
    x, w = ref(1, 2, 5, 5, dtype="complex64"), ref(3, 2, 3, 3, dtype="complex64")
    y = ref(1, 3, 3, 3, dtype="complex64")
    done = work(record(aten.convolution.default, y, input=x, weight=w))
    assert done.flops == 8 * 3 * 3 * 3 * 2 * 9


def test_bytes_are_those_of_input_weight_bias_and_output():
    x, w, b, y = tensors()
    op = record(aten.convolution.default, y, input=x, weight=w, bias=b)
    assert sum(r.nbytes for r in moved(op).reads) == 4 * (x.numel + w.numel + CO)
    assert sum(r.nbytes for r in moved(op).writes) == 4 * y.numel


@pytest.mark.parametrize("groups", [1, 8])
def test_agrees_with_torchs_counter_on_a_stack(groups):
    """Difference named: torch counts a grouped weight gradient as if there were no groups.

    That is `groups` times the forward instead of once.
    """
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.Conv2d(8, 8, 3, groups=groups, stride=2),
        torch.nn.ConvTranspose2d(8, 4, 4, stride=2),
    ).to("meta")
    x = meta(2, 3, 16, 16)

    def step():
        net(x).sum().backward()

    with FlopCounterMode(display=False) as theirs:
        step()
    grouped_forward = 2 * 2 * 8 * 7 * 7 * (8 // groups) * 9
    too_many = (groups - 1) * grouped_forward
    assert ledger_of(step).total().total_flops == theirs.get_total_flops() - too_many
