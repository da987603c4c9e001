"""Peak memory of a training step against torch's MemTracker, both watching the same run on meta.

MemTracker follows tensors through hooks and weak references of its own; ours replays the storages
of the trace. Its external tensors (model, optimizer) are told to it; ours finds them.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.checkpoint import checkpoint

from tracer.capture import Capture
from tracer.cost.timeline import timeline
from tracer.models import build, bundled_config


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        batch, seq, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, seq, 3, self.heads, dim // self.heads)
        o = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.out(o.transpose(1, 2).reshape(batch, seq, dim))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Layers(nn.Module):
    """Blocks one after another, each checkpointed if asked."""

    def __init__(self, blocks, first, last, recompute):
        super().__init__()
        self.first, self.blocks, self.last = first, nn.ModuleList(blocks), last
        self.recompute = recompute

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return self.last(x)


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def transformer(recompute):
    blocks = [Block(128, 4) for _ in range(4)]
    return Layers(blocks, nn.Embedding(500, 128), nn.Linear(128, 500), recompute)


def perceptron(recompute):
    blocks = [nn.Sequential(nn.Linear(256, 256), nn.Tanh()) for _ in range(6)]
    return Layers(blocks, nn.Linear(64, 256), nn.Linear(256, 10), recompute)


def resnet(recompute):
    blocks = [Residual(32) for _ in range(3)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return Layers(blocks, nn.Conv2d(3, 32, 3, padding=1), head, recompute)


def encoder(recompute):
    blocks = [nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0) for _ in range(3)]
    return Layers(blocks, nn.Linear(16, 64), nn.Linear(64, 8), recompute)


def deepseek(recompute):
    config = dict(bundled_config("deepseek-ai/DeepSeek-V2-Lite"), num_hidden_layers=3)
    model = build(config, training=True)
    if recompute:
        for layer in model.model.layers:
            inner = layer.forward
            layer.forward = lambda *a, f=inner: checkpoint(f, *a, use_reentrant=False)
    return model


def tokens(*shape):
    return lambda: torch.zeros(*shape, dtype=torch.long)


CASES = {
    "transformer": (transformer, tokens(8, 128)),
    "perceptron": (perceptron, lambda: torch.empty(4096, 64)),
    "resnet": (resnet, lambda: torch.empty(8, 3, 32, 32)),
    "encoder": (encoder, lambda: torch.empty(64, 16, 16)),
    "deepseek": (deepseek, tokens(4, 2048)),
}


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")  # torch's tracker warns about its own internals
def test_peak_within_one_percent(name, recompute):
    make, inputs = CASES[name]
    with torch.device("meta"):
        model, x = make(recompute), inputs()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker, Capture(model) as capture:
        loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs = tracker.get_tracker_snapshot("peak")[torch.device("meta")]["Total"]
    ours = timeline(capture.trace)
    # Theirs is not told of the input, which existed before.
    given = x.untyped_storage().nbytes()
    assert ours.peak - given == pytest.approx(theirs, rel=0.01) or ours.peak == pytest.approx(
        theirs, rel=0.01
    )
    assert sum(ours.at_peak.values()) == ours.peak


def test_checkpointing_lowers_the_peak():
    peaks = []
    for recompute in (False, True):
        with torch.device("meta"):
            model, x = transformer(recompute), torch.zeros(32, 256, dtype=torch.long)
        with Capture(model) as capture:
            model(x).float().square().mean().backward()
        peaks.append(timeline(capture.trace).peak)
    assert peaks[1] < 0.5 * peaks[0]


def test_real_tensors_against_the_allocator():
    """On CPU: bytes that live storages hold, counted by hand at a known moment."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 1, bias=False))
    x = torch.randn(1000, 64)
    with Capture(model) as capture:
        y = model(x)
        y.sum().backward()
    live = timeline(capture.trace)
    weights = 4 * (64 * 64 + 64)
    assert live.by_role["weights"][0] == weights
    # After the forward: the hidden before and after ReLU (its result is saved, its input is not,
    # but nn.Sequential's loop variable has let go of it by then), and y.
    forward = 1 + max(i for i, op in enumerate(capture.trace.ops) if op.phase == "forward")
    held = live.by_role["activations"][forward] + live.by_role["temporary"][forward]
    saved = 4 * (1000 * 64 + 1000)  # relu's output, y
    given, ends = 4 * 1000 * 64, 4 + 4  # x; the sum and its gradient's seed
    assert held == pytest.approx(given + saved + ends, abs=4)
    assert live.by_role["gradients"][-1] == weights
