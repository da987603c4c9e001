"""On modules whose ops torch's counter knows, both counters agree to the FLOP."""

import pytest
import torch
import torch.nn.functional as F
from flop_counters import count, step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Projections around SDPA; fewer key heads than query heads are shared."""

    def __init__(self, dim=64, heads=4, kv_heads=None, head_v=None, causal=True):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.causal = causal
        head = dim // heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, self.kv_heads * head)
        self.v = nn.Linear(dim, self.kv_heads * (head_v or head))
        self.o = nn.Linear(heads * (head_v or head), dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for linear, heads in (
                (self.q, self.heads),
                (self.k, self.kv_heads),
                (self.v, self.kv_heads),
            )
        )
        shared = self.heads != self.kv_heads
        o = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=shared)
        return self.o(o.transpose(1, 2).flatten(-2))


class LlamaBlock(nn.Module):
    """RMSNorm, GQA, SwiGLU, residuals."""

    def __init__(self, dim=64, width=96):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.attention = Attention(dim, heads=4, kv_heads=2)
        self.gate, self.up = nn.Linear(dim, width, bias=False), nn.Linear(dim, width, bias=False)
        self.down = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class ResNet(nn.Module):
    """Stem, two residual blocks (one of them strided, with a projection), pooling, head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.ModuleList([self.block(8, 8, 1), self.block(8, 16, 2)])
        self.shortcuts = nn.ModuleList([nn.Identity(), nn.Conv2d(8, 16, 1, 2, bias=False)])
        self.head = nn.Linear(16, 10)

    @staticmethod
    def block(before, width, stride):
        return nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.stem(x))))
        for block, shortcut in zip(self.blocks, self.shortcuts, strict=True):
            x = F.relu(block(x) + shortcut(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def mlp():
    return nn.Sequential(nn.Linear(10, 20), nn.GELU(), nn.Linear(20, 20, bias=False), nn.Tanh())


def encoder():
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Seq2Seq(nn.Module):
    """Encoder and decoder of nn.Transformer, cross attention included."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, dropout=0.0, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.transformer(source, target)


CASES = {
    "mlp": (mlp, [(7, 10)]),
    "mlp on three dimensions": (mlp, [(2, 3, 10)]),
    "mlp on a vector": (lambda: nn.Sequential(nn.Linear(10, 4)), [(1, 10)]),
    "resnet": (ResNet, [(2, 3, 32, 32)]),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), [(2, 4, 9)]),
    "conv3d": (lambda: nn.Conv3d(2, 4, (3, 2, 1), padding=1), [(2, 2, 5, 6, 7)]),
    "dilated": (lambda: nn.Conv2d(3, 5, 3, dilation=2), [(2, 3, 11, 12)]),
    "strided": (lambda: nn.Conv2d(3, 5, 3, stride=(2, 3)), [(2, 3, 11, 12)]),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), [(2, 4, 9)]),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        [(2, 4, 9, 8)],
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2), [(1, 2, 3, 4, 5)]),
    "attention": (Attention, [(2, 9, 64)]),
    "attention of all pairs": (lambda: Attention(causal=False), [(2, 9, 64)]),
    "grouped heads": (lambda: Attention(kv_heads=2), [(2, 9, 64)]),
    "narrow values": (lambda: Attention(head_v=8), [(2, 9, 64)]),
    "encoder": (encoder, [(2, 9, 32)]),
    "encoder and decoder": (Seq2Seq, [(2, 9, 32), (2, 5, 32)]),
    "llama block": (LlamaBlock, [(2, 9, 64)]),
}
GROUPED = {
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "grouped transposed": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
}


def make(name: str, device: str, dtype=torch.float32, grad: bool = True):
    build, shapes = CASES[name]
    with torch.device(device):
        model = build().to(dtype)
        return model, [torch.ones(shape, dtype=dtype, requires_grad=grad) for shape in shapes]


@pytest.mark.parametrize("attention", ["fused", "naive"])
@pytest.mark.parametrize("name", CASES)
def test_forward_on_meta(name, attention):
    model, inputs = make(name, "meta")
    with torch.no_grad():
        counts = count(lambda: model(*inputs), model, attention=attention)
    assert counts.ours == counts.theirs > 0


@pytest.mark.parametrize("attention", ["fused", "naive"])
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_on_meta(name, attention):
    model, inputs = make(name, "meta")
    counts = count(step(model, *inputs), model, attention=attention)
    assert counts.ours == counts.theirs > 0


@pytest.mark.parametrize("name", ["mlp", "attention", "grouped heads", "llama block", "encoder"])
def test_half_precision_on_meta(name):
    """BF16 takes another fused op (flash) than FP32 (memory-efficient)."""
    model, inputs = make(name, "meta", torch.bfloat16)
    counts = count(step(model, *inputs), model)
    assert counts.ours == counts.theirs > 0
    assert set(counts.ledger.total().flops) == {"bf16"}


@pytest.mark.parametrize("name", ["mlp", "resnet", "conv1d", "conv3d", "transposed 2d"])
def test_real_tensors(name):
    """No attention: torch's counter does not know what SDPA runs on a CPU (see the gaps)."""
    model, inputs = make(name, "cpu")
    counts = count(step(model, *inputs), model)
    assert counts.ours == counts.theirs > 0


def test_unfused_attention_on_real_tensors():
    """Softmax written out runs as products on any device."""
    q = torch.ones(2, 3, 5, 8, requires_grad=True)

    def run():
        scores = (q @ q.transpose(-2, -1)).softmax(dim=-1)
        (scores @ q).sum().backward()

    counts = count(run)
    pairs = 2 * 3 * 5 * 5
    assert counts.ours == counts.theirs == 3 * (2 * pairs * 8 + 2 * pairs * 8)


def test_recomputed_forward_is_counted_by_both():
    """Checkpointing runs the forward twice: 4 forwards' worth instead of 3."""
    model, (x,) = make("llama block", "meta", torch.bfloat16)

    def run():
        checkpoint(model, x, use_reentrant=False).sum().backward()

    plain = count(step(model, x), model)
    again = count(run, model)
    assert again.ours == again.theirs
    with torch.no_grad():
        forward = count(lambda: model(x), model)
    # Autograd stops the second forward once it has what the backward needs: behind the input of
    # the last product, whose own output nobody asks for.
    last = 2 * 2 * 9 * 96 * 64
    assert again.ours - plain.ours in (forward.ours, forward.ours - last)


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_convolution_forward(name):
    """Weights of one group meet the channels of that group only."""
    with torch.device("meta"), torch.no_grad():
        model = GROUPED[name]()
        counts = count(lambda: model(torch.empty(2, 4, 9, 8)), model)
    assert counts.ours == counts.theirs > 0


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_convolution_backward_is_twice_the_forward(name):
    """Input and weight gradient meet the same (position, weight) pairs as the forward."""
    with torch.device("meta"):
        model = GROUPED[name]()
        x = torch.empty(2, 4, 9, 8, requires_grad=True)
    with torch.no_grad():
        forward = count(lambda: model(x), model).ours
    assert count(step(model, x), model).ours == 3 * forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["attention", "grouped heads", "encoder", "encoder and decoder"])
def test_attention_is_one_fused_op_wherever_it_is_called(name, dtype):
    """Also inside of nn.MultiheadAttention: no score matrix, and products in the model's dtype."""
    model, inputs = make(name, "meta", dtype)
    with torch.no_grad():
        counts = count(lambda: model(*inputs), model)
    assert not any("bmm" in op for op in counts.by_op()), counts.by_op()
    assert any("attention" in op for op in counts.by_op())
    assert set(counts.ledger.total().flops) == {{torch.float32: "fp32"}.get(dtype, "bf16")}


def test_mla_head_sizes_by_hand():
    """Heads of 192 and 128, as DeepSeek-V3 has, are one fused op for both counters.

    4 x 16 x 16 pairs in 2 sequences: forward 2 (192 + 128); backward dQ, dK and the scores again of
    192, dP and dV of 128.
    """
    with torch.device("meta"):
        q, k = (torch.empty(2, 4, 16, 192, dtype=torch.bfloat16, requires_grad=True) for _ in "qk")
        v = torch.empty(2, 4, 16, 128, dtype=torch.bfloat16, requires_grad=True)

    def run():
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    counts = count(run)
    pairs = 2 * 4 * 16 * 16
    assert counts.theirs == pairs * 2 * ((192 + 128) + (3 * 192 + 2 * 128))
    assert counts.ours == counts.theirs
    total = counts.ledger.total()
    assert total.total_flops == 3 * pairs * 2 * (192 + 128)
    assert sum(total.recompute_flops.values()) == pairs * 2 * 192


def test_causality_is_the_only_difference_under_our_default():
    """Torch counts all of S²; under `causal="pairs"` we count S(S+1)/2, and nothing else moves."""
    from tracer.cost import price

    model, inputs = make("attention", "meta")
    with torch.no_grad():
        counts = count(lambda: model(*inputs), model)
    pairs = price(counts.ledger.trace).total().total_flops
    left_out = 2 * 4 * (9 * 9 - 9 * 10 // 2) * (2 * 16 + 2 * 16)  # batch, heads, pairs, head sizes
    assert counts.theirs - pairs == left_out
