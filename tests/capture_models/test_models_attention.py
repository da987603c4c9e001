"""Our attention and mask functions compute what transformers' own do, on real numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import TEXT, randomise
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)

from tracer.capture.huggingface.attention import tracer_attention
from tracer.capture.huggingface.cache import in_place_cache, set_filled
from tracer.capture.huggingface.config import quiet
from tracer.capture.huggingface.masks import tracer_mask

SEQ = 21
PLAIN = {k: v for k, v in TEXT.items() if k not in ("num_key_value_heads", "head_dim")}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (AutoModelForCausalLM, TEXT),
    "mistral": (AutoModelForCausalLM, {**TEXT, "sliding_window": 6}),
    "gemma3_text": (AutoModelForCausalLM, {**TEXT, **SLIDING}),
    "cohere2": (AutoModelForCausalLM, {**TEXT, **SLIDING}),
    "gpt2": (AutoModelForCausalLM, {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 256}),
    "llama4_text": (
        AutoModelForCausalLM,
        {**TEXT, "num_local_experts": 2, "intermediate_size_mlp": 128, "attention_chunk_size": 6,
         "layer_types": ["chunked_attention", "full_attention"]},
    ),
    "bert": (AutoModel, PLAIN),
    "modernbert": (
        AutoModel,
        {**PLAIN, "local_attention": 6, "cls_token_id": 1, "sep_token_id": 2,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "t5": (
        AutoModelForSeq2SeqLM,
        {"vocab_size": 256, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2,
         "num_heads": 4, "decoder_start_token_id": 0},
    ),
    "bart": (
        AutoModelForSeq2SeqLM,
        {"vocab_size": 256, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
         "decoder_ffn_dim": 128},
    ),
}  # fmt: skip


def build(kind: str, attention: str) -> Any:
    """A small model in FP32 with the same weights whatever its attention."""
    AttentionInterface.register("tracer", tracer_attention)
    AttentionMaskInterface.register("tracer", tracer_mask)
    auto, fields = CASES[kind]
    with quiet():
        model = auto.from_config(
            AutoConfig.for_model(kind, **copy.deepcopy(fields)), attn_implementation=attention
        )
    randomise(model)
    return model.eval()


def outputs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad(), quiet():
        out = model(**inputs)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


@pytest.mark.parametrize("kind", CASES)
def test_same_numbers_as_eager(kind: str) -> None:
    ids = torch.arange(2 * SEQ).reshape(2, SEQ) % 199
    ours, theirs = (outputs(build(kind, name), ids) for name in ("tracer", "eager"))
    # FP32, sums in another order
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "cohere2", "gpt2"])
def test_decode_from_a_cache_in_place_equals_the_whole_forward(kind: str) -> None:
    model = build(kind, "tracer")
    ids = torch.arange(2 * SEQ).reshape(2, SEQ) % 199
    whole = outputs(model, ids)
    cache = in_place_cache(model.config, SEQ, 0)
    with torch.no_grad(), quiet():
        first = model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True).logits
        last = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(torch.cat([first, last], 1), whole, rtol=1e-4, atol=1e-5)


def test_a_cache_that_is_said_to_be_filled_shows_that_many_keys() -> None:
    model = build("llama", "tracer")
    cache = in_place_cache(model.config, SEQ, 0)
    set_filled(cache, SEQ - 1)
    key = torch.ones(2, 2, 1, 16)
    keys, values = cache.update(key, key, 0)
    assert keys.shape == values.shape == (2, 2, SEQ, 16)
