"""Programs, traces and sums over ranks for the tests of plans."""

from __future__ import annotations

import functools
import re

from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st

from tracer.capture.program import load_program
from tracer.capture.records import Trace
from tracer.capture.reference import ReferenceProgram
from tracer.capture.workload import Workload, record
from tracer.cost import Cost, Ledger, price
from tracer.models import Config, bundled_config
from tracer.parallel import Plan, Sizes, stage_traces

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


SIZES = Sizes.of(SMALL)


def repeated_flops(config: Config, plan: Plan, tokens: int) -> int:
    """Forward FLOPs that TP and CP ranks do alike instead of dividing them, over all ranks.

    Without sequence parallelism each TP rank compresses all tokens for attention; without EP each
    of them runs the gate on all tokens. Each CP rank expands the latents of whole sequences. An MTP
    module is a layer more, with a projection [2D -> D] that is done as compressions are.
    """
    dim, again = config.hidden_size, plan.tp - 1
    wide = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)
    layers = config.num_hidden_layers + plan.mtp
    expanded = layers * config.kv_lora_rank * wide
    moe = sum(config.is_moe(i) for i in range(layers))
    latents = 0
    if not (plan.attention_dp or plan.sequence_parallel):
        latents = layers * (config.q_lora_rank + config.latent_dim) + plan.mtp * 2 * dim
    gates = moe * config.n_routed_experts if plan.ep == 1 else 0
    return 2 * tokens * (dim * (latents + gates) * again + expanded * (plan.cp - 1))


def held(config: Config, plan: Plan, trace) -> int:
    """Elements of the whole model's parameters, times how many ranks hold each."""
    total = 0
    for p in trace.parameters:
        if p.buffer:
            continue
        copies = plan.ranks_per_stage  # norms, gate, down-projections: on every rank of the stage
        cut_by_tp = plan.dp * plan.cp
        name = p.name
        if ".experts." in name:
            copies = plan.ranks_per_stage // plan.ep if plan.ep > 1 else cut_by_tp
            total += p.numel * copies * plan.redundant_experts // config.n_routed_experts
        elif "shared_experts" in name:
            copies = plan.ranks_per_stage if plan.ep > 1 else cut_by_tp
        elif re.search(r"mlp\.(gate|up|down)_proj", name):
            copies = cut_by_tp
        elif re.search(r"q_b_proj|kv_b_proj|o_proj|embed_tokens|lm_head", name):
            copies = plan.ranks_per_stage if plan.attention_dp else cut_by_tp
        total += p.numel * copies * (2 if plan.copies_embedding and "embed_tokens" in name else 1)
    return total


@st.composite
def legal_plans(draw, mtp=False):
    """With an MTP module, of training, else of any phase."""
    plan = Plan(
        tp=draw(st.sampled_from((1, 2, 4))),
        ep=draw(st.sampled_from((1, 2, 3, 4, 6, 8))),
        pp=draw(st.integers(1, 6 if mtp else 4)),
        dp=draw(st.integers(1, 4)),
        cp=draw(st.sampled_from((1, 1, 2, 4))),
        sequence_parallel=draw(st.booleans()),
        attention_dp=draw(st.booleans()),
        zero=draw(st.integers(0, 3)),
        micro_batch=draw(st.sampled_from((1, 2))),
        recompute="none",
        redundant_experts=0 if mtp else draw(st.sampled_from((0, 0, 12))),
        mtp=mtp,
    )
    assume(not plan.illegal(SIZES, training=mtp, seq=16))
    return plan


SEARCH = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
