"""Small transformers models for the tests of plans, and what their ranks hold and compute."""

from __future__ import annotations

import functools

from transformers import GptOssConfig, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.huggingface.sharded import record_rank
from tracer.capture.workload import Workload, record
from tracer.cost import Cost, Ledger, price
from tracer.parallel import Plan

SEQ, BATCH, D, V = 32, 2, 64, 128
T = BATCH * SEQ
_SIZES = {
    "hidden_size": D, "intermediate_size": 96, "vocab_size": V, "num_attention_heads": 8,
    "num_key_value_heads": 8,
}  # fmt: skip
_CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES, num_hidden_layers=7),
    "mixtral": lambda: MixtralConfig(
        **_SIZES, num_hidden_layers=5, num_local_experts=8, num_experts_per_tok=2
    ),
    # Its first layer is dense.
    "qwen": lambda: Qwen3MoeConfig(
        **_SIZES, num_hidden_layers=6, num_experts=8, num_experts_per_tok=4, head_dim=8,
        moe_intermediate_size=32, mlp_only_layers=[0],
    ),
    # Every other layer sees 8 tokens only.
    "gpt_oss": lambda: GptOssConfig(
        **_SIZES, num_hidden_layers=7, num_local_experts=8, num_experts_per_tok=2, head_dim=8,
        sliding_window=8,
    ),
}  # fmt: skip
MODELS = tuple(_CONFIGS)
LAYERS = {"llama": 7, "mixtral": 5, "qwen": 6, "gpt_oss": 7}
MOE_LAYERS = {"llama": 0, "mixtral": 5, "qwen": 5, "gpt_oss": 7}
EXPERTS = 8


@functools.cache
def model(name: str) -> HuggingFaceProgram:
    return HuggingFaceProgram(name, _CONFIGS[name]())


def work(phase: str) -> Workload:
    return Workload(phase, BATCH, SEQ, SEQ)


@functools.cache
def whole(name: str, phase: str) -> Cost:
    """Of the uncut model, every layer traced."""
    return price(record(model(name), work(phase), fold=False)).total()


def stage_ledgers(name: str, plan: Plan, phase: str, fold: bool = True) -> list[Ledger]:
    """One a stage, of its first rank."""
    return [
        price(
            record_rank(
                model(name), work(phase), plan, rank=stage % plan.pp * plan.ranks_per_stage,
                stage=stage, fold=fold,
            ),
            strict=True,
        )
        for stage in range(plan.stages)
    ]  # fmt: skip


def router_flops(name: str, phase: str) -> int:
    """Of the routers of all layers: every TP rank has them whole. Twice that in the backward."""
    tokens = BATCH if phase == "decode" else T
    return MOE_LAYERS[name] * 2 * tokens * D * EXPERTS * (3 if phase == "training" else 1)


def held(ledgers: list[Ledger], plan: Plan) -> int:
    """Parameters of all ranks that hold the model once: its TP ranks, experts on EP ranks."""
    experts = others = 0
    for ledger in ledgers:
        for p in ledger.trace.parameters:
            if p.buffer:
                continue
            if ".experts." in p.name:
                experts += p.numel
            else:
                others += p.numel
    return others * plan.tp + experts * (plan.ep if plan.ep > 1 else plan.tp)


def elements(ledger: Ledger) -> int:
    """Of the parameters that a rank has."""
    return sum(p.numel for p in ledger.trace.parameters if not p.buffer)


def first_slices(ledger: Ledger, plan: Plan) -> int:
    """What the first rank has once `fully_shard` cuts each parameter by rows.

    Rows are chunked as `torch.chunk` does: the first rank has ceil(rows / ranks), the last ones may
    have none. Experts go over the ranks that hold the same ones.
    """
    total = 0
    for p in ledger.trace.parameters:
        if not p.buffer:
            experts = plan.ep > 1 and ".experts." in p.name
            copies = plan.tp * plan.cp * plan.dp // plan.ep if experts else plan.dp * plan.cp
            total += -(-p.shape[0] // copies) * p.numel // p.shape[0]
    return total


def parameters(name: str, tp: int) -> int:
    """What `held` must be: whole norms and routers on every TP rank, all else once."""
    total = 0
    for path, p in model(name).module("training", "meta").named_parameters():
        everywhere = "norm" in path or ".gate.weight" in path or ".router." in path
        total += p.numel() * (tp if everywhere else 1)
    return total
