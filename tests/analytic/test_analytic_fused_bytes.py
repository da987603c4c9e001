"""Fused elementwise kernels move what they must: each input and each result once, and no less.

What a fused kernel has in registers it need not read again, but two views of one tensor that show
different elements are not the same data: both have to come from memory.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from family_traces import MODELS, V3, by_module, dims, ledger, passing_bytes
from mla_formulas import BF16
from torch import Tensor

import tracer
from tracer.cost.work import ATTENTION, GEMM, GROUPED_GEMM


def gated(both: Tensor) -> Tensor:
    """SwiGLU of a product whose two halves were computed as one."""
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotated_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on neighbouring elements, as DeepSeek has them."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def rotated_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the two halves of a head, as Llama has them."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1) * sin + x * cos


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype) * weight


# Name: (function, shapes of its inputs, elements of its result); everything is BF16.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]], int]] = {
    "one input twice": (lambda x: x * x + x, [(4, 8)], 4 * 8),
    "two inputs": (lambda x, y: (x + y).relu() * x, [(4, 8), (4, 8)], 4 * 8),
    "broadcast bias": (lambda x, b: (x + b).sigmoid(), [(4, 8), (8,)], 4 * 8),
    "gated halves": (gated, [(4, 16)], 4 * 8),
    "rotated pairs": (rotated_pairs, [(4, 8), (4, 4), (4, 4)], 4 * 8),
    "rotated halves": (rotated_halves, [(4, 8), (4, 8), (4, 8)], 4 * 8),
    "norm": (rms_norm, [(4, 8), (8,)], 4 * 8),
    "softmax with scale": (lambda x: (x * 0.5).softmax(-1), [(4, 8)], 4 * 8),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_chain_reads_its_inputs_and_writes_its_result(name):
    function, shapes, elements = FUNCTIONS[name]
    inputs = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
    with torch.no_grad(), tracer.trace() as session:
        result = function(*inputs)
    assert result.numel() == elements
    assert len(session.ledger().kernels) == 1
    assert sum(session.cost.read.values()) == sum(x.numel() for x in inputs) * BF16
    assert sum(session.cost.write.values()) == elements * BF16


@pytest.mark.parametrize("model", MODELS)
def test_swiglu_and_norms_of_the_model(model):
    """Gate and up in, their product out; x in, normalised x out."""
    d, tokens = dims(model), 3 * 255
    priced = ledger(model, "prefill", 3, 255)
    moved = by_module(priced, passing_bytes, kinds=("pointwise", "row", "copy"))
    assert moved["model.layers.0.mlp"] == 3 * tokens * d.dense_width * BF16
    shared = f"model.layers.{d.dense_layers}.mlp.shared_experts"
    assert moved[shared] == 3 * tokens * d.shared * d.expert_width * BF16
    assert moved["model.layers.0.input_layernorm"] == 2 * tokens * d.hidden * BF16
    if d.q_rank is not None:
        assert moved["model.layers.0.self_attn.q_a_layernorm"] == 2 * tokens * d.q_rank * BF16


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_between_the_products_of_attention_everything_is_read(phase):
    """V3, one layer: less than these bytes cannot have been moved to rotate and to assemble.

    The latent and the rotary key come from a product, and so do whole queries and the keys' nope
    part (naive), or the queries' rotary part, their latents and, to be laid out head by head for
    o_proj, the values (absorbed).
    """
    d, batch, length = dims(V3), 3, 255
    layer = "model.layers.1.self_attn"
    naive = phase == "prefill"
    tokens = batch * (length if naive else 1)
    heads = d.heads * (d.qk + d.nope if naive else d.rope + d.kv_rank + d.v)

    def elementwise(kernel, part):
        inside = part.module in (layer, f"{layer}.kv_a_layernorm")
        return "yes" if inside and kernel.kind not in (GEMM, GROUPED_GEMM, ATTENTION) else "no"

    cost = ledger(V3, phase, batch, length).by(elementwise)["yes"]
    flowing = cost.read.get("activations", 0) + cost.read.get("temporary", 0)
    assert flowing >= tokens * (heads + d.latent) * BF16
