"""Recurrent layers: the sum of their matrix products, whichever op runs them."""

import pytest
import torch
from op_records import ledger_of, meta, moved, record, ref, work
from torch import nn

aten = torch.ops.aten
T, B, X, H = 5, 3, 7, 4
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
KINDS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}


def products(kind, layers, directions, projection=0):
    """Multiply-adds of all steps: every gate sees the input and the old state."""
    state = projection or H
    total = 0
    for layer in range(layers):
        size = X if layer == 0 else state * directions
        each = GATES[kind] * H * (size + state) + (projection * H)
        total += directions * T * B * each
    return total


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_as_torch_dispatches_them(kind, layers, bidirectional, device):
    """On the CPU an LSTM is one op a layer; the others, and all on meta, are step by step."""
    layer = KINDS[kind](X, H, layers, bidirectional=bidirectional).to(device)
    x = torch.empty(T, B, X, device=device).requires_grad_()
    ledger = ledger_of(lambda: layer(x)[0].sum().backward())
    forward = 2 * products(kind, layers, 1 + bidirectional)
    assert ledger.total("forward").total_flops == forward
    backward = ledger.total("backward").total_flops
    # The first state is a constant, so that its gradient is not computed: at most one product of
    # state and gates a sequence, layer and direction less.
    first = 2 * B * GATES[kind] * H * H * layers * (1 + bidirectional)
    assert 2 * forward - first <= backward <= 2 * forward


def test_projected_lstm():
    layer = nn.LSTM(X, H, 2, proj_size=2).to("meta")
    ledger = ledger_of(layer, meta(T, B, X))
    assert ledger.total().total_flops == 2 * products("LSTM", 2, 1, projection=2)


def weights(kind, layers, directions, projection=0):
    """Weight matrices and biases in torch's order, as views of one buffer would be."""
    state = projection or H
    found = []
    for layer in range(layers):
        size = X if layer == 0 else state * directions
        for _ in range(directions):
            found += [ref(GATES[kind] * H, size), ref(GATES[kind] * H, state)]
            found += [ref(GATES[kind] * H), ref(GATES[kind] * H)]
            found += [ref(projection, H)] if projection else []
    return tuple(found)


MODES = {"RNN": 1, "LSTM": 2, "GRU": 3}
UNIT = {"RNN": 2, "LSTM": 13, "GRU": 10}  # vector steps a hidden unit, counted in rnn.py's header


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_layers(kind, layers, bidirectional, packed):
    directions = 1 + bidirectional
    x = ref(T * B, X) if packed else ref(T, B, X)
    parameters = weights(kind, layers, directions)
    buffer = ref(sum(w.numel for w in parameters))
    arguments = {
        "input": x, "weight": parameters, "weight_buf": buffer,
        "hx": ref(layers * directions, B, H),
        "mode": MODES[kind], "hidden_size": H, "num_layers": layers, "proj_size": 0,
        "bidirectional": bidirectional, "batch_sizes": (B,) * T if packed else (),
    }  # fmt: skip
    op = record(aten._cudnn_rnn.default, ref(T, B, H * directions), **arguments)
    forward = 2 * products(kind, layers, directions)
    assert work(op).flops == forward
    # Steps of a unit, and two biases a gate.
    units = T * B * H * layers * directions
    assert work(op).vector == units * (UNIT[kind] + 2 * GATES[kind])
    # The buffer is the weights: one of the two is read.
    assert buffer.storage not in {item.storage for item in moved(op).reads}
    for mask, factor in (((True,) * 4, 2), ((True, True, True, False), 1)):
        back = record(aten._cudnn_rnn_backward.default, output_mask=mask, **arguments)
        assert work(back).flops == factor * forward


def test_cudnn_projection():
    parameters = weights("LSTM", 2, 1, projection=2)
    op = record(
        aten._cudnn_rnn.default, input=ref(T, B, X), weight=parameters, mode=2, hidden_size=H,
        proj_size=2, num_layers=2, bidirectional=False, batch_sizes=(), hx=ref(2, B, 2),
    )  # fmt: skip
    assert work(op).flops == 2 * products("LSTM", 2, 1, projection=2)


def test_miopen_layers():
    op = record(
        aten.miopen_rnn.default, input=ref(T, B, X), weight=weights("GRU", 2, 1), mode=3,
        hidden_size=H, num_layers=2, bidirectional=False, batch_sizes=(), hx=ref(2, B, H),
    )  # fmt: skip
    assert work(op).flops == 2 * products("GRU", 2, 1)


def test_a_layer_of_cells_is_the_layer():
    """The cell's two products, step by step."""
    cell = nn.LSTMCell(X, H)
    x = torch.randn(T, B, X)

    def unrolled():
        state = None
        for step in range(T):
            state = cell(x[step], state)

    assert ledger_of(unrolled).total().total_flops == 2 * products("LSTM", 1, 1)


def test_fused_lstm_cell_counts_its_steps():
    """Gates, states and biases of one unit, written out."""
    sums, activations = 4, 4  # input + hidden for i, f, g, o; three sigmoids and a tanh
    new_cell, new_hidden = 3, 2  # f·c + i·g; o·tanh(c)
    unit = sums + activations + new_cell + new_hidden
    biases = 4 + 4
    gates, state, bias = ref(B, 4 * H), ref(B, H), ref(4 * H)
    op = record(
        aten._thnn_fused_lstm_cell.default, state, state, gates,
        input_gates=gates, hidden_gates=gates, cx=state, input_bias=bias, hidden_bias=bias,
    )  # fmt: skip
    assert work(op).vector == (unit + biases) * B * H
    bare = record(
        aten._thnn_fused_lstm_cell.default, input_gates=gates, hidden_gates=gates, cx=state
    )
    assert work(bare).vector == unit * B * H


def test_fused_gru_cell_counts_its_steps():
    reset, update = 2, 2  # add, sigmoid
    candidate, blend = 3, 3  # tanh(in + r·hn); n + z·(h - n)
    gates, state = ref(B, 3 * H), ref(B, H)
    op = record(aten._thnn_fused_gru_cell.default, input_gates=gates, hidden_gates=gates, hx=state)
    assert work(op).vector == (reset + update + candidate + blend) * B * H
