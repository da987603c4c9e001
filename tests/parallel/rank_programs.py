"""Programs, traces and sums over ranks for the tests of plans."""

from __future__ import annotations

import functools

from tracer.capture.program import load_program
from tracer.capture.records import Trace
from tracer.capture.reference import ReferenceProgram
from tracer.capture.workload import Workload, record
from tracer.cost import Cost, Ledger, price
from tracer.models import bundled_config
from tracer.parallel import Plan, stage_traces

SMALL = {
    **bundled_config("deepseek-ai/DeepSeek-V3"),
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 24,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}


@functools.cache
def small(dtype: str = "bf16") -> ReferenceProgram:
    """Five layers, the first one dense, 24 experts."""
    return ReferenceProgram("small", SMALL, dtype)


@functools.cache
def v3(dtype: str = "bf16") -> ReferenceProgram:
    """DeepSeek-V3 itself."""
    program = load_program("deepseek-ai/DeepSeek-V3", dtype=dtype)
    assert isinstance(program, ReferenceProgram)
    return program


def ledgers(program: ReferenceProgram, work: Workload, plan: Plan) -> list[tuple[Ledger, int]]:
    """Every distinct stage's ledger, and how many ranks run it."""
    return [
        (price(trace, strict=True), len(stages) * plan.ranks_per_stage)
        for trace, stages in stage_traces(program, work, plan)
    ]


def over_ranks(program: ReferenceProgram, work: Workload, plan: Plan) -> Cost:
    """The cost of all ranks together."""
    return Cost.sum(count * ledger.total() for ledger, count in ledgers(program, work, plan))


def unsharded(program: ReferenceProgram, work: Workload) -> Trace:
    """The whole model on one device."""
    return record(program, work)


def messages(ledger: Ledger, group: str) -> dict[str, int]:
    """Bytes of messages in one group by collective."""
    found: dict[str, int] = {}
    for kernel in ledger.kernels:
        if group in kernel.cost.messages:
            found[kernel.name] = found.get(kernel.name, 0) + kernel.cost.messages[group]
    return found
