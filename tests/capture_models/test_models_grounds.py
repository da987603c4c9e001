"""One program whatever it runs on: meta, fake and real CPU tensors dispatch the same ops."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tiny_models import TEXT, program, trace

from tracer.capture.grounds import FAKE, META, REAL, VALUES
from tracer.capture.records import Trace

PLAIN = {k: v for k, v in TEXT.items() if k not in ("num_key_value_heads", "head_dim")}
VISION = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
# No dropout inside of attention: the CPU's fused kernel has none and torch decomposes it there.
MODELS: dict[str, dict[str, Any]] = {
    "llama": TEXT,
    "qwen3": TEXT,
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 256, "attn_pdrop": 0.0},
    "opt": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128,
            "vocab_size": 256, "word_embed_proj_dim": 64},
    "bert": {**PLAIN, "attention_probs_dropout_prob": 0.0},
    "bart": {"vocab_size": 256, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
             "decoder_ffn_dim": 128},
    "gpt_neox": PLAIN,
    "vit": VISION,
    "dinov2": VISION,
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
               "layer_type": "basic"},
}  # fmt: skip
ATTENTION = "attention"


def rows(of: Trace) -> list[tuple[Any, ...]]:
    """Name, shapes, module and phase of every op; a CPU has attention kernels of its own."""
    found = []
    for op in of.ops:
        fused = "_attention" in op.name
        name = ATTENTION + ("_backward" if "backward" in op.name else "") if fused else op.name
        shapes = tuple(ref.shape for ref in op.inputs()) if not fused else ()
        # Log-sum-exps and a batch norm's saved statistics have shapes that differ by device.
        outputs = op.outputs[0].shape if op.outputs else ()
        found.append((name, shapes, outputs, of.module_of(op), op.phase))
    return found


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("phase", ["inference", "training"])
def test_the_same_ops_on_every_ground(kind: str, phase: str) -> None:
    model = program(kind, **MODELS[kind])
    name = model.phases[1] if phase == "inference" else "training"
    traces = {}
    for ground in (META, VALUES, FAKE, REAL):
        model.grounds = (ground,)
        traces[ground] = rows(trace(model, name, batch=1, seq=16))
    expected = traces.pop(META)
    for ground, found in traces.items():
        assert found == expected, ground


def test_a_window_is_a_mask_on_the_cpu() -> None:
    model = program("gemma2", **TEXT, sliding_window=8)
    counts = {}
    for ground in (META, REAL):
        model.grounds = (ground,)
        found = trace(model, "prefill", batch=1, seq=16)
        counts[ground] = Counter(op.name for op in found.ops)
    assert counts[META]["aten._flash_attention_forward.default"] == 1
    assert counts[REAL]["aten._flash_attention_forward.default"] == 0
    for name in ("aten.mm.default", "aten.embedding.default", "aten.rsqrt.default"):
        assert counts[REAL][name] == counts[META][name] > 0
    assert any("real CPU tensors" in note for note in found.header["notes"])


def test_a_module_that_no_ground_serves_reports_the_first_error() -> None:
    model = program("llama", **TEXT)
    model.grounds = (META,)
    assert trace(model, "prefill").header["ground"] == META
    assert trace(model, "prefill").header["notes"] == []
