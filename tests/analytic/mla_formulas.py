"""What DeepSeek-V2/V3 must cost, by hand: the papers' dimensions and plain arithmetic.

The second route of the tests in this folder. Nothing of `tracer` is imported here; sizes are read
from a `config.json` under the names that the papers use, and every formula is written for one layer
so that it can be checked against the paper's text (arXiv 2405.04434 section 2.1 for MLA, 2412.19437
section 2.1.2 for the experts, 3.3 for FP8).

Batch, sequence and context may be sympy's symbols: the results are then formulas in them.

T is the number of tokens of a step, K the input and N the output width of a matrix. One
multiply-add is 2 FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy

BF16, FP32, FP8 = 2, 4, 1  # bytes an element
TILE = 128  # side of an FP8 scaling block


@dataclass(frozen=True)
class Dims:
    """Sizes of one model."""

    hidden: int
    heads: int
    q_rank: int | None  # None: queries are not compressed
    kv_rank: int
    nope: int
    rope: int
    v: int
    dense_width: int
    expert_width: int
    experts: int
    top_k: int
    shared: int
    gate_bias: bool
    vocab: int
    layers: int
    dense_layers: int

    @classmethod
    def of(cls, config: Mapping[str, Any], layers: int | None = None) -> Dims:
        """The sizes in `config`, of its first `layers` layers."""
        kept = config["num_hidden_layers"] if layers is None else layers
        return cls(
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            q_rank=config["q_lora_rank"],
            kv_rank=config["kv_lora_rank"],
            nope=config["qk_nope_head_dim"],
            rope=config["qk_rope_head_dim"],
            v=config["v_head_dim"],
            dense_width=config["intermediate_size"],
            expert_width=config["moe_intermediate_size"],
            experts=config["n_routed_experts"],
            top_k=config["num_experts_per_tok"],
            shared=config["n_shared_experts"],
            gate_bias=config["topk_method"] == "noaux_tc",
            vocab=config["vocab_size"],
            layers=kept,
            dense_layers=min(kept, config["first_k_dense_replace"]),
        )

    @property
    def qk(self) -> int:
        """Width of one head's query and key in the naive form."""
        return self.nope + self.rope

    @property
    def latent(self) -> int:
        """Elements that the cache keeps of a token and layer: C + R."""
        return self.kv_rank + self.rope

    def is_moe(self, layer: int) -> bool:
        """Whether `layer` has experts."""
        return layer >= self.dense_layers


# -- matrices --------------------------------------------------------------------------------------


def attention_matrices(d: Dims) -> dict[str, tuple[int, int]]:
    """(K, N) of the projections of one MLA, by module name."""
    q_width = d.heads * d.qk
    if d.q_rank is None:
        query = {"q_proj": (d.hidden, q_width)}
    else:
        query = {"q_a_proj": (d.hidden, d.q_rank), "q_b_proj": (d.q_rank, q_width)}
    return {
        **query,
        "kv_a_proj_with_mqa": (d.hidden, d.latent),
        "kv_b_proj": (d.kv_rank, d.heads * (d.nope + d.v)),
        "o_proj": (d.heads * d.v, d.hidden),
    }


def ffn_matrices(d: Dims, width: int) -> dict[str, tuple[int, int]]:
    """(K, N) of the three matrices of a SwiGLU of `width`."""
    return {
        "gate_proj": (d.hidden, width),
        "up_proj": (d.hidden, width),
        "down_proj": (width, d.hidden),
    }


def linears(d: Dims, *, decode: bool = False) -> dict[str, tuple[int, int]]:
    """(K, N) of every linear that runs once a token, by full module path; no routed experts.

    The absorbed form of decode never multiplies by `kv_b_proj` itself.
    """
    found: dict[str, tuple[int, int]] = {}
    for layer in range(d.layers):
        at = f"model.layers.{layer}"
        for name, size in attention_matrices(d).items():
            if not (decode and name == "kv_b_proj"):
                found[f"{at}.self_attn.{name}"] = size
        if not d.is_moe(layer):
            for name, size in ffn_matrices(d, d.dense_width).items():
                found[f"{at}.mlp.{name}"] = size
            continue
        found[f"{at}.mlp.gate"] = (d.hidden, d.experts)
        for name, size in ffn_matrices(d, d.shared * d.expert_width).items():
            found[f"{at}.mlp.shared_experts.{name}"] = size
    found["lm_head"] = (d.hidden, d.vocab)
    return found


def linear_flops(tokens: int, size: tuple[int, int]) -> int:
    """[T, K] times [K, N]."""
    k, n = size
    return 2 * tokens * k * n


# -- attention core --------------------------------------------------------------------------------


def causal_pairs(seq: int) -> int:
    """Query i of S sees keys 0..i: 1 + 2 + ... + S, of which the double is even."""
    double = seq * (seq + 1)
    return double // 2 if isinstance(double, int) else double / 2


def naive_core_flops(d: Dims, batch: int, seq: int, *, causal: str = "pairs") -> int:
    """Scores of qk wide heads and weighted sums of v wide values, for every pair and head."""
    pairs = causal_pairs(seq) if causal == "pairs" else seq * seq
    return batch * d.heads * pairs * 2 * (d.qk + d.v)


def naive_core_score_flops(d: Dims, batch: int, seq: int, *, causal: str = "pairs") -> int:
    """The scores alone: what a flash backward computes a second time."""
    pairs = causal_pairs(seq) if causal == "pairs" else seq * seq
    return batch * d.heads * pairs * 2 * d.qk


def absorbed_core_flops(d: Dims, batch: int, context: int) -> int:
    """One new token a sequence.

    W_UK moves onto the query and W_UV behind the softmax, once a new token; between them every
    head takes scores over C + R and a weighted sum over C of each cached latent.
    """
    per_head_and_token = 2 * d.nope * d.kv_rank + 2 * d.kv_rank * d.v
    per_head_and_pair = 2 * d.latent + 2 * d.kv_rank
    return batch * d.heads * (per_head_and_token + context * per_head_and_pair)


def reexpanded_core_flops(d: Dims, batch: int, context: int) -> int:
    """Decode without absorption: kv_b_proj over the whole cache, then the naive core."""
    expand = 2 * context * d.kv_rank * d.heads * (d.nope + d.v)
    return batch * (expand + d.heads * context * 2 * (d.qk + d.v))


# -- experts ---------------------------------------------------------------------------------------


def routed_flops(d: Dims, tokens: int) -> int:
    """Top-k experts of three matrices for every token."""
    return tokens * d.top_k * 3 * 2 * d.hidden * d.expert_width


def distinct_experts(d: Dims, tokens: int) -> float:
    """Experts that somebody chose, expected: one is missed by a token with 1 - k/E."""
    return d.experts * (1.0 - (1.0 - d.top_k / d.experts) ** tokens)


def routed_weight_bytes(d: Dims, tokens: int, itemsize: int = BF16) -> int:
    """Each of the three stacks is one kernel that reads a whole number of bytes."""
    share = distinct_experts(d, tokens) / d.experts
    stack = d.experts * d.hidden * d.expert_width * itemsize
    return 3 * round(share * stack)


# -- FLOPs of a whole step -------------------------------------------------------------------------


def forward_flops(d: Dims, batch: int, seq: int, *, causal: str = "pairs") -> dict[str, int]:
    """FLOPs of prefill and of a training forward, by module path."""
    tokens = batch * seq
    flops = {path: linear_flops(tokens, size) for path, size in linears(d).items()}
    for layer in range(d.layers):
        flops[f"model.layers.{layer}.self_attn"] = naive_core_flops(d, batch, seq, causal=causal)
        if d.is_moe(layer):
            flops[f"model.layers.{layer}.mlp.experts"] = routed_flops(d, tokens)
    return flops


def decode_flops(d: Dims, batch: int, context: int) -> dict[str, int]:
    """FLOPs of one absorbed decode step, by module path."""
    flops = {path: linear_flops(batch, size) for path, size in linears(d, decode=True).items()}
    for layer in range(d.layers):
        flops[f"model.layers.{layer}.self_attn"] = absorbed_core_flops(d, batch, context)
        if d.is_moe(layer):
            flops[f"model.layers.{layer}.mlp.experts"] = routed_flops(d, batch)
    return flops


# -- bytes -----------------------------------------------------------------------------------------


def norms(d: Dims) -> dict[str, int]:
    """Width of every RMSNorm, by module path."""
    found = {"model.norm": d.hidden}
    for layer in range(d.layers):
        at = f"model.layers.{layer}"
        found[f"{at}.input_layernorm"] = d.hidden
        found[f"{at}.post_attention_layernorm"] = d.hidden
        found[f"{at}.self_attn.kv_a_layernorm"] = d.kv_rank
        if d.q_rank is not None:
            found[f"{at}.self_attn.q_a_layernorm"] = d.q_rank
    return found


def weight_bytes(d: Dims, tokens: int, *, decode: bool = False) -> dict[str, int]:
    """Bytes of weights that one forward reads, by module path: every touched one once."""
    found = {path: k * n * BF16 for path, (k, n) in linears(d, decode=decode).items()}
    found |= {path: width * BF16 for path, width in norms(d).items()}
    # An embedding reads the rows of its tokens; all different until the table is used up.
    row = d.hidden * BF16
    least = min if isinstance(tokens, int) else sympy.Min
    found["model.embed_tokens"] = least(tokens * row, d.vocab * row)
    for layer in range(d.layers):
        at = f"model.layers.{layer}"
        if decode:  # W_UK and W_UV are the two halves of kv_b_proj, read by the attention itself
            found[f"{at}.self_attn"] = d.heads * (d.nope + d.v) * d.kv_rank * BF16
        if d.is_moe(layer):
            if isinstance(tokens, int):  # rounded to bytes, so no polynomial
                found[f"{at}.mlp.experts"] = routed_weight_bytes(d, tokens)
            if d.gate_bias:
                found[f"{at}.mlp.gate"] += d.experts * FP32
    # The rotary frequencies are a buffer of the model, and a buffer is a weight.
    found["model"] = d.rope // 2 * FP32
    return found


def fp8_matrix_bytes(k: int, n: int) -> int:
    """One byte an element, and an FP32 scale for every block of 128 x 128, edges included."""
    return k * n * FP8 + math.ceil(k / TILE) * math.ceil(n / TILE) * FP32


def is_fp8(path: str) -> bool:
    """The release keeps head and gate in BF16 (2412.19437, section 3.3.1)."""
    return path != "lm_head" and not path.endswith("mlp.gate")


def kv_bytes_per_token(d: Dims) -> int:
    """What one token adds to the cache over all layers."""
    return d.layers * d.latent * BF16


def trainable_tensors(d: Dims) -> list[int]:
    """Elements of every trained parameter; the gate's bias is not trained by gradients."""
    stacks = d.layers - d.dense_layers
    return [
        d.vocab * d.hidden,
        *(k * n for k, n in linears(d).values()),
        *norms(d).values(),
        *([d.experts * d.hidden * d.expert_width] * 3 * stacks),
    ]
