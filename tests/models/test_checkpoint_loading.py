"""A released checkpoint in the model gives the logits of the model that it was made of."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from released_checkpoints import (
    SMALL,
    quantized,
    random_model,
    released_tensors,
    replace,
    same_bytes,
    write,
)
from small_configs import V2_LITE, V3

from tracer.models import ConfigError, build
from tracer.models.checkpoint import load_model, save_model
from tracer.models.shards import CheckpointError, open_checkpoint
from tracer.models.weight_stats import weight_stats

IDS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(5))


def logits(model, mtp=False):
    with torch.no_grad():
        return model(IDS, next_ids_BS=IDS.roll(-1, 1)) if mtp else (model(IDS),)


def assert_same_logits(left, right, mtp=False):
    pairs = zip(logits(left, mtp), logits(right, mtp), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("mtp", [False, True])
@pytest.mark.parametrize(("config", "precision"), [(V3, "bf16"), (SMALL, "bf16"), (SMALL, "fp8")])
def test_logits_are_those_of_the_model_it_was_made_of(tmp_path, config, precision, mtp):
    model = random_model(config, precision)
    loaded = load_model(write(tmp_path / "c", released_tensors(model), config), mtp=mtp)
    assert_same_logits(model, loaded, mtp)
    assert not loaded.training
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
    # FP8 stays SMALL, so a decoded token needs the absorbed weights as in the original.
    assert {p.dtype for p in loaded.parameters()} == {
        p.dtype
        for name, p in model.named_parameters()
        if mtp or f"layers.{config['num_hidden_layers']}" not in name
    }


def test_without_mtp_the_layer_is_not_built(tmp_path):
    model = random_model(V3)
    folder = write(tmp_path / "c", released_tensors(model), V3)
    assert len(load_model(folder).model.layers) == 3
    assert len(load_model(folder, mtp=True).model.layers) == 4


@pytest.mark.parametrize("change", [{}, {"tie_word_embeddings": True}])
def test_v2_lite_and_tied_embeddings(tmp_path, change):
    """No query compression, no gate bias, no MTP; a tied head is stored once and shared again."""
    config = {**V2_LITE, **change}
    model = random_model(config, mtp=False)
    tensors = released_tensors(model)
    if change:
        del tensors["lm_head.weight"]
    loaded = load_model(write(tmp_path / "c", tensors, config))
    assert_same_logits(model, loaded)
    shared = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert shared is bool(change)


def test_fp8_dequantises_on_the_way(tmp_path):
    """Value times scale in FP32, then rounded to BF16: spelled out for every matrix."""
    model = random_model(SMALL, "fp8")
    loaded = load_model(
        write(tmp_path / "c", released_tensors(model), SMALL), precision="bf16", mtp=True
    )
    state, checked = model.state_dict(), 0
    for name, weight in loaded.state_dict().items():
        scale = state.get(f"{name}_scale_inv")
        if scale is None:
            assert torch.equal(weight, state[name])
            continue
        wide = torch.kron(scale, torch.ones(128, 128))[..., : weight.shape[-2], : weight.shape[-1]]
        assert torch.equal(weight, (state[name].float() * wide).bfloat16()), name
        checked += 1
    # 2 + 1 layers: attention 5; one dense MLP 3; two MoE: 3 stacks, 3 shared.
    assert checked == 3 * 5 + 3 + 2 * (3 + 3)


def test_bf16_quantises_on_the_way(tmp_path):
    model = random_model(SMALL)
    folder = write(tmp_path / "c", released_tensors(model), SMALL)
    loaded, want = load_model(folder, precision="fp8", mtp=True), quantized(model, SMALL)
    assert same_bytes(loaded, want)
    assert_same_logits(loaded, want, mtp=True)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_saved_is_what_the_release_holds(tmp_path, precision):
    """The safetensors library reads the same tensors back from many small shards."""
    from safetensors.torch import load_file

    model = random_model(SMALL, precision)
    save_model(model, tmp_path / "c", SMALL, shard_bytes=400_000)
    found = {}
    shards = sorted((tmp_path / "c").glob("*.safetensors"))
    assert len(shards) > 5
    for shard in shards:
        found |= load_file(shard)
    want = released_tensors(model)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[n].view(torch.uint8), want[n].view(torch.uint8)) for n in want)
    assert same_bytes(load_model(tmp_path / "c", mtp=True), model)


def test_an_own_embedding_of_the_mtp_layer_is_refused(tmp_path):
    """The model shares it, so another one would silently be lost."""
    model = random_model(V3)
    tensors = released_tensors(model)
    folder = write(tmp_path / "c", tensors, V3)
    name = "model.layers.3.embed_tokens.weight"
    other = tensors[name].clone()
    other[5, 7] += 1
    replace(folder, name, other)
    load_model(folder)
    with pytest.raises(CheckpointError, match=f"{name} differs from model.embed_tokens.weight"):
        load_model(folder, mtp=True)


def test_mtp_that_the_config_does_not_have(tmp_path):
    config = {**V3, "num_nextn_predict_layers": 0}
    folder = write(tmp_path / "c", released_tensors(random_model(config, mtp=False)), config)
    with pytest.raises(ConfigError, match="no MTP layer"):
        load_model(folder, mtp=True)


# -- memory ----------------------------------------------------------------------------------------

WIDE = {**SMALL, "vocab_size": 131072, "num_nextn_predict_layers": 0}
LARGEST = 131072 * 256 * 2  # embedding and head: 67 MB each


def peak(job: Callable[[Path], object], folder: Path) -> int:
    """Bytes by which the resident memory of a new process grew at most while it did the job.

    In a process that has worked before, memory that was freed but never returned to the system
    is filled again and no growth is seen.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(growth, job, folder).result()


def growth(job: Callable[[Path], object], folder: Path) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    job(folder)
    return resident("VmHWM") - before


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


needs_peaks = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be measured here"
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    model = build(WIDE, device="cpu").init_weights()
    folder = tmp_path_factory.mktemp("wide") / "c"
    save_model(model, folder, WIDE, shard_bytes=50_000_000)
    return folder


@needs_peaks
def test_loading_holds_the_model_and_at_most_one_tensor_more(wide):
    size = sum(path.stat().st_size for path in wide.glob("*.safetensors"))
    assert size > 2 * LARGEST
    grown = peak(load_model, wide)
    assert size * 0.9 < grown <= size + LARGEST
    # Loading twice over would be 2·size, well above the limit.
    assert 2 * size > size + LARGEST


def all_statistics(folder: Path) -> int:
    return sum(row.count for row in weight_stats(open_checkpoint(folder), workers=2))


@needs_peaks
def test_statistics_hold_at_most_two_of_the_largest_tensor(wide):
    assert LARGEST / 2 < peak(all_statistics, wide) <= 2 * LARGEST
