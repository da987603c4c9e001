"""One traced layer of each kind stands for all: the same numbers as tracing every layer."""

import pytest

from tracer.capture.program import Program, load_program
from tracer.capture.reference import ReferenceProgram
from tracer.capture.workload import Workload, record
from tracer.cost import EXECUTIONS, Ledger, price
from tracer.models import bundled_config
from tracer.predict.memory import memory

# Four dense and four MoE layers: with first, middle and last of each kind, both kinds fold.
SMALL = {
    "num_hidden_layers": 8,
    "first_k_dense_replace": 4,
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
}
CASES = [
    ("prefill", "fused", "none", "bf16"),
    ("prefill", "naive", "none", "bf16"),
    ("decode", "fused", "none", "bf16"),
    ("decode", "naive", "none", "bf16"),
    ("training", "fused", "adamw", "bf16"),
    ("training", "naive", "none", "bf16"),
    ("prefill", "fused", "none", "fp8"),
    ("training", "fused", "none", "fp8"),
]


def small(dtype: str = "bf16") -> Program:
    return ReferenceProgram("small V3", bundled_config("deepseek-ai/DeepSeek-V3") | SMALL, dtype)


def launches(ledger: Ledger) -> int:
    return sum(kernel.launches for kernel in ledger.kernels)


def check(folded: Ledger, full: Ledger) -> None:
    assert folded.trace.folds and not full.trace.folds
    assert len(folded.trace) < len(full.trace)
    one, other = folded.total(), full.total()
    assert one.flops == other.flops
    assert one.vector_flops == other.vector_flops
    assert one.recompute_flops == other.recompute_flops
    assert one.bytes_by_role == other.bytes_by_role
    assert one == other  # reads and writes apart, too
    assert launches(folded) == launches(full)
    assert memory(folded) == memory(full)


@pytest.mark.parametrize(("phase", "attention", "optimizer", "dtype"), CASES)
def test_folded_equals_full(phase, attention, optimizer, dtype):
    work = Workload(phase, batch=2, seq=48, context=48, optimizer=optimizer)
    traces = [record(small(dtype), work, attention=attention, fold=f) for f in (True, False)]
    assert sum(op.times for op in traces[0].ops) == len(traces[1].ops)
    for execution in EXECUTIONS:
        check(*(price(trace, execution=execution) for trace in traces))


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 7])
def test_few_layers_fold_to_themselves_or_to_the_same_numbers(layers):
    """Where a kind has too few layers to fold, nothing is multiplied."""
    config = bundled_config("deepseek-ai/DeepSeek-V3") | SMALL
    program = ReferenceProgram("small V3", config | {"first_k_dense_replace": 2}, layers=layers)
    work = Workload("prefill", batch=1, seq=32)
    folded, full = (price(record(program, work, fold=f)) for f in (True, False))
    assert folded.total() == full.total()
    assert launches(folded) == launches(full)
    assert memory(folded) == memory(full)


def test_all_61_layers_of_v3():
    """Once at full size, with 3 and 58 layers of a kind."""
    program = load_program("deepseek-ai/DeepSeek-V3")
    work = Workload("prefill", batch=1, seq=8192)
    folded, full = (record(program, work, fold=f) for f in (True, False))
    assert sum(fold.layers for fold in folded.folds) == 56  # of 58; the others stand for themselves
    check(price(folded), price(full))
