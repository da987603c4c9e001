"""Lessons and takeaways that the chapters have not answered yet; the analyser's ratios."""

from __future__ import annotations

import functools

from tracer.capture.workload import Workload, record
from tracer.cost import price
from tracer.machine import time_ledger

from .attention import compression, long_context, standard_long
from .case import Case, _mha
from .claim import Answer, Section, assuming, holds, wrong
from .exercises_experts import ranks_balance
from .experts import balances, fine_balance
from .specification import reduction

ARCHITECTURE = Section("Lesson 1: Architectural Efficiency Dominates")
TRADE = Section("Lesson 2: Trade Memory for Compute")
FINE = Section("Lesson 3: Fine-grained Sparsity Enables Load Balancing")
BALANCE = Section("Lesson 4: Auxiliary-Loss-Free Training Is Possible")
ANALYSER = Section("Reproducing the Analysis")
TAKEAWAYS = Section("Key Takeaways")

ARCHITECTURE.claim(662, "18× compute reduction", "18", "×")(reduction)
ARCHITECTURE.claim(663, "57× KV cache reduction", "57", "×")(compression)
FINE.claim(680, "- Better statistical load balancing", None, "× less excess")(fine_balance)
BALANCE.claim(690, "- Self-correcting load balancing", None, "largest over mean")(balances)
TAKEAWAYS.claim(1246, "MoE (18×)", "18", "×")(reduction)
TAKEAWAYS.claim(1246, "MLA (57× KV)", "57", "×")(compression)
TAKEAWAYS.claim(
    1248, "256 small experts beat 64 large experts for load balancing", None, "× less excess"
)(ranks_balance)
TAKEAWAYS.claim(
    1252,
    "Dynamic bias adjustment achieves load balance without gradient",
    None,
    "largest over mean",
)(balances)
TAKEAWAYS.claim(
    1256, "Without MLA, 128K context would require prohibitive KV cache.", None, "GPUs' memories"
)(standard_long)
assert long_context


def projections(case: Case, standard: bool = False) -> float:
    """FLOPs a token and layer of all attention projections in a traced prefill."""
    program = _mha(case.config) if standard else case.program()
    layers = program.layers if standard else case.model.num_hidden_layers
    work = Workload("prefill", 1, 64)
    parts = price(record(program, work)).by(lambda kernel, part: part.module)
    mine = (c.total_flops for path, c in parts.items() if "self_attn." in path)
    return sum(mine) / layers / work.seq


@TRADE.claim(672, r"= 2L \cdot BS \cdot d \cdot d_c$$", None, "M FLOP a token, layer")
@functools.cache
def extra(case: Case) -> Answer:
    """Traced projections of the model's attention less those of a standard one, a token
    and layer.
    """
    m = case.model
    ours, plain = projections(case), projections(case, standard=True)
    return wrong(
        (ours - plain) / 1e6,
        "multiply-adds are counted as one and keys' and values' "
        "heads as d; and nothing is extra: a standard layer projects to full keys, values "
        f"and queries, {plain / 1e6:.0f} M, where MLA has {ours / 1e6:.0f} M. What MLA "
        "pays is in the core, see exercise 1",
        2 * m.hidden_size * m.kv_lora_rank / 1e6,
    )


@functools.cache
def decode_seconds(case: Case, standard: bool) -> float:
    """Kernel model: one layer's attention for one token after `context` tokens."""
    program = _mha(case.config) if standard else case.program()
    layers = program.layers if standard else case.model.num_hidden_layers
    times = time_ledger(price(record(program, Workload("decode", 1, 1, case.context))), case.chip)
    found = times.by(lambda k, n: k.kernel.parts[n].module)
    return sum(s for path, s in found.items() if "self_attn" in path) / layers


@TRADE.claim(
    674, "For inference with 128K context, this trade-off is highly favorable.", None, "× as fast"
)
def favourable(case: Case) -> Answer:
    """Kernel model: decode attention of one layer at 131,072 tokens, standard over the model's."""
    return holds(
        decode_seconds(case, True) / decode_seconds(case, False),
        "a decoded token waits for the cache",
    )


@BALANCE.claim(688, "- No hyperparameter tuning for balance loss weight", None, "= α")
def hyperparameter(case: Case) -> Answer:
    """Published weight of the sequence-wise loss that V3 keeps beside the bias."""
    return wrong(
        case.v3.auxiliary_alpha,
        f"the bias has its γ of {case.v3.bias_speed:g}: two, both small",
    )


@ANALYSER.claim(702, "self.layers = 60", "60", "", exact=True)
def analyser_layers(case: Case) -> Answer:
    """Layers of the model's config."""
    return wrong(case.sizes.layers, "as above")


@ANALYSER.claim(715, "self.fp8_flops = 3200e12", "3200", "TFLOP/s")
def analyser_peak(case: Case) -> Answer:
    """Dense FP8 peak of the cluster's chip."""
    return wrong(float(case.chip.peak["fp8"]) / 1e12, "as above")


@ANALYSER.claim(723, "def mla_compression_ratio(self, n_heads=128, d_head=128):", None, "×")
def analyser_compression(case: Case) -> Answer:
    """Traced standard cache over the traced model's; the seed's from its code."""
    m = case.model
    code = 2 * m.num_attention_heads * m.v_head_dim / (m.kv_lora_rank + m.qk_rope_head_dim)
    return holds(case.mha_cache() / case.cache(), seed=code)


@ANALYSER.claim(729, "def moe_compute_ratio(self):", None, "×")
def analyser_reduction(case: Case) -> Answer:
    """Traced training FLOPs a token, all experts active over k; the seed's from its code."""
    found = case.inventory()
    ratio = found.parameters / found.active_parameters
    return assuming(
        case.dense_flops() / case.training_flops(), "a ratio of parameters", ratio, ratio
    )
