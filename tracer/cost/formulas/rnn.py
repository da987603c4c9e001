"""Recurrent layers: every weight matrix meets every token once, whatever the step order.

A backward is twice that: gradients of the inputs, and of the weights. Weights are read once;
whether a kernel keeps them on chip between steps is left to the efficiency of the chip.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import GEMM, POINTWISE, Work
from .common import Out, Refs, given, multiply_add, product, wanted

# Vector FLOPs a hidden unit and step. LSTM: four gates summed (4) and passed through a sigmoid or
# tanh (4), c = f·c + i·g (3), h = o·tanh(c) (2). GRU: r and z (2 each), n = tanh(in + r·hn) (3),
# h = n + z·(h - n) (3). Simple: sum, activation. Two biases a gate come on top.
LSTM_FLOPS, GRU_FLOPS, SIMPLE_FLOPS = 13, 10, 2
LSTM_BACKWARD_FLOPS, GRU_BACKWARD_FLOPS = 23, 16
# By cuDNN's mode: ReLU, tanh, LSTM, GRU.
_UNIT_FLOPS = {0: SIMPLE_FLOPS, 1: SIMPLE_FLOPS, 2: LSTM_FLOPS, 3: GRU_FLOPS}


def _matrices(weights: Refs) -> int:
    """Elements of the weight matrices: biases have one dimension."""
    return sum(w.numel for w in weights if len(w.shape) == 2)


def _layers(input: TensorRef, weights: Refs, mode: int, units: int) -> Work:
    """A forward over all tokens of `input` [..., features], with `units` hidden units in all."""
    tokens = product(input.shape[:-1])
    biases = sum(w.numel for w in weights if len(w.shape) == 1)
    vector = tokens * (units * _UNIT_FLOPS[mode] + biases)
    return Work(multiply_add(input) * tokens * _matrices(weights), vector=vector, kind=GEMM)


@cost("aten::_cudnn_rnn")
def cudnn_rnn(
    input: TensorRef, weight: Refs, weight_stride0: int, weight_buf: TensorRef | None,
    hx: TensorRef, cx: TensorRef | None, mode: int, hidden_size: int, proj_size: int,
    num_layers: int, batch_first: bool, dropout: float, train: bool, bidirectional: bool,
    batch_sizes: Any, dropout_state: TensorRef | None, *, out: Out,
) -> Work:  # fmt: skip
    """2 FLOPs for every token and weight, over layers, directions and projections.

    Bytes: the flat weight buffer holds the same weights and is not read again.
    """
    units = hidden_size * num_layers * (1 + bidirectional)
    return _layers(input, weight, mode, units)._replace(read={"weight_buf": 0})


@cost("aten::miopen_rnn")
def miopen_rnn(
    input: TensorRef, weight: Refs, weight_stride0: int, hx: TensorRef, cx: TensorRef | None,
    mode: int, hidden_size: int, num_layers: int, batch_first: bool, dropout: float, train: bool,
    bidirectional: bool, batch_sizes: Any, dropout_state: TensorRef | None, *, out: Out,
) -> Work:  # fmt: skip
    """2 FLOPs for every token and weight."""
    units = hidden_size * num_layers * (1 + bidirectional)
    return _layers(input, weight, mode, units)


def _layers_backward(
    input: TensorRef, weights: Refs, mode: int, units: int, output_mask: Any
) -> Work:
    # The data gradient always runs: the weight gradient needs the gates' gradients.
    once = _layers(input, weights, mode, units)
    *_, need_weights = wanted(output_mask)
    return once._replace(
        flops=once.flops * (1 + need_weights),
        vector=2 * once.vector,
        precision=input.dtype,
        read={"weight_buf": 0},
    )


@cost("aten::_cudnn_rnn_backward")
def cudnn_rnn_backward(
    input: TensorRef, weight: Refs, weight_stride0: int, weight_buf: TensorRef, hx: TensorRef,
    cx: TensorRef | None, output: TensorRef, grad_output: TensorRef | None,
    grad_hy: TensorRef | None, grad_cy: TensorRef | None, mode: int, hidden_size: int,
    proj_size: int, num_layers: int, batch_first: bool, dropout: float, train: bool,
    bidirectional: bool, batch_sizes: Any, dropout_state: TensorRef | None, reserve: TensorRef,
    output_mask: Any, *, out: Out,
) -> Work:  # fmt: skip
    """The forward's FLOPs for the data gradient, and again for the weights if they need one.

    Bytes: the flat weight buffer holds the same weights and is not read again.
    """
    units = hidden_size * num_layers * (1 + bidirectional)
    return _layers_backward(input, weight, mode, units, output_mask)


@cost("aten::miopen_rnn_backward")
def miopen_rnn_backward(
    input: TensorRef, weight: Refs, weight_stride0: int, weight_buf: TensorRef, hx: TensorRef,
    cx: TensorRef | None, output: TensorRef, grad_output: TensorRef | None,
    grad_hy: TensorRef | None, grad_cy: TensorRef | None, mode: int, hidden_size: int,
    num_layers: int, batch_first: bool, dropout: float, train: bool, bidirectional: bool,
    batch_sizes: Any, dropout_state: TensorRef | None, reserve: TensorRef, output_mask: Any, *,
    out: Out,
) -> Work:  # fmt: skip
    """The forward's FLOPs for the data gradient, and again for the weights if they need one.

    Bytes: the flat weight buffer holds the same weights and is not read again.
    """
    units = hidden_size * num_layers * (1 + bidirectional)
    return _layers_backward(input, weight, mode, units, output_mask)


@cost("aten::mkldnn_rnn_layer")
def mkldnn_rnn_layer(
    input: TensorRef, weight0: TensorRef, weight1: TensorRef, weight2: TensorRef,
    weight3: TensorRef, hx_: TensorRef, cx_: TensorRef, reverse: bool, batch_sizes: Any, mode: int,
    hidden_size: int, num_layers: int, has_biases: bool, bidirectional: bool, batch_first: bool,
    train: bool, *, out: Out,
) -> Work:  # fmt: skip
    """One layer in one direction: 2 FLOPs for every token and weight."""
    return _layers(input, (weight0, weight1, weight2, weight3), mode, hidden_size)


@cost("aten::mkldnn_rnn_layer_backward")
def mkldnn_rnn_layer_backward(
    input: TensorRef, weight1: TensorRef, weight2: TensorRef, weight3: TensorRef,
    weight4: TensorRef, hx_: TensorRef, cx_tmp: TensorRef, output: TensorRef, hy_: TensorRef,
    cy_: TensorRef, grad_output: TensorRef | None, grad_hy: TensorRef | None,
    grad_cy: TensorRef | None, reverse: bool, mode: int, hidden_size: int, num_layers: int,
    has_biases: bool, train: bool, bidirectional: bool, batch_sizes: Any, batch_first: bool,
    workspace: TensorRef, *, out: Out,
) -> Work:  # fmt: skip
    """Twice the forward: data and weight gradients come together."""
    once = _layers(input, (weight1, weight2, weight3, weight4), mode, hidden_size)
    return once._replace(flops=2 * once.flops, vector=2 * once.vector)


@cost("aten::_thnn_fused_lstm_cell")
def lstm_cell(
    input_gates: TensorRef, hidden_gates: TensorRef, cx: TensorRef,
    input_bias: TensorRef | None = None, hidden_bias: TensorRef | None = None, *, out: Out,
) -> Work:  # fmt: skip
    """Gates to states: 13 a hidden unit, and 4 for each bias; the products are their own ops."""
    steps = LSTM_FLOPS + 4 * (given(input_bias) + given(hidden_bias))
    return Work(vector=steps * cx.numel, kind=POINTWISE)


@cost("aten::_thnn_fused_lstm_cell_backward_impl")
def lstm_cell_backward(
    grad_hy: TensorRef | None, grad_cy: TensorRef | None, cx: TensorRef, cy: TensorRef,
    workspace: TensorRef, has_bias: bool, *, out: Out,
) -> Work:  # fmt: skip
    """23 a hidden unit: tanh(c) again, the gradient of c, four gates, and of the old c."""
    bias = workspace.numel if has_bias else 0
    return Work(vector=LSTM_BACKWARD_FLOPS * cx.numel + bias, kind=POINTWISE)


@cost("aten::_thnn_fused_gru_cell")
def gru_cell(
    input_gates: TensorRef, hidden_gates: TensorRef, hx: TensorRef,
    input_bias: TensorRef | None = None, hidden_bias: TensorRef | None = None, *, out: Out,
) -> Work:  # fmt: skip
    """Gates to states: 10 a hidden unit, and 3 for each bias; the products are their own ops."""
    steps = GRU_FLOPS + 3 * (given(input_bias) + given(hidden_bias))
    return Work(vector=steps * hx.numel, kind=POINTWISE)


@cost("aten::_thnn_fused_gru_cell_backward")
def gru_cell_backward(
    grad_hy: TensorRef, workspace: TensorRef, has_bias: bool, *, out: Out
) -> Work:
    """16 a hidden unit."""
    bias = 6 * grad_hy.numel if has_bias else 0
    return Work(vector=GRU_BACKWARD_FLOPS * grad_hy.numel + bias, kind=POINTWISE)
