"""A damaged checkpoint is refused in one line that names the file and the tensor."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from released_checkpoints import (
    INDEX,
    SMALL,
    random_model,
    released_tensors,
    replace,
    shard_name,
    shard_of,
    write,
)

from tracer.models import fp8
from tracer.models.checkpoint import load_model
from tracer.models.convert import convert
from tracer.models.shards import CheckpointError, open_checkpoint, read_header
from tracer.models.weight_stats import weight_stats

Q = "model.layers.1.self_attn.q_a_proj.weight"  # E4M3 [128, 256], scales [1, 2]
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def tensors():
    return released_tensors(random_model(SMALL, "fp8"))


@pytest.fixture
def folder(tmp_path, tensors):
    return write(tmp_path / "c", tensors, SMALL)


def refused(job, *named) -> str:
    with pytest.raises(CheckpointError) as caught:
        job()
    message = str(caught.value)
    assert "\n" not in message
    for name in named:
        assert str(name) in message, message
    return message


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """One small shard as bytes, in a folder with an index."""
    tensors = {"a.weight": torch.ones(3, 5), "b.weight": torch.ones(7).bfloat16()}
    folder = write(tmp_path_factory.mktemp("t") / "c", tensors, {}, shards=1)
    return folder, (folder / shard_name(1, 1)).read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cut_anywhere(shard, data):
    """The first tensor that is not whole is named, or in a cut header one that the index has."""
    folder, whole = shard
    path = folder / shard_name(1, 1)
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole)
    ends = sorted((e.end, e.name) for e in read_header(path).values())
    path.write_bytes(whole[:cut])
    message = refused(lambda: open_checkpoint(folder), path)
    assert "truncated" in message
    header_end = len(whole) - sum((3 * 5 * 4, 7 * 2))
    first = "a.weight" if cut < header_end else next(name for end, name in ends if end > cut)
    assert first in message


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_byte_of_the_header_changed(shard, data):
    """Either it is refused as a checkpoint, or the tensors are those that the index has."""
    folder, whole = shard
    path = folder / shard_name(1, 1)
    size = 8 + int.from_bytes(whole[:8], "little")
    at, value = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 255))
    path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    try:
        found = open_checkpoint(folder)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    assert {n: e.nbytes for n, e in found.entries.items()} == {"a.weight": 60, "b.weight": 14}


def test_bytes_behind_the_last_tensor(shard):
    folder, whole = shard
    (folder / shard_name(1, 1)).write_bytes(whole + b"12")
    refused(lambda: open_checkpoint(folder), shard_name(1, 1), "2 bytes behind")


def test_something_else_than_safetensors(shard):
    folder, _ = shard
    (folder / shard_name(1, 1)).write_bytes(b"PK\x03\x04 a zip file of pytorch_model.bin")
    refused(lambda: open_checkpoint(folder), shard_name(1, 1), "not a safetensors file", "a.weight")


def test_missing_shard(folder):
    path = shard_of(folder, Q)
    path.unlink()
    refused(lambda: load_model(folder), path, "missing")


def test_index_names_a_tensor_that_its_shard_lacks(folder):
    replace(folder, Q, None)
    refused(lambda: load_model(folder), shard_of(folder, Q), f"holds no {Q}")


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}']
)
def test_index_that_is_none(folder, index):
    (folder / INDEX).write_text(index)
    refused(lambda: load_model(folder), folder / INDEX)


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder", "no index", "no config"])
def test_not_a_checkpoint(folder, tmp_path, what):
    place = {"nothing": tmp_path / "x", "a file": folder / INDEX}.get(what, folder)
    if what == "an empty folder":
        place = tmp_path / "e"
        place.mkdir()
    elif what == "no index":
        (folder / INDEX).unlink()
    elif what == "no config":
        (folder / "config.json").unlink()
    message = refused(lambda: load_model(place), place)
    said = {"no index": f"no {INDEX}", "no config": "no config.json", "an empty folder": "neither"}
    assert said.get(what, "no such folder") in message


def test_config_of_another_family(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    refused(lambda: load_model(folder), folder / "config.json", "llama")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (NORM, torch.ones(255).bfloat16()),
        ("model.layers.1.mlp.experts.3.up_proj.weight", torch.zeros(192, 255).to(fp8.E4M3)),
        ("model.layers.1.mlp.experts.3.up_proj.weight", torch.zeros(192, 256).bfloat16()),
        (f"{Q}_scale_inv", torch.ones(2, 2)),
    ],
)
def test_other_shape_or_kind_than_the_config_says(folder, name, tensor):
    replace(folder, name, tensor)
    refused(lambda: load_model(folder), shard_of(folder, name), name, list(tensor.shape))


@pytest.mark.parametrize("scale", [torch.ones(2, 2), torch.ones(1, 2).bfloat16(), torch.ones(2)])
def test_scales_that_do_not_fit(folder, tmp_path, scale):
    """For jobs that ask no config: before any tensor is read, or a file made."""
    name = f"{Q}_scale_inv"
    replace(folder, name, scale)
    checkpoint = open_checkpoint(folder)
    for job in (
        lambda: weight_stats(checkpoint),
        lambda: next(convert(checkpoint, tmp_path / "out", "bf16")),
    ):
        refused(job, shard_of(folder, name), name, "need F32 [1, 2]")
    assert not (tmp_path / "out").exists()


def test_scales_that_are_not_there(folder, tmp_path, tensors):
    kept = {name: t for name, t in tensors.items() if name != f"{Q}_scale_inv"}
    folder = write(tmp_path / "d", kept, SMALL)
    refused(lambda: load_model(folder), folder, f"{Q}_scale_inv")
    refused(lambda: weight_stats(open_checkpoint(folder)), shard_of(folder, Q), Q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float8_e5m2])
def test_dtype_that_weights_do_not_have(folder, tmp_path, dtype):
    replace(folder, NORM, torch.ones(256).to(dtype))
    checkpoint = open_checkpoint(folder)
    for job in (
        lambda: load_model(folder),
        lambda: weight_stats(checkpoint),
        lambda: next(convert(checkpoint, tmp_path / "out", "bf16")),
    ):
        refused(job, shard_of(folder, NORM), NORM, "supported are BF16, F16, F32, F8_E4M3")
    assert not (tmp_path / "out").exists()


def test_dtype_that_safetensors_does_not_have(shard):
    folder, whole = shard
    (folder / shard_name(1, 1)).write_bytes(re.sub(rb'"F32"', b'"X32"', whole))
    refused(lambda: open_checkpoint(folder), shard_name(1, 1), "a.weight", "'X32'")


def test_missing_and_unexpected(folder, tmp_path, tensors):
    less = {name: t for name, t in tensors.items() if name != NORM}
    refused(lambda: load_model(write(tmp_path / "a", less, SMALL)), tmp_path / "a", NORM)
    more = {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(4)}
    refused(
        lambda: load_model(write(tmp_path / "b", more, SMALL)),
        "model.layers.0.self_attn.q_proj.bias",
    )
    # Rotary frequencies are stored by some releases, and computed by the model.
    rotary = {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    load_model(write(tmp_path / "c2", rotary, SMALL))


def test_a_checkpoint_without_mtp_layer_loads_without(tmp_path, tensors):
    less = {name: t for name, t in tensors.items() if "layers.2." not in name}
    folder = write(tmp_path / "d", less, SMALL)
    load_model(folder)
    refused(lambda: load_model(folder, mtp=True), folder, "model.layers.2.")
