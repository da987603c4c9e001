"""Multi-head latent attention: cache, projections, code."""

from __future__ import annotations

import torch
from torch import nn

from tracer.models.rope import rotate

from .case import Case
from .claim import Answer, Section, holds, wrong

STANDARD = Section("Multi-head Latent Attention (MLA)")
INNOVATION = Section("The MLA Innovation")
ROPE = Section("RoPE Integration")
MEMORY = Section("Memory Analysis")


@STANDARD.claim(55, r"= 32768 \times S \times B \text{ bytes (FP16)}", "32768", "B a token, layer")
def standard_bytes(case: Case) -> Answer:
    """Cache that a traced standard attention with as many heads writes for one token."""
    return wrong(case.mha_cache(), "counts elements and calls them bytes; FP16 has two")


@STANDARD.claim(57, "At 128K context, this becomes prohibitive.", None, "GPUs' memories")
def standard_long(case: Case) -> Answer:
    """Traced standard cache × layers × context over the chip's memory."""
    chips = case.mha_cache() * case.model.num_hidden_layers * case.context
    return holds(chips / case.chip.memory_capacity, "for the cache of one sequence")


@INNOVATION.claim(68, r"$W^{DKV} \in \mathbb{R}^{d_c \times d}$", None, "columns")
def down_projection(case: Case) -> Answer:
    """Columns of the traced kv_a_proj; the seed's figure is d."""
    return holds(case.shapes("kv_a_proj_with_mqa.weight")[1], seed=float(case.model.hidden_size))


@INNOVATION.claim(69, r"W^{UK}, W^{UV} \in \mathbb{R}^{d \times d_c}", None, "× d")
def up_projections(case: Case) -> Answer:
    """Rows of the traced kv_b_proj for keys, over the hidden size."""
    m = case.model
    keys = case.shapes("kv_b_proj.weight")[0] * m.qk_nope_head_dim
    rows = keys // (m.qk_nope_head_dim + m.v_head_dim)
    return wrong(
        rows / m.hidden_size,
        f"keys of all heads are {rows:,} wide, d is {m.hidden_size:,}",
    )


@INNOVATION.claim(70, "Latent dimension (typically $d/4$ to $d/8$)", "8", "= d / d_c")
def latent(case: Case) -> Answer:
    """Hidden size over the latent, from the shape of the traced kv_a_proj."""
    m = case.model
    width = case.shapes("kv_a_proj_with_mqa.weight")[0] - m.qk_rope_head_dim
    return wrong(m.hidden_size / width, "V3 compresses further than the range given")


@INNOVATION.claim(73, r"M_{\text{KV-MLA}} = d_c \times S \times B", None, "elements a token, layer")
def latent_cache(case: Case) -> Answer:
    """Cache that the traced model writes for one token and layer, over 2 bytes."""
    return wrong(
        case.cache() / 2,
        "the shared rotary key is cached beside the latent (later it has it)",
        float(case.model.kv_lora_rank),
    )


@INNOVATION.claim(76, r"\frac{2d}{d/4} = 8\times", "8", "×")
def ratio_of_quarter(case: Case) -> Answer:
    """Traced standard cache over that of the model with its latent set to d/4."""
    quarter = case.cache(kv_lora_rank=case.model.hidden_size // 4)
    return wrong(
        case.mha_cache() / quarter,
        "heads × head size is not d: 16,384 against 7,168 in V3; and the rotary key is left out",
    )


class SeedAttention(nn.Module):
    """The seed's `MLAAttention`: its projections, and what its forward does with a cache."""

    def __init__(self, dim: int, latent: int, rope: int) -> None:
        super().__init__()
        self.down_q, self.up_q = nn.Linear(dim, latent), nn.Linear(latent, dim)
        self.rope_q, self.rope_k = nn.Linear(dim, rope), nn.Linear(latent, rope)
        self.down_kv = nn.Linear(dim, latent)
        self.up_k, self.up_v = nn.Linear(latent, dim), nn.Linear(latent, dim)

    def forward(self, x: torch.Tensor, cache: torch.Tensor) -> list[torch.Tensor]:
        """Queries, keys, values of [B, S, D] with [B, L, latent]; rotation changes no shape."""
        c = self.down_kv(x)
        query = torch.cat([self.up_q(self.down_q(x)), self.rope_q(x)], dim=-1)
        key = torch.cat([self.up_k(c), self.rope_k(c)], dim=-1)
        return [query, key, self.up_v(torch.cat([cache, c], dim=1))]  # keys are not made again


@ROPE.claim(82, r"q \odot \cos(m\theta) + \text{rotate}(q) \odot \sin(m\theta)")
def rotation(case: Case) -> Answer:
    """Largest difference of that formula, neighbours paired, from the library's rotation."""
    width = case.model.qk_rope_head_dim
    q = torch.randn(1, 8, 1, width, generator=case.generator(), dtype=torch.float64)
    angle = torch.rand(8, 1, width // 2, generator=case.generator(), dtype=torch.float64)
    turned = torch.stack([-q[..., 1::2], q[..., ::2]], -1).flatten(-2)
    cos, sin = (x.repeat_interleave(2, -1) for x in (angle.cos(), angle.sin()))
    off = (rotate(q, (angle.cos(), angle.sin())) - (q * cos + turned * sin)).abs().max().item()
    return holds(f"{off:.1f} off", "as DeepSeek pairs neighbours; Llama's code pairs halves")


@ROPE.claim(87, "class MLAAttention:", None, "× as many")
def class_parameters(case: Case) -> Answer:
    """Elements of the traced self_attn of all layers over those of the seed's class."""
    m = case.model
    with torch.device("meta"):
        theirs = SeedAttention(m.hidden_size, m.kv_lora_rank, m.qk_rope_head_dim)
    count = sum(p.numel() for p in theirs.parameters())
    ours = case.elements("self_attn") / m.num_hidden_layers
    return wrong(
        ours / count,
        f"{count / 1e6:.1f} M parameters a layer where the model has "
        f"{ours / 1e6:.1f} M; no heads, no output projection, no norms on the latents",
    )


@ROPE.claim(94, "self.W_DQ = nn.Linear(d_model, d_latent)  # Compress Q", None, "columns")
def query_latent(case: Case) -> Answer:
    """Rows of the traced q_a_proj; the seed's figure is its d_c."""
    return wrong(
        case.shapes("q_a_proj.weight")[0],
        "queries have a latent of their own",
        float(case.model.kv_lora_rank),
    )


@ROPE.claim(95, "self.W_UQ = nn.Linear(d_latent, d_model)  # Decompress Q", None, "columns")
def query_width(case: Case) -> Answer:
    """Columns of the traced q_b_proj that are not rotated; the seed's figure is d."""
    m = case.model
    return wrong(
        case.shapes("q_b_proj.weight")[0] - m.num_attention_heads * m.qk_rope_head_dim,
        "heads × head size",
        float(m.hidden_size),
    )


@ROPE.claim(96, "self.W_QR = nn.Linear(d_model, d_rope)    # Q for RoPE", None, "columns")
def rotary_query(case: Case) -> Answer:
    """Columns of the traced q_b_proj that are rotated; the seed's figure is d_rope."""
    m = case.model
    plain = m.num_attention_heads * m.qk_nope_head_dim
    return wrong(
        case.shapes("q_b_proj.weight")[0] - plain,
        "every head has a rotary query of its "
        "own, and it comes from the query's latent; only the key is shared",
        float(m.qk_rope_head_dim),
    )


@ROPE.claim(102, "self.W_KR = nn.Linear(d_latent, d_rope)    # K for RoPE", None, "inputs")
def rotary_key(case: Case) -> Answer:
    """Columns that the rows of the rotary key have in the traced kv_a_proj_with_mqa."""
    return wrong(
        case.shapes("kv_a_proj_with_mqa.weight")[1],
        "the rotary key is a projection of "
        "the hidden state, beside the latent and not out of it: it holds what the latent "
        "has thrown away",
        float(case.model.kv_lora_rank),
    )


@ROPE.claim(129, "c_kv = torch.cat([kv_cache, c_kv], dim=1)")
def cached_forward(case: Case) -> Answer:
    """The seed's forward, restated, on one new token and five cached ones, on the CPU."""
    layer = SeedAttention(16, 8, 4)
    x, cache = torch.zeros(1, 1, 16), torch.zeros(1, 5, 8)
    query, key, value = layer(x, cache)
    try:
        nn.functional.scaled_dot_product_attention(query, key, value)
    except RuntimeError as error:
        return wrong(
            f"{type(error).__name__}: keys of {key.shape[1]} token, values of {value.shape[1]}",
            "values are made again from the cache and keys are not; "
            "nor are rotary keys kept, so the past would have no positions",
        )
    return holds("runs", "keys and values of all tokens")


@MEMORY.claim(143, "- 60 layers", "60", "", exact=True)
def layers(case: Case) -> Answer:
    """Traced cache of a token over that of a layer with the same shape."""
    latent = sum((case.model.kv_lora_rank, case.model.qk_rope_head_dim))
    return wrong(case.inventory().kv_bytes_per_token // (2 * latent), "3 dense and 58 MoE layers")


@MEMORY.claim(144, r"d_{\text{model}} = 7168", "7168", "", exact=True)
def hidden(case: Case) -> Answer:
    """Columns of the traced q_a_proj."""
    return holds(case.shapes("q_a_proj.weight")[1])


@MEMORY.claim(145, "- 128 attention heads", "128", "", exact=True)
def heads(case: Case) -> Answer:
    """Columns of the traced o_proj over the size of a value."""
    return holds(case.shapes("o_proj.weight")[1] // case.model.v_head_dim)


@MEMORY.claim(146, "$d_c = 512$ (latent dimension)", "512", "", exact=True)
def latent_size(case: Case) -> Answer:
    """Columns of the traced kv_b_proj."""
    return holds(case.shapes("kv_b_proj.weight")[1])


@MEMORY.claim(147, r"d_{\text{rope}} = 64", "64", "", exact=True)
def rotary_size(case: Case) -> Answer:
    """Rows of the traced kv_a_proj_with_mqa less the columns of kv_b_proj."""
    return holds(case.shapes("kv_a_proj_with_mqa.weight")[0] - case.shapes("kv_b_proj.weight")[1])


@MEMORY.claim(150, r"= 65536S \text{ bytes}", "65536", "B a token, layer", exact=True)
def standard_again(case: Case) -> Answer:
    """Cache that a traced standard attention with as many heads writes for one token."""
    return holds(case.mha_cache())


@MEMORY.claim(
    153,
    r"(512 + 64) \times S \times 2 = 1152S \text{ bytes}",
    "1152",
    "B a token, layer",
    exact=True,
)
def mla_bytes(case: Case) -> Answer:
    """Cache that the traced model writes for one token and layer."""
    return holds(case.cache())


@MEMORY.claim(155, r"65536 / 1152 \approx 57\times$ reduction!", "57", "×")
def compression(case: Case) -> Answer:
    """Traced standard cache over the traced model's."""
    return holds(case.mha_cache() / case.cache())


@MEMORY.claim(157, "This enables 128K context without excessive memory.", None, "GB a sequence")
def long_context(case: Case) -> Answer:
    """Traced cache × context, of one sequence over all layers."""
    gb = case.inventory().kv_bytes_per_token * case.context / 1e9
    return holds(
        gb,
        f"of {case.chip.memory_capacity / 1e9:g} a GPU: one fits well, eight do not beside weights",
    )
