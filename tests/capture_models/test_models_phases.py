"""Phases, inputs and sizes are found from the model; what does not fit is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TEXT, default, ledger, program, trace

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.huggingface.config import is_uniform, with_layers
from tracer.capture.inputspec import parse_input
from tracer.capture.program import load_program
from tracer.capture.workload import Workload, record
from tracer.errors import UserError

CAUSAL = ("training", "prefill", "decode")
ENCODER = ("training", "forward")
PHASES = {
    "llama": CAUSAL, "mamba2": CAUSAL, "falcon": CAUSAL, "rwkv": CAUSAL, "qwen3_next": CAUSAL,
    "openai-gpt": ("training", "prefill"), "bert": ENCODER, "deberta-v2": ENCODER, "vit": ENCODER,
    "convnext": ENCODER, "clip": ENCODER, "wav2vec2": ENCODER, "sam": ENCODER,
    "bart": (*ENCODER, "decode"), "whisper": (*ENCODER, "decode"), "llava": CAUSAL,
}  # fmt: skip


@pytest.mark.parametrize("kind", PHASES)
def test_phases_are_found(kind: str) -> None:
    assert default(kind).phases == PHASES[kind]


@pytest.mark.parametrize(("kind", "phase"), [("vit", "decode"), ("bert", "prefill")])
def test_a_phase_that_a_model_lacks_lists_those_it_has(kind: str, phase: str) -> None:
    with pytest.raises(UserError, match=f"cannot run phase '{phase}': it has training, forward$"):
        record(default(kind), Workload(phase))


def test_learned_positions_end() -> None:
    assert default("gpt2").longest == 1024
    assert default("bert").longest == 512
    assert default("llama").longest is None
    assert default("vit").longest is None
    with pytest.raises(UserError, match="learned positions for 1024 tokens: --seq 2048 is too lo"):
        trace(default("gpt2"), "prefill", seq=2048)


SIZES: dict[str, tuple[str, tuple[int, ...]]] = {
    "vit": ("aten.convolution.default", (2, 3, 224, 224)),
    "whisper": ("aten.convolution.default", (2, 80, 3000)),
    "videomae": ("aten.convolution.default", (2, 3, 16, 224, 224)),
}


@pytest.mark.parametrize("kind", SIZES)
def test_inputs_have_the_sizes_of_the_config(kind: str) -> None:
    name, shape = SIZES[kind]
    found = trace(default(kind), "forward", batch=2, seq=16)
    assert next(op for op in found.ops if op.name == name).args[0].shape == shape


def test_an_input_of_ones_own_replaces_the_one_that_was_found() -> None:
    config = default("vit").config
    small = (parse_input("pixel_values:bf16[B,3,64,64]"),)
    vit = HuggingFaceProgram("vit", config, inputs=small)
    with pytest.raises(UserError, match=r"Input image size \(64\*64\) doesn't match model"):
        trace(vit, "forward")
    resnet = HuggingFaceProgram("resnet", default("resnet").config, inputs=small)
    stem = next(op for op in trace(resnet, "forward").ops if "convolution" in op.name)
    assert stem.args[0].shape == (2, 3, 64, 64)
    with pytest.raises(UserError, match="name it, as the model's forward does"):
        HuggingFaceProgram("vit", config, inputs=(parse_input("bf16[B]"),))


def test_a_prompt_with_an_image_has_a_placeholder_for_every_patch() -> None:
    llava = default("llava")
    found = trace(llava, "prefill", batch=2, seq=800)
    vision = [op for op in found.ops if "vision_tower" in found.module_of(op)]
    assert next(op for op in vision if "convolution" in op.name).args[0].shape == (2, 3, 336, 336)
    scatter = [op for op in found.ops if op.name == "aten.masked_scatter.default"]
    # 24 x 24 patches, the class token left out, in the text's width
    assert scatter[0].args[2].numel == 2 * 24 * 24 * 4096
    with pytest.raises(UserError, match="image takes 576 tokens of every sequence"):
        trace(llava, "prefill", batch=2, seq=500)


def test_recurrent_states_exist_before_a_decode_step() -> None:
    for kind in ("mamba2", "rwkv"):
        step = trace(default(kind), "decode", batch=2, seq=16, context=64)
        assert step.header["context"] == 64
        assert any(storage.role == "kv" for storage in step.storages)


def test_layers_cut_every_list_that_tells_layers_apart() -> None:
    config = default("gemma3_text").config
    assert not is_uniform(with_layers(type(config)(), 12))
    assert is_uniform(default("llama").config)
    assert default("gemma3_text").layers == 2  # two sliding ones
    assert len(with_layers(type(config)(), 3).layer_types) == 3
    with pytest.raises(UserError, match=r"--layers 2: .* names no number of layers"):
        with_layers(type("C", (), {"to_dict": lambda self: {"width": 4}})(), 2)


def test_a_stack_of_several_kinds_is_not_folded() -> None:
    """Models walk `layer_types[i]` by position: a short stack would get another layer's mask."""
    kinds = (["sliding_attention"] * 3 + ["full_attention"]) * 3
    gemma = program("gemma3_text", **TEXT | {"num_hidden_layers": 12}, layer_types=kinds)
    assert gemma.layers == 0
    work = Workload("prefill", 2, 32, 32, "none")
    assert len(record(gemma, work, fold=True)) == len(record(gemma, work, fold=False))


def test_layerdrop_is_off_and_said_so() -> None:
    found = trace(default("wav2vec2"), "training", batch=1, seq=16)
    assert any("layerdrop" in note for note in found.header["notes"])


def write(folder: Path, **fields: Any) -> str:
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


def test_a_folder_says_which_class_to_build(tmp_path: Path) -> None:
    text = {**TEXT, "num_hidden_layers": 2}
    base = write(tmp_path, model_type="llama", architectures=["LlamaModel"], **text)
    assert load_program(base).phases == ENCODER
    full = write(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"], **text)
    assert load_program(full).source == "transformers LlamaForCausalLM"
    assert load_program(full + "/config.json", layers=1).layers == 1


def test_a_config_that_does_not_build_says_why(tmp_path: Path) -> None:
    broken = write(tmp_path, model_type="llama", **TEXT | {"hidden_size": -4})
    with pytest.raises(UserError, match=r"cannot (build|read)"):
        load_program(broken)
    with pytest.raises(UserError, match="in bf16 only"):
        load_program(write(tmp_path, model_type="llama", **TEXT), dtype="fp8")


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])
def test_a_state_space_decodes_one_token_whatever_came_before(kind: str) -> None:
    """Not its whole past, over which a mask of all ones would spread it: of two layers 768 wide,
    inner 1536, 16 states and a rank of 48, and a head of 50,280.
    """
    layer = 768 * 2 * 1536 + 1536 * (48 + 2 * 16) + 48 * 1536 + 1536 * 16 + 1536 * 768
    for context in (33, 97):
        kernels = ledger(trace(default(kind), "decode", batch=2, context=context)).kernels
        products = sum(k.cost.total_flops for k in kernels if k.kind != "conv")
        assert products == 2 * 2 * (2 * layer + 768 * 50_280)  # 2 FLOPs, 2 tokens
