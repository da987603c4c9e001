"""Small programs of transformers architectures, on meta."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import AutoConfig

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.huggingface.config import quiet, with_layers
from tracer.capture.records import Op, Trace
from tracer.capture.workload import Workload, record
from tracer.cost import NAIVE, Conventions, Ledger, price

BATCH, SEQ = 2, 32
TEXT = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def program(kind: str, dtype: str = "bf16", **fields: Any) -> HuggingFaceProgram:
    """A program of `kind` with these config fields."""
    with quiet():
        return HuggingFaceProgram(kind, AutoConfig.for_model(kind, **fields), dtype)


@functools.cache
def default(kind: str, layers: int = 2) -> HuggingFaceProgram:
    """The default config of `kind`, cut in depth: sizes do not matter on meta."""
    with quiet():
        return HuggingFaceProgram(kind, with_layers(AutoConfig.for_model(kind), layers))


def trace(
    of: HuggingFaceProgram, phase: str, batch: int = BATCH, seq: int = SEQ, context: int = SEQ
) -> Trace:
    """One workload, all layers, no optimizer."""
    return record(of, Workload(phase, batch, seq, context, "none"), fold=False)


def ledger(of: Trace, causal: str = "pairs") -> Ledger:
    """Every op its own kernel."""
    return price(of, Conventions(causal=causal), execution=NAIVE)


def flops(of: Trace, causal: str = "pairs") -> int:
    """Matrix FLOPs of all phases."""
    return ledger(of, causal).total().total_flops


def ops(of: Trace, *words: str) -> list[Op]:
    """Ops whose name holds one of `words`."""
    return [op for op in of.ops if any(word in op.name for word in words)]


def attention_ops(of: Trace) -> list[Op]:
    """Fused attention, forward."""
    found = ops(of, "_scaled_dot_product", "_flash_attention")
    return [op for op in found if "backward" not in op.name]


def randomise(model: torch.nn.Module) -> None:
    """Fill parameters with small numbers, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
