"""Every module of torch.nn, forward and backward: no op without a formula, meta equals CPU."""

import pytest
import torch
from op_records import ledger_of
from torch import nn

B, C, L, S = 2, 4, 10, 6
LINE, IMAGE, VOLUME = (B, C, L), (B, C, S, S), (B, C, S, S, S)


def rand(*shape):
    return torch.rand(*shape)


def labels(*shape, device="cpu"):
    return torch.ones(*shape, dtype=torch.long)


MODULES = {
    # name: (module, input shapes)
    "Linear": (lambda: nn.Linear(C, 8), [(B, C)]),
    "Bilinear": (lambda: nn.Bilinear(C, 3, 5), [(B, C), (B, 3)]),
    "Conv1d": (lambda: nn.Conv1d(C, 8, 3, padding=1), [LINE]),
    "Conv2d": (lambda: nn.Conv2d(C, 8, 3, stride=2, groups=2), [IMAGE]),
    "Conv3d": (lambda: nn.Conv3d(C, 8, 2, dilation=2), [VOLUME]),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(C, 8, 3), [LINE]),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(C, 8, 3, stride=2, groups=2), [IMAGE]),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(C, 8, 2), [VOLUME]),
    "Unfold": (lambda: nn.Unfold(2), [IMAGE]),
    "Fold": (lambda: nn.Fold((4, 4), 2), [(B, C * 4, 9)]),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), [LINE]),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), [IMAGE]),
    "MaxPool3d": (lambda: nn.MaxPool3d(2), [VOLUME]),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), [LINE]),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2), [IMAGE]),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), [VOLUME]),
    "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(2, 3), [IMAGE]),
    "LPPool2d": (lambda: nn.LPPool2d(2, 2), [IMAGE]),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(3), [LINE]),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(4), [IMAGE]),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(4), [VOLUME]),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(4), [IMAGE]),
    "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d(4), [VOLUME]),
    "ReflectionPad1d": (lambda: nn.ReflectionPad1d(2), [LINE]),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(2), [IMAGE]),
    "ReplicationPad2d": (lambda: nn.ReplicationPad2d(2), [IMAGE]),
    "ReplicationPad3d": (lambda: nn.ReplicationPad3d(1), [VOLUME]),
    "ZeroPad2d": (lambda: nn.ZeroPad2d(2), [IMAGE]),
    "CircularPad2d": (lambda: nn.CircularPad2d(2), [IMAGE]),
    "ELU": (nn.ELU, [(B, C)]),
    "Hardshrink": (nn.Hardshrink, [(B, C)]),
    "Hardsigmoid": (nn.Hardsigmoid, [(B, C)]),
    "Hardtanh": (nn.Hardtanh, [(B, C)]),
    "Hardswish": (nn.Hardswish, [(B, C)]),
    "LeakyReLU": (nn.LeakyReLU, [(B, C)]),
    "LogSigmoid": (nn.LogSigmoid, [(B, C)]),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(C, 2, batch_first=True),
        [(B, S, C), (B, S, C), (B, S, C)],
    ),
    "PReLU": (nn.PReLU, [(B, C)]),
    "ReLU": (nn.ReLU, [(B, C)]),
    "ReLU6": (nn.ReLU6, [(B, C)]),
    "RReLU": (nn.RReLU, [(B, C)]),
    "SELU": (nn.SELU, [(B, C)]),
    "CELU": (nn.CELU, [(B, C)]),
    "GELU": (nn.GELU, [(B, C)]),
    "Sigmoid": (nn.Sigmoid, [(B, C)]),
    "SiLU": (nn.SiLU, [(B, C)]),
    "Mish": (nn.Mish, [(B, C)]),
    "Softplus": (nn.Softplus, [(B, C)]),
    "Softshrink": (nn.Softshrink, [(B, C)]),
    "Softsign": (nn.Softsign, [(B, C)]),
    "Tanh": (nn.Tanh, [(B, C)]),
    "Tanhshrink": (nn.Tanhshrink, [(B, C)]),
    "Threshold": (lambda: nn.Threshold(0.1, 20), [(B, C)]),
    "GLU": (nn.GLU, [(B, C)]),
    "Softmin": (lambda: nn.Softmin(-1), [(B, C)]),
    "Softmax": (lambda: nn.Softmax(-1), [(B, C)]),
    "Softmax2d": (nn.Softmax2d, [IMAGE]),
    "LogSoftmax": (lambda: nn.LogSoftmax(-1), [(B, C)]),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(C), [LINE]),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(C), [IMAGE]),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(C), [VOLUME]),
    "GroupNorm": (lambda: nn.GroupNorm(2, C), [IMAGE]),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(C, affine=True), [IMAGE]),
    "LayerNorm": (lambda: nn.LayerNorm(C), [(B, C)]),
    "RMSNorm": (lambda: nn.RMSNorm(C), [(B, C)]),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), [IMAGE]),
    "RNN": (lambda: nn.RNN(C, 8, 2), [(L, B, C)]),
    "LSTM": (lambda: nn.LSTM(C, 8, 2, bidirectional=True), [(L, B, C)]),
    "GRU": (lambda: nn.GRU(C, 8), [(L, B, C)]),
    "RNNCell": (lambda: nn.RNNCell(C, 8), [(B, C)]),
    "LSTMCell": (lambda: nn.LSTMCell(C, 8), [(B, C)]),
    "GRUCell": (lambda: nn.GRUCell(C, 8), [(B, C)]),
    "Transformer": (
        lambda: nn.Transformer(C, 2, 1, 1, 16, batch_first=True),
        [(B, S, C), (B, S, C)],
    ),
    "Dropout": (lambda: nn.Dropout(0.5), [(B, C)]),
    "Dropout2d": (lambda: nn.Dropout2d(0.5), [IMAGE]),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.5), [(B, C)]),
    "CosineSimilarity": (nn.CosineSimilarity, [(B, C), (B, C)]),
    "PairwiseDistance": (nn.PairwiseDistance, [(B, C), (B, C)]),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), [IMAGE]),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), [IMAGE]),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), [IMAGE]),
    "Upsample nearest": (lambda: nn.Upsample(scale_factor=2), [IMAGE]),
    "Upsample linear": (lambda: nn.Upsample(scale_factor=2, mode="linear"), [LINE]),
    "Upsample bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), [IMAGE]),
    "Upsample bicubic": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), [IMAGE]),
    "Upsample trilinear": (lambda: nn.Upsample(scale_factor=2, mode="trilinear"), [VOLUME]),
    "L1Loss": (nn.L1Loss, [(B, C), (B, C)]),
    "MSELoss": (nn.MSELoss, [(B, C), (B, C)]),
    "SmoothL1Loss": (nn.SmoothL1Loss, [(B, C), (B, C)]),
    "HuberLoss": (nn.HuberLoss, [(B, C), (B, C)]),
    "BCELoss": (nn.BCELoss, [(B, C), (B, C)]),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss, [(B, C), (B, C)]),
    "KLDivLoss": (lambda: nn.KLDivLoss(reduction="batchmean"), [(B, C), (B, C)]),
    "PoissonNLLLoss": (nn.PoissonNLLLoss, [(B, C), (B, C)]),
    "GaussianNLLLoss": (nn.GaussianNLLLoss, [(B, C), (B, C), (B, C)]),
    "SoftMarginLoss": (nn.SoftMarginLoss, [(B, C), (B, C)]),
    "HingeEmbeddingLoss": (nn.HingeEmbeddingLoss, [(B, C), (B, C)]),
    "MarginRankingLoss": (nn.MarginRankingLoss, [(B,), (B,), (B,)]),
    "CosineEmbeddingLoss": (nn.CosineEmbeddingLoss, [(B, C), (B, C), (B,)]),
    "MultiLabelSoftMarginLoss": (nn.MultiLabelSoftMarginLoss, [(B, C), (B, C)]),
    "TripletMarginLoss": (nn.TripletMarginLoss, [(B, C), (B, C), (B, C)]),
    "CrossEntropyLoss of probabilities": (nn.CrossEntropyLoss, [(B, C), (B, C)]),
}  # fmt: skip

# Their checks look at values, which meta tensors do not have.
LOOKS_AT_VALUES = {"GaussianNLLLoss", "BCELoss"}


def inputs_of(name, shapes, device):
    """Random inputs; what a loss compares with is not differentiated."""
    inputs = [torch.rand(*shape, device=device) for shape in shapes]
    for x in inputs[:1] if name.endswith("Loss") else inputs:
        x.requires_grad_()
    return inputs


def step(module, inputs):
    def run():
        out = module(*inputs)
        while isinstance(out, tuple):
            out = out[0]
        out.sum().backward()

    return ledger_of(run)


@pytest.mark.parametrize("name", MODULES)
def test_forward_and_backward(name):
    build, shapes = MODULES[name]
    module = build().train()
    ledger = step(module, inputs_of(name, shapes, "cpu"))
    assert not ledger.unmodelled()
    assert ledger.total("forward").total_bytes > 0
    assert ledger.total("backward").total_bytes > 0
    for kernel in ledger.kernels:
        cost = kernel.cost
        numbers = [cost.vector_flops, cost.total_flops, *cost.read.values(), *cost.write.values()]
        assert all(type(number) is int and number >= 0 for number in numbers), kernel.name
    if name in LOOKS_AT_VALUES:
        return
    on_meta = step(module.to("meta"), inputs_of(name, shapes, "meta"))
    assert not on_meta.unmodelled()
    # The CPU's one op for an LSTM also computes the gradient of the first state, a constant here.
    phases = ("forward",) if name == "LSTM" else ("forward", "backward")
    for phase in phases:
        assert on_meta.total(phase).total_flops == ledger.total(phase).total_flops


TARGETS = {
    "CrossEntropyLoss": (nn.CrossEntropyLoss, (B, C), lambda: labels(B)),
    "NLLLoss": (nn.NLLLoss, (B, C), lambda: labels(B)),
    "NLLLoss of images": (nn.NLLLoss, IMAGE, lambda: labels(B, S, S)),
    "MultiMarginLoss": (nn.MultiMarginLoss, (B, C), lambda: labels(B)),
    "MultiLabelMarginLoss": (nn.MultiLabelMarginLoss, (B, C), lambda: labels(B, C)),
    "CTCLoss": (nn.CTCLoss, (L, B, C), lambda: labels(B, 3)),
    "AdaptiveLogSoftmax": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(32, 10, [3, 6]), (B, 32), lambda: labels(B),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_losses_of_labels(name):
    build, shape, targets = TARGETS[name]
    loss, x = build(), rand(*shape).requires_grad_()
    lengths = (torch.full((B,), L), torch.full((B,), 3)) if name == "CTCLoss" else ()

    def run():
        out = loss(x, targets(), *lengths)
        (out.loss if name == "AdaptiveLogSoftmax" else out).backward()

    ledger = ledger_of(run)
    assert not ledger.unmodelled()
    assert ledger.total("backward").vector_flops > 0


@pytest.mark.parametrize("name", ["Embedding", "EmbeddingBag"])
def test_tables(name):
    table = getattr(nn, name)(10, C)
    ledger = ledger_of(lambda: table(labels(B, 3)).sum().backward())
    assert not ledger.unmodelled()
    assert ledger.total("backward").vector_flops >= B * 3 * C


def test_an_encoder_stack_in_inference():
    layer = nn.TransformerEncoderLayer(C, 2, 16, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with torch.inference_mode():
        ledger = ledger_of(stack, rand(B, S, C))
    products = 2 * B * S * (4 * C * C + 2 * C * 16) + 4 * B * S * S * C
    assert ledger.total().total_flops == 2 * products
