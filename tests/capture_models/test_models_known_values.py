"""Values that no weight decides are known on meta; those that routers decide are balanced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import TEXT, flops, ops, program, trace

from tracer.capture.known_values import KnownValues


def test_constants_answer() -> None:
    with KnownValues() as values:
        ids = torch.arange(6, device="meta").reshape(2, 3)
        ids[:, 0] = 7
        assert ids.tolist() == [[7, 1, 2], [7, 4, 5]]
        assert (ids == 7).sum().item() == 2
        assert bool((ids[1:] > 3).all())
        assert torch.equal(ids.cpu(), torch.tensor([[7, 1, 2], [7, 4, 5]]))
        assert ids[ids > 3].shape == (4,)  # 7, 7, 4, 5
        assert torch.tensor([3, 4], device="meta").tolist() == [3, 4]
        assert torch.nonzero(ids == 7).tolist() == [[0, 0], [1, 0]]
    assert not values.assumed


def test_unknown_values_stay_unknown_also_through_views() -> None:
    weights = torch.empty(4, device="meta")
    with KnownValues():
        ids = torch.zeros(2, 4, dtype=torch.long, device="meta")
        row = ids[0]
        ids[0] = weights.long()
        for tensor in (ids, row, row + 1, weights):
            with pytest.raises(RuntimeError, match="meta"):
                tensor.sum().item()


def test_shapes_from_known_masks() -> None:
    with KnownValues():
        mask = torch.tensor([True, False, True], device="meta")
        states = torch.empty(3, 5, device="meta", requires_grad=True)
        assert states[mask].shape == (2, 5)
        states[mask].sum().backward()
        assert states.grad is not None and states.grad.shape == (3, 5)
        assert states.masked_select(mask[:, None]).shape == (10,)
        target = torch.zeros(3, 5, device="meta")
        target[mask] = torch.ones(2, 5, device="meta")
        assert target.shape == (3, 5)


def test_numbers_are_finite() -> None:
    hidden = torch.empty(4, 8, device="meta")
    with KnownValues() as values:
        assert torch.isfinite(hidden).all() and not hidden.isnan().any()
        assert not torch.isinf(hidden + 1).any()
    assert not values.assumed


def test_routing_is_balanced_and_said_so() -> None:
    scores = torch.empty(8, 4, device="meta")
    with KnownValues() as values:
        chosen = scores.topk(2, dim=-1).indices
        counts = np.bincount(np.array(chosen.flatten().tolist()), minlength=4)
        assert list(counts) == [4, 4, 4, 4]
    assert values.assumed


def test_a_router_that_counts_in_python_costs_what_grouped_experts_cost() -> None:
    """JetMoe splits its tokens by `tolist()`; its experts are FFNs of 2 x 64 x 256 and 64 x 128."""
    jetmoe = program(
        "jetmoe", vocab_size=256, hidden_size=64, num_hidden_layers=2, num_key_value_heads=2,
        kv_channels=16, intermediate_size=128, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    found = trace(jetmoe, "prefill", batch=2, seq=32)
    assert found.header["ground"] == "values"
    assert any("balanced" in note for note in found.header["notes"])
    per_token = (64 * 256 + 128 * 64) + (64 * 32 + 32 * 64)  # MLP experts; query and output experts
    experts = 2 * 64 * 2 * 2 * per_token  # 2 FLOPs, 64 tokens, 2 experts a token, 2 layers
    matmuls = [op for op in ops(found, "aten.mm", "aten.addmm") if op.args[0].shape[0] == 32]
    assert sum(2 * op.outputs[0].numel * op.args[0].shape[1] for op in matmuls) == experts
    assert flops(found) > experts


def test_plain_models_need_none_of_it() -> None:
    assert trace(program("llama", **TEXT), "training").header["ground"] == "meta"
