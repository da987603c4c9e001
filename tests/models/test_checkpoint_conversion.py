"""BF16 <-> FP8 on disk: what is written, that it is whole, and what comes back."""

import json

import pytest
import torch
from released_checkpoints import (
    INDEX,
    SMALL,
    quantized,
    random_model,
    released_tensors,
    same_bytes,
    shard_name,
    write,
)
from safetensors.torch import load_file

from tracer.models import convert as convert_module
from tracer.models import strips
from tracer.models.checkpoint import load_model
from tracer.models.convert import convert
from tracer.models.shards import CheckpointError, open_checkpoint


@pytest.fixture(scope="module")
def model():
    return random_model(SMALL)


@pytest.fixture(scope="module")
def tensors(model):
    return released_tensors(model)


@pytest.fixture(scope="module")
def want(model):
    return quantized(model, SMALL)


@pytest.fixture
def bf16(tmp_path, tensors):
    return write(tmp_path / "bf16", tensors, SMALL)


def run(source, folder, dtype):
    return list(convert(open_checkpoint(source), folder, dtype))


def contents(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


@pytest.fixture(params=[1, 4 << 20], ids=["many strips", "one strip"])
def strip_bytes(request, monkeypatch):
    monkeypatch.setattr(strips.spans, "__defaults__", (request.param,))


@pytest.mark.usefixtures("strip_bytes")
def test_to_fp8_is_the_quantised_model(tmp_path, bf16, want):
    written = run(bf16, tmp_path / "fp8", "fp8")
    assert [w.shard for w in written] == [shard_name(i) for i in (1, 2, 3)]
    assert all((tmp_path / "fp8" / w.shard).stat().st_size == w.nbytes for w in written)
    held, found = released_tensors(want), contents(tmp_path / "fp8")
    assert found.keys() == held.keys()
    assert all(torch.equal(found[n].view(torch.uint8), held[n].view(torch.uint8)) for n in held)
    loaded = load_model(tmp_path / "fp8", mtp=True)
    assert same_bytes(loaded, want)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(loaded(ids), want(ids))
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    # A weight and its scales lie in one shard, as in the release.
    where = json.loads((tmp_path / "fp8" / INDEX).read_text())["weight_map"]
    assert where.keys() == held.keys()
    assert all(where[n] == where[n.removesuffix("_scale_inv")] for n in where)


def test_round_trip(tmp_path, bf16, tensors):
    """What comes back lies within half a step of E4M3; once it has, it comes back the same."""
    run(bf16, tmp_path / "fp8", "fp8")
    run(tmp_path / "fp8", tmp_path / "back", "bf16")
    run(tmp_path / "back", tmp_path / "again", "fp8")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "quantization_config" not in config
    stored = contents(tmp_path / "fp8")
    back, again = contents(tmp_path / "back"), contents(tmp_path / "again")
    assert back.keys() == tensors.keys()
    changed = 0
    for name, tensor in tensors.items():
        scale = stored.get(f"{name}_scale_inv")
        if scale is None:
            assert torch.equal(back[name], tensor)
            continue
        changed += 1
        w, got = tensor.double(), back[name].double()
        rows, columns = w.shape
        s = torch.kron(scale.double(), torch.ones(128, 128).double())[:rows, :columns]
        # E4M3 has 3 bits behind the point: half a step is at most 2^-4 of the number, and below
        # 2^-6 it is 2^-10. BF16, with 7 bits, rounds the product once more, by at most 2^-8 of it;
        # FP32 rounds quotient, scale and product.
        step = torch.maximum(w.abs() * 2.0**-4, s * 2.0**-10)
        slack = got.abs() * 2.0**-8 + w.abs() * 2.0**-22
        assert ((w - got).abs() <= step + slack).all(), name
        # BF16 moves a value by 2^-8 and the scale of its block by as much: together less than half
        # a step of E4M3, which is 2^-5 of the number or more, so no value changes its code.
        assert torch.equal(again[name].view(torch.uint8), stored[name].view(torch.uint8)), name
    assert changed == len(stored) - len(tensors)


def test_interrupted_and_picked_up(tmp_path, bf16, monkeypatch):
    """Fails in the second shard: the first stays, no half of the second, no index; then goes on."""
    folder, plain = tmp_path / "fp8", tmp_path / "plain"
    run(bf16, plain, "fp8")
    calls = []

    def numbers(reader, entry):
        calls.append(entry.name)
        for count, item in enumerate(strips.numbers(reader, entry)):
            if entry.shard == shard_name(2) and count == 0 and len(calls) % 7 == 0:
                raise OSError(28, "No space left on device", str(folder / "x"))
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "numbers", numbers)
        with pytest.raises(CheckpointError, match="No space left"):
            run(bf16, folder, "fp8")
    assert sorted(path.name for path in folder.iterdir()) == [shard_name(1)]
    load_file(folder / shard_name(1))
    with pytest.raises(CheckpointError, match="cut short"):
        open_checkpoint(folder)
    assert [w.kept for w in run(bf16, folder, "fp8")] == [True, False, False]
    for path in plain.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_shards_of_another_source_are_not_kept(tmp_path, bf16, tensors):
    folder = tmp_path / "fp8"
    run(bf16, folder, "fp8")
    (folder / INDEX).unlink()
    twice = {name: tensor * 2 for name, tensor in tensors.items()}
    source = write(tmp_path / "other", twice, SMALL)
    assert not any(w.kept for w in run(source, folder, "fp8"))
    run(source, tmp_path / "fresh", "fp8")
    found, fresh = contents(folder), contents(tmp_path / "fresh")
    assert all(torch.equal(found[n].view(torch.uint8), fresh[n].view(torch.uint8)) for n in fresh)
    assert torch.equal(found["model.norm.weight"], tensors["model.norm.weight"] * 2)


def test_companions_come_along(tmp_path, bf16):
    (bf16 / "tokenizer.json").write_text("{}")
    (bf16 / ".hidden").write_text("x")
    run(bf16, tmp_path / "fp8", "fp8")
    assert (tmp_path / "fp8" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "fp8" / ".hidden").exists()


def test_refused(tmp_path, bf16):
    with pytest.raises(CheckpointError, match="is not FP8 already"):
        run(bf16, tmp_path / "x", "bf16")
    with pytest.raises(CheckpointError, match="the same folder"):
        run(bf16, bf16 / ".." / "bf16", "fp8")
    run(bf16, tmp_path / "fp8", "fp8")
    with pytest.raises(CheckpointError, match="is FP8 already"):
        run(tmp_path / "fp8", tmp_path / "x", "fp8")
    with pytest.raises(CheckpointError, match="holds a checkpoint already"):
        run(bf16, tmp_path / "fp8", "fp8")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        run(bf16, tmp_path / "file" / "x", "fp8")
    assert not (tmp_path / "x").exists()
