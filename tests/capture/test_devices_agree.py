"""One program whatever it runs on: meta = real CPU, op for op; and under the usual contexts."""

import pytest
import torch
from torch import nn

import tracer
from tracer.capture.records import BACKWARD, FORWARD


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(16)
        self.gate_up = nn.Linear(16, 64, bias=False)
        self.down = nn.Linear(32, 16, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(self.norm(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


class Indexing(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.register_buffer("rows", torch.arange(3))

    def forward(self, x):
        ids = torch.zeros(2, 5, dtype=torch.long, device=x.device)
        h = self.embed(ids)
        h = h.index_select(1, self.rows) + h[:, self.rows]
        top = h.softmax(-1).topk(4, -1)
        mixed = torch.zeros_like(h).scatter_add(-1, top.indices, top.values)
        return torch.cat([mixed, h.flip(0)], 1).cumsum(1)


def encoder():
    return nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)


MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)), (3, 16)),
    "norms": (lambda: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8), nn.Tanh()), (2, 3, 16)),
    "swiglu": (SwiGLU, (2, 3, 16)),
    "indexing": (Indexing, (1,)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                              nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten()),
        (2, 3, 8, 8),
    ),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 7)),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Hardswish()), (2, 4, 6)),
    "bilinear": (lambda: nn.Sequential(nn.Unflatten(1, (2, 8)), nn.Softmax(1), nn.Flatten()),
                 (3, 16)),
    "dropout": (lambda: nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)), (4, 16)),
}  # fmt: skip


def rows(trace):
    """Everything of an op that the device must not change; storages by order of appearance."""
    ids = {}

    def plain(value):
        if isinstance(value, tracer.capture.TensorRef):
            number = ids.setdefault(value.storage, len(ids))
            return (value.shape, value.stride, value.dtype, number, value.offset)
        if isinstance(value, tuple):
            return tuple(plain(item) for item in value)
        return value

    return [
        (op.name, plain(op.args), plain(op.outputs), op.phase, trace.module_of(op))
        for op in trace.ops
    ]


def step(build, shape, device, attention="fused"):
    model = build().to(device)
    x = torch.ones(shape, device=device, requires_grad=True)
    grad = None
    with tracer.trace(model, attention=attention) as t:
        out = model(x)
        out = out[0] if isinstance(out, tuple) else out
        grad = torch.ones_like(out)
        out.backward(grad)
    return t


@pytest.mark.parametrize("name", MODULES)
def test_meta_equals_cpu(name):
    build, shape = MODULES[name]
    real, meta = step(build, shape, "cpu"), step(build, shape, "meta")
    assert len(real.trace) > 5
    assert rows(meta.trace) == rows(real.trace)
    for convention in (FORWARD, BACKWARD):
        assert meta.ledger().total(convention) == real.ledger().total(convention)


def test_unfused_attention_on_meta_equals_cpu_in_products():
    """The CPU has a flash kernel of its own, so only `naive` on meta has the same decomposition."""
    build, shape = encoder, (2, 5, 16)
    real, meta = step(build, shape, "cpu"), step(build, shape, "meta")
    products = ("aten.mm", "aten.addmm")

    def of(session):
        return [row for row in rows(session.trace) if row[0].rpartition(".")[0] in products]

    assert [row[0] for row in of(real)] == [row[0] for row in of(meta)]
    assert real.flops == meta.flops  # CPU flash and the rerouted op have the same formula


def test_no_grad_leaves_only_the_forward():
    model = MODULES["mlp"][0]()
    x = torch.ones(3, 16)
    with torch.no_grad(), tracer.trace(model) as quiet:
        model(x)
    with tracer.trace(model) as loud:
        model(x)
    assert quiet.flops == loud.flops == 2 * 3 * (16 * 32 + 32 * 16)
    assert {op.phase for op in quiet.trace.ops} == {FORWARD}


@pytest.mark.parametrize("name", MODULES)
def test_inference_mode_has_the_products_of_no_grad(name):
    """inference_mode hands composite ops over whole; what runs below them is the same."""
    build, shape = MODULES[name]
    model = build().eval()
    x = torch.ones(shape)
    with torch.no_grad(), tracer.trace(model) as plain:
        model(x)
    with torch.inference_mode(), tracer.trace(model) as inference:
        model(x)

    def kernels(t):
        free = {part.op for part in t.ledger(execution="naive").parts()}
        return [(op.name, t.trace.module_of(op)) for i, op in enumerate(t.trace.ops) if i in free]

    assert kernels(inference) == kernels(plain)
    assert inference.flops == plain.flops
    assert inference.cost.bytes_by_role == plain.cost.bytes_by_role


def test_inference_mode_on_sdpa_keeps_one_fused_op_on_meta():
    q = torch.ones(1, 2, 4, 8, device="meta", dtype=torch.bfloat16)
    with torch.inference_mode(), tracer.trace() as t:
        nn.functional.scaled_dot_product_attention(q, q, q)
    assert [op.overload_packet for op in t.trace.ops] == [
        "aten._scaled_dot_product_flash_attention"
    ]


def test_autocast_is_recorded_as_it_runs():
    model = nn.Linear(8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), tracer.trace(model) as t:
        out = model(torch.ones(2, 8))
    assert out.dtype == torch.bfloat16
    assert [op.overload_packet for op in t.trace.ops].count("aten._to_copy") == 3
    assert t.cost.flops == {"bf16": 2 * 2 * 8 * 4}
    # The copies into BF16: FP32 read, BF16 written, for weight, bias and input.
    copies = t.ledger(execution="naive").by(lambda k, p: k.name)["_to_copy"]
    elements = 8 * 4 + 4 + 2 * 8
    assert copies.total_bytes == elements * (4 + 2)


@pytest.mark.parametrize("attention", ["fused", "naive"])
def test_fast_paths_of_torch_do_not_swallow_flops(attention):
    """Eval mode on CPU runs a whole encoder layer as one op unless something prevents it."""
    model = encoder().eval()
    tokens, d, ffn, s = 2 * 5, 16, 32, 5
    linears = 2 * tokens * (3 * d * d + d * d + 2 * d * ffn)
    scores = 2 * 2 * 2 * s * s * d  # q·k and p·v over batch 2
    with torch.no_grad(), tracer.trace(model, attention=attention) as t:
        model(torch.ones(2, 5, 16))
    assert t.flops == linears + scores


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_gru_has_the_products_of_its_three_gates(device, mode):
    """The CPU multiplies all inputs at once, other devices step by step: FLOPs are the same."""
    model = nn.GRU(16, 8, batch_first=True).to(device)
    with mode(), tracer.trace(model) as t:
        model(torch.ones(2, 4, 16, device=device))
    assert t.flops == 2 * (2 * 4) * 3 * 8 * (16 + 8)


def test_lstm_is_exact_or_named():
    """On CPU an LSTM is one oneDNN op; its 4 gates are products of input and hidden state."""
    flops = 2 * (2 * 5) * 4 * 16 * (8 + 16)
    for device in ("cpu", "meta"):
        model = nn.LSTM(8, 16, batch_first=True).to(device)
        with torch.no_grad(), tracer.trace(model) as t:
            model(torch.ones(2, 5, 8, device=device))
        assert t.flops == flops or t.ledger().unmodelled(), device
