"""Gate and experts against loops over tokens and experts."""

import pytest
import torch
import torch.nn.functional as F
from small_configs import V2, V2_LITE, V3

from tracer.models import Config
from tracer.models.linear import Precision
from tracer.models.moe import Experts, Gate, combine, dispatch, grouped_mm, route

FP32 = Precision(torch.float32)
TOKENS = 50


def gate(config: dict, seed: int = 0) -> Gate:
    generator = torch.Generator().manual_seed(seed)
    module = Gate(Config.from_hf(config), dtype=torch.float32, device="cpu")
    module.init_weights(0.3, generator)
    return module


def tokens(seed: int = 1) -> torch.Tensor:
    return torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(seed))


def test_bias_only_chooses():
    module, x = gate(V3), tokens()
    _, before = module(x)
    with torch.no_grad():
        module.e_score_correction_bias[5] = 100.0
    weights, chosen = module(x)
    assert not (before == 5).any(dim=1).all()
    assert (chosen == 5).any(dim=1).all()
    # What the chosen ones weigh is sigmoid(x·w) of theirs, normalised: no bias in it.
    scores = (x @ module.weight.t()).sigmoid().gather(1, chosen)
    torch.testing.assert_close(weights, 2.5 * scores / scores.sum(dim=1, keepdim=True))


def test_weights_sum_to_the_scaling_factor():
    weights, _ = gate(V3)(tokens())
    torch.testing.assert_close(weights.sum(dim=1), torch.full((TOKENS,), 2.5))


def test_without_normalisation_weights_are_scaled_scores():
    module, x = gate(V2_LITE), tokens()
    weights, chosen = module(x)
    scores = (x @ module.weight.t()).softmax(dim=1)
    torch.testing.assert_close(weights, scores.gather(1, chosen))
    assert torch.equal(chosen.sort(dim=1).values, scores.topk(4).indices.sort(dim=1).values)


@pytest.mark.parametrize("config", [V3, V2], ids=["noaux_tc", "group_limited_greedy"])
def test_groups_are_limited(config):
    """By a loop: rank groups, keep two, take the best four experts of those."""
    module, x = gate(config), tokens()
    if module.e_score_correction_bias is not None:
        with torch.no_grad():
            module.e_score_correction_bias.normal_(
                0.0, 0.3, generator=torch.Generator().manual_seed(2)
            )
    _, chosen = module(x)
    logits = x @ module.weight.t()
    limited = 0
    for row, token_chosen in zip(logits, chosen.tolist(), strict=True):
        if config is V3:
            score = (row.sigmoid() + module.e_score_correction_bias).tolist()
            rank = {g: sum(sorted(score[4 * g : 4 * g + 4])[-2:]) for g in range(4)}
        else:
            score = row.softmax(0).tolist()
            rank = {g: max(score[4 * g : 4 * g + 4]) for g in range(4)}
        kept = sorted(rank, key=rank.get)[-2:]
        allowed = [e for e in range(16) if e // 4 in kept]
        assert sorted(token_chosen) == sorted(sorted(allowed, key=score.__getitem__)[-4:])
        limited += sorted(token_chosen) != sorted(sorted(range(16), key=score.__getitem__)[-4:])
    assert limited > TOKENS / 4  # the limit changed the choice of many tokens


def test_scores_are_fp32_behind_a_bf16_linear():
    module = gate(V3).to(torch.bfloat16)
    module.e_score_correction_bias.data = module.e_score_correction_bias.float()
    x = tokens().bfloat16()
    weights, chosen = module(x)
    assert weights.dtype == torch.float32
    scores = (x @ module.weight.t()).float().sigmoid().gather(1, chosen)
    torch.testing.assert_close(weights, 2.5 * scores / scores.sum(dim=1, keepdim=True))


def test_gradient_reaches_the_gate_through_the_weights():
    module = gate(V3)
    weights, _ = module(tokens())
    weights.square().sum().backward()
    assert module.weight.grad.abs().sum() > 0
    assert module.e_score_correction_bias.grad is None


def choices(experts: int, top_k: int) -> torch.Tensor:
    """Distinct experts per token; expert 1 gets no token at all."""
    generator = torch.Generator().manual_seed(3)
    used = [e for e in range(experts) if e != 1]
    rows = [torch.randperm(len(used), generator=generator)[:top_k] for _ in range(TOKENS)]
    return torch.tensor(used)[torch.stack(rows)]


def test_routing():
    chosen = choices(16, 4)
    routing = route(chosen, 16)
    by_expert = chosen.flatten()[routing.order]
    assert torch.equal(by_expert, by_expert.sort().values)
    assert torch.equal(routing.order[routing.inverse], torch.arange(TOKENS * 4))
    counts = torch.bincount(chosen.flatten(), minlength=16)
    assert counts[1] == 0
    assert torch.equal(routing.offs.long(), counts.cumsum(0))
    assert routing.offs.dtype == torch.int32


def test_dispatch_and_combine_are_each_others_gradient():
    """Their backward, written by hand, against autograd through plain indexing."""
    chosen = choices(16, 4)
    routing = route(chosen, 16)
    weights = torch.rand(TOKENS, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(TOKENS, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: combine(dispatch(x, routing).tanh(), w, routing), (x, weights)
    )
    plain = (x.tanh().unsqueeze(1) * weights.unsqueeze(-1)).sum(dim=1)
    torch.testing.assert_close(combine(dispatch(x, routing).tanh(), weights, routing), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_experts_equal_a_loop(dtype):
    module = Experts(Config.from_hf(V3), Precision(dtype), "cpu")
    module.init_weights(0.2, torch.Generator().manual_seed(0))
    x, chosen, weights = tokens().to(dtype), choices(16, 4), torch.rand(TOKENS, 4)
    x.requires_grad_(True)
    got = module(x, weights, chosen)
    got.float().square().sum().backward()
    grads = [x.grad, module.gate_proj.grad, module.up_proj.grad, module.down_proj.grad]

    leaves = [t.detach().float().requires_grad_() for t in (x, *module.parameters())]
    x32, gate_EFD, up_EFD, down_EDF = leaves
    rows = []
    for t in range(TOKENS):
        row = torch.zeros(64)
        for w, e in zip(weights[t], chosen[t].tolist(), strict=True):
            h = F.silu(gate_EFD[e] @ x32[t]) * (up_EFD[e] @ x32[t])
            row = row + w * (down_EDF[e] @ h)
        rows.append(row)
    want = torch.stack(rows)
    want.square().sum().backward()
    # Half a unit in the last place per rounding; a result passes through at most six of them
    # (two inputs, product, SwiGLU, weight, sum), its gradient through twice as many.
    rounding = {torch.float32: 2**-24, torch.bfloat16: 2**-9, torch.float16: 2**-12}[dtype]
    assert (got.float() - want).norm() / want.norm() < 6 * rounding
    for ours, leaf in zip(grads, leaves, strict=True):
        assert (ours.float() - leaf.grad).norm() / leaf.grad.norm() < 12 * rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_grouped_mm_on_meta(dtype):
    """Torch's meta kernel knows BF16 only; the others must have the same shapes and gradients."""
    x = torch.empty(24, 64, dtype=dtype, device="meta", requires_grad=True)
    w = torch.empty(3, 32, 64, dtype=dtype, device="meta", requires_grad=True)
    y = grouped_mm(x, w, torch.empty(3, dtype=torch.int32, device="meta"))
    assert (y.shape, y.dtype) == ((24, 32), dtype)
    y.backward(torch.empty_like(y))
    assert (x.grad.shape, w.grad.shape) == (x.shape, w.shape)
