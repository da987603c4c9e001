"""Counts from headers, against the model, the config and a published checkpoint; the hub's too."""

import json
import math
from collections import Counter
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import get_local_safetensors_metadata
from huggingface_hub.errors import (
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
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
from small_configs import FP8, V3

from tracer.models import Config, bundled_config
from tracer.models.inventory import find_checkpoint, inventory
from tracer.models.layout import expected
from tracer.models.shards import CheckpointError, open_checkpoint


def test_deepseek_v3_is_the_published_one():
    """Elements by dtype as huggingface.co counts them: `safetensors.parameters` of
    /api/models/deepseek-ai/DeepSeek-V3.
    """
    config = Config.from_hf(bundled_config("deepseek-ai/DeepSeek-V3"))
    slots = expected(config, fp8=True, mtp=True)
    elements = Counter()
    for slot in slots.values():
        elements[slot.dtype] += math.prod(slot.shape)
    assert elements == {"F8_E4M3": 680_571_043_840, "BF16": 3_918_786_560, "F32": 41_555_600}
    assert sum(elements.values()) == 684_531_386_000
    # 58 + 1 layers of 256 experts with 3 matrices, each with scales: 90,624 of the tensors.
    assert sum(".mlp.experts." in name for name in slots) == 59 * 256 * 3 * 2
    # Others: dense 3 layers, MoE 58, MTP 1. Norms 4, attention 5 with scales; MLP 3 with scales, or
    # shared experts 3 with scales, gate and bias; MTP 3 norms, eh_proj, embedding, head; top 3.
    assert len(slots) == 59 * 1536 + 62 * (4 + 10) + 3 * 6 + 59 * (6 + 2) + 6 + 3
    assert len(slots) == 91_991


@pytest.mark.parametrize(("config", "precision"), [(V3, "bf16"), (FP8, "fp8")])
def test_counts(tmp_path, config, precision):
    tensors = released_tensors(random_model(config, precision))
    folder = write(tmp_path / "c", tensors, config)
    found = inventory(open_checkpoint(folder))
    assert found.agrees is True
    elements, nbytes = Counter(), Counter()
    codes = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
    for tensor in tensors.values():
        elements[codes[tensor.dtype]] += tensor.numel()
        nbytes[codes[tensor.dtype]] += tensor.numel() * tensor.element_size()
    assert found.elements == elements
    assert found.nbytes == nbytes
    assert found.shards == {p.name: p.stat().st_size for p in folder.glob("*.safetensors")}
    assert sum(line.tensors for line in found.lines) == len(tensors)
    (line,) = [
        ln for ln in found.lines if ln.pattern == "model.layers.*.mlp.experts.*.up_proj.weight"
    ]
    experts = config["n_routed_experts"]
    # Layers 1, 2 and the MTP layer have experts.
    assert line.tensors == 3 * experts
    assert line.elements == 3 * experts * config["moe_intermediate_size"] * config["hidden_size"]
    json.dumps(found.as_dict(), allow_nan=False)


def test_one_file_without_an_index(tmp_path):
    folder = write(tmp_path / "c", released_tensors(random_model(V3)), V3, shards=1)
    (folder / INDEX).unlink()
    (folder / shard_name(1, 1)).rename(folder / "model.safetensors")
    assert inventory(open_checkpoint(folder)).agrees is True


def test_differences_are_listed(tmp_path):
    tensors = released_tensors(random_model(V3))
    del tensors["model.norm.weight"]
    tensors["extra.weight"] = torch.ones(2)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float()  # another float: no difference
    folder = write(tmp_path / "c", tensors, V3)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    replace(folder, name, torch.ones(32, 63).bfloat16())
    index = json.loads((folder / INDEX).read_text())
    shard = index["weight_map"].pop("extra.weight")
    index["weight_map"]["extra.weight"] = shard
    unindexed = "model.layers.0.mlp.up_proj.weight"
    del index["weight_map"][unindexed]
    (folder / INDEX).write_text(json.dumps(index))
    found = inventory(open_checkpoint(folder))
    assert found.agrees is False
    assert set(found.missing) == {"model.norm.weight", unindexed}
    assert found.unexpected == ("extra.weight",)
    assert found.unindexed == (unindexed,)
    (mismatch,) = found.mismatched
    assert mismatch.startswith(f"{name} ({shard_of(folder, name).name}): BF16 [32, 63]")
    assert mismatch.endswith("BF16 [32, 64]")


def test_another_family_is_counted_but_not_compared(tmp_path):
    folder = write(tmp_path / "c", {"w": torch.ones(2, 3)}, {"model_type": "llama"}, shards=1)
    found = inventory(open_checkpoint(folder))
    assert (found.agrees, found.missing, found.elements) == (None, None, {"F32": 6})


# -- the hub, whose metadata comes from a folder here ----------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = write(tmp_path / "c", released_tensors(random_model(SMALL, "fp8")), SMALL)

    def metadata(repo_id):
        assert repo_id == "someone/small"
        return get_local_safetensors_metadata(folder)

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: folder / name)
    return folder


def test_hub_counts_as_the_folder_does(hub):
    remote, local = inventory(find_checkpoint("someone/small")), inventory(open_checkpoint(hub))
    assert remote.where == "someone/small"
    assert remote.agrees is True
    assert remote.lines == local.lines
    assert (remote.elements, remote.nbytes) == (local.elements, local.nbytes)
    # On the hub the size of a shard is that of its tensors, a header less than that of the file.
    assert sum(remote.shards.values()) == sum(local.nbytes.values())
    assert all(0 < local.shards[s] - size < 50_000 for s, size in remote.shards.items())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OfflineModeIsEnabled("offline mode is enabled"), "the hub cannot be asked"),
        (ConnectionError("Name or service not known"), "the hub cannot be asked"),
        (NotASafetensorsRepoError("'a/b' is not a safetensors repo.\nmore"), "not a safetensors"),
    ],
)
def test_hub_that_does_not_answer(monkeypatch, error, said):
    def fail(repo_id):
        raise error

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", fail)
    with pytest.raises(CheckpointError, match=said) as caught:
        find_checkpoint("a/b")
    assert str(caught.value).startswith("a/b: ")
    assert "\n" not in str(caught.value)


def http_error(kind):
    """As the hub's client raises it for a 404."""
    response = SimpleNamespace(status_code=404, headers={}, request=None)
    return kind("404\nnot found", response=response)


def test_hub_without_the_repository_or_its_config(hub, monkeypatch):
    def missing(repo, name):
        raise http_error(RemoteEntryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    assert inventory(find_checkpoint("someone/small")).agrees is None

    def nothing(repo):
        raise http_error(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", nothing)
    with pytest.raises(CheckpointError, match="the hub has no such repository"):
        find_checkpoint("a/b")


def test_a_path_is_never_looked_up(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", pytest.fail)
    for where in ("missing", "./a/b", "/a/b", "a/b/c"):
        with pytest.raises(CheckpointError, match="no such folder"):
            find_checkpoint(where)
