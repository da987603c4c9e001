"""Folders of transformers through the command: all phases, numbers by hand, folded = full."""

import command_line
import pytest
from command_line import document

SIZES = ("--batch", "2", "--seq", "32", "--context", "48")
D, FFN, LAYERS, HEADS, KV, V = 32, 64, 6, 4, 2, 96
HEAD = D // HEADS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        kind: command_line.transformers_folder(kind, tmp_path_factory.mktemp(kind))
        for kind in ("llama", "gemma2", "mixtral")
    }


@pytest.fixture(scope="module")
def found(folders):
    """The documents of all three, every phase and execution."""
    return {kind: document("--hf-config", folder, *SIZES) for kind, folder in folders.items()}


def by_phase(found, execution="efficient"):
    return {r["phase"]: r for r in found["results"] if r["exec"] == execution}


def llama_flops(batch, seq, pairs):
    """Matrix FLOPs of one forward: projections, SwiGLU, head, attention."""
    tokens = batch * seq
    projections = D * (HEADS + 2 * KV) * HEAD + HEADS * HEAD * D
    linear = LAYERS * (projections + 3 * D * FFN) + D * V
    return 2 * tokens * linear + LAYERS * batch * HEADS * pairs * 2 * 2 * HEAD


def test_llama_by_hand(found):
    model = found["llama"]["model"]
    layer = D * (HEADS + 2 * KV) * HEAD + HEADS * HEAD * D + 3 * D * FFN + 2 * D
    assert model["parameters"] == LAYERS * layer + 2 * V * D + D
    assert model["active_parameters_per_token"] == model["parameters"]
    assert model["kv_bytes_per_token"] == 2 * 2 * LAYERS * KV * HEAD
    results = by_phase(found["llama"])
    pairs = 32 * 33 // 2
    assert results["prefill"]["flops"] == llama_flops(2, 32, pairs)
    assert results["decode"]["flops"] == llama_flops(2, 1, 48)
    assert results["training"]["flops"] == 3 * llama_flops(2, 32, pairs)
    # Decode reads every weight but the embedding table once, and the cache of both sequences.
    decode = results["decode"]["bytes"]
    rows = 2 * 2 * D  # two rows of the embedding
    assert decode["weights"] == pytest.approx(2 * (LAYERS * layer + V * D + D) + rows, rel=0.01)
    cache = 2 * 48 * model["kv_bytes_per_token"]
    assert cache <= decode["kv"] <= cache * 1.05 + 2 * model["kv_bytes_per_token"]


def test_the_gradient_and_the_optimizer_by_hand(folders, found):
    parameters = found["llama"]["model"]["parameters"]
    memory = by_phase(found["llama"])["training"]["memory"]
    assert memory["weights"] == pytest.approx(2 * parameters, rel=0.01)
    assert memory["gradients"] == 2 * parameters
    # FP32 master weights and two moments; step counters beside them.
    assert 12 * parameters <= memory["optimizer"] <= 12 * parameters + 4 * 100
    without = document(
        "--hf-config", folders["llama"], *SIZES, "--phase", "training", "--exec",
        "efficient", "--optimizer", "none",
    )  # fmt: skip
    assert by_phase(without)["training"]["memory"]["optimizer"] == 0


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral"])
def test_every_phase_and_execution_and_folded_is_full(folders, found, kind):
    folded = found[kind]
    full = document("--hf-config", folders[kind], *SIZES, "--full")
    assert {(r["phase"], r["exec"]) for r in folded["results"]} == {
        (p, e) for p in ("training", "prefill", "decode") for e in ("naive", "efficient")
    }
    assert folded["model"] == full["model"]
    for a, b in zip(folded["results"], full["results"], strict=True):
        where = (a["phase"], a["exec"])
        assert a["flops"] == b["flops"], where
        assert a["vector_flops"] == b["vector_flops"], where
        assert a["bytes"] == b["bytes"], where
        assert a["memory"] == b["memory"], where
        assert a["kernel_launches"] == b["kernel_launches"], where
        assert a["t_step"] == pytest.approx(b["t_step"]), where
        assert "unmodelled" not in a["coverage"], where


def test_mixtral_activates_two_of_eight(found):
    model = found["mixtral"]["model"]
    expert = 3 * D * FFN
    attention = D * (HEADS + 2 * KV) * HEAD + HEADS * HEAD * D
    outside = 2 * V * D + D + LAYERS * (attention + 2 * D + 8 * D)
    assert model["parameters"] == outside + LAYERS * 8 * expert
    assert model["active_parameters_per_token"] == outside + LAYERS * 2 * expert


def test_gemma_slides_over_its_window(found):
    results = by_phase(found["gemma2"])
    window, s, head = 16, 32, 8
    full = s * (s + 1) // 2
    sliding = sum(min(i + 1, window) for i in range(s))
    tokens = 2 * s
    projections = D * (HEADS + 2 * KV) * head + HEADS * head * D
    linear = LAYERS * (projections + 3 * D * FFN) + D * V
    pairs = (LAYERS // 2) * (full + sliding)
    assert results["prefill"]["flops"] == 2 * tokens * linear + 2 * HEADS * pairs * 2 * 2 * head
    # A decoded token sees 48 keys in every other layer and the last 16 in the others.
    pairs = (LAYERS // 2) * (48 + 16)
    assert results["decode"]["flops"] == 2 * 2 * linear + 2 * HEADS * pairs * 2 * 2 * head


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_config_file_is_as_good_as_its_folder(folders, found, kind):
    only = ("--phase", "decode", "--exec", "efficient")
    file = document("--hf-config", f"{folders[kind]}/config.json", *SIZES, *only)
    assert file["results"] == [by_phase(found[kind])["decode"]]


def test_batch_and_length_scale_as_they_should(folders):
    def flops(batch, seq):
        found = document(
            "--hf-config", folders["llama"], "--batch", batch, "--seq", seq, "--phase",
            "prefill", "--exec", "efficient",
        )  # fmt: skip
        return found["results"][0]["flops"]

    assert flops(6, 16) == 3 * flops(2, 16)
    for seq in (1, 7, 40):
        assert flops(1, seq) == llama_flops(1, seq, seq * (seq + 1) // 2)
