"""Saving and loading a trace is the identity, and reading one needs no torch."""

import gzip
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import tracer
from tracer.capture import Capture
from tracer.capture.store import load, save


def full_of_everything():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    with tracer.trace(model) as t:
        t.mark("kv", [torch.zeros(3)])
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        torch.zeros(3, dtype=torch.bfloat16).to(torch.float64)
        torch.cat([torch.ones(2), torch.ones(3)])
        torch.full((2,), 1 - 2j) * (3 + 1j)
        torch.ones(3).clamp(max=float("inf")).nan_to_num(float("nan"))
    return t


def test_save_and_load_is_the_identity(tmp_path):
    t = full_of_everything()
    path = save(t.trace, tmp_path / "step.json.gz")
    loaded = load(path)
    assert repr(loaded) == repr(t.trace)
    # NaN differs from itself: compare what is written, not the values.
    assert [str(op) for op in loaded.ops] == [str(op) for op in t.trace.ops]
    for name in ("calls", "storages", "parameters", "folds", "pointwise", "header"):
        assert getattr(loaded, name) == getattr(t.trace, name), name
    for execution in ("naive", "efficient"):
        again = tracer.price(loaded, execution=execution)
        assert again.total() == t.ledger(execution=execution).total()


def test_a_folded_trace(tmp_path):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(6)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model = Stack().to("meta")
    with Capture(model, fold=6) as capture:
        model(torch.zeros(2, 4, device="meta"))
    loaded = load(save(capture.trace, tmp_path / "folded.json.gz"))
    assert loaded == capture.trace
    assert [type(op.args) for op in loaded.ops] == [tuple] * len(loaded.ops)


def test_the_same_trace_gives_the_same_bytes(tmp_path):
    t = full_of_everything()
    first, second = save(t.trace, tmp_path / "a"), save(t.trace, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert save(load(first), tmp_path / "c").read_bytes() == first.read_bytes()


def test_reading_and_pricing_need_no_torch(tmp_path):
    path = save(full_of_everything().trace, tmp_path / "step.json.gz")
    program = (
        "import sys, tracer\n"
        f"t = tracer.load({str(path)!r})\n"
        "print(t.flops, t.on('h200_sxm').step > 0, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    flops = 3 * 2 * 3 * (4 * 8 + 8 * 2) - 2 * 3 * 4 * 8  # no gradient of the input
    assert done.stdout.split() == [str(flops), "True", "False"]


BAD = {
    "empty": b"",
    "text": b"hello",
    "not json": gzip.compress(b"{not json"),
    "list": gzip.compress(b"[1, 2]"),
    "other format": gzip.compress(json.dumps({"format": "other"}).encode()),
    "newer": gzip.compress(json.dumps({"format": "tracer-trace", "version": 99}).encode()),
    "hollow": gzip.compress(json.dumps({"format": "tracer-trace", "version": 1}).encode()),
    "no version": gzip.compress(json.dumps({"format": "tracer-trace"}).encode()),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_clear_line(tmp_path, kind):
    path = tmp_path / "bad.json.gz"
    path.write_bytes(BAD[kind])
    with pytest.raises(tracer.UserError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file(tmp_path):
    path = save(full_of_everything().trace, tmp_path / "step.json.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(tracer.UserError, match="damaged"):
        load(path)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(tracer.UserError, match="no trace at"):
        load(tmp_path / "none")
    with pytest.raises(tracer.UserError):
        load(tmp_path)


def test_nothing_is_left_when_writing_fails(tmp_path):
    t = full_of_everything()
    t.trace.header["bad"] = object()  # not JSON
    with pytest.raises(TypeError):
        save(t.trace, tmp_path / "x.json.gz")
    assert list(tmp_path.iterdir()) == []
