"""What each of two real processes does: its chunks of a Llama's sequences, held against all."""

from __future__ import annotations

import datetime
import json
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import LlamaConfig

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.huggingface.context import POSITIONS, spread_over
from tracer.models.collectives import Group

WORLD, BATCH, SEQ = 2, 2, 16
CHUNKS = ([*range(0, 4), *range(12, 16)], [*range(4, 12)])  # by rank


def compare(rank: int) -> None:
    """Logits and gradients of the embedding and the keys' projection."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HuggingFaceProgram("llama", config, "fp32").module("training", "real")
    assert model.config._attn_implementation == "tracer"
    ids = torch.randint(0, 64, (BATCH, SEQ), generator=torch.Generator().manual_seed(1))
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    expected.square().mean().backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    own = ids[:, CHUNKS[rank]]
    group = Group(dist.group.WORLD.group_name, WORLD, rank)
    with spread_over(group):
        positions = POSITIONS.tensor(BATCH, SEQ // WORLD, SEQ, "cpu")
        assert positions.tolist() == [CHUNKS[rank]] * BATCH
        mask = torch.ones_like(own)
        logits = model(input_ids=own, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(logits, expected[:, CHUNKS[rank]], rtol=1e-4, atol=1e-4)
        (logits.square().mean() / WORLD).backward()
    for name, parameter in model.named_parameters():
        dist.all_reduce(parameter.grad)
        scale = whole[name].abs().max()
        torch.testing.assert_close(parameter.grad / scale, whole[name] / scale, rtol=0, atol=1e-4)


def main(rank: int, folder: str) -> None:
    """What went wrong, or nothing, goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    result = ""
    try:
        compare(rank)
    except Exception:
        result = traceback.format_exc()
    finally:
        Path(folder, f"rank{rank}.json").write_text(json.dumps(result))
        dist.destroy_process_group()
