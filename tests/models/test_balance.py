"""Balance by the bias: its rules by hand, its place in the gate, and a layer that it balances."""

from functools import partial

import pytest
import torch
from small_configs import FP8, V3

from tracer.models import Config, build
from tracer.models.balance import (
    Balancer,
    auxiliary_loss,
    imbalance,
    load_of,
    proportional_rule_,
    sign_rule_,
)
from tracer.models.moe import Gate


@pytest.fixture(scope="module")
def script(script_file):
    return script_file("balance")


def test_rules_by_hand():
    """Six choices on four experts: a mean of 1.5; loads 4, 1, 1, 0."""
    load = load_of(torch.tensor([[0, 1], [0, 2], [0, 0]]), 4)
    assert load.tolist() == [4, 1, 1, 0]
    assert imbalance(load) == pytest.approx(4 / 1.5)
    bias = torch.tensor([0.5, 0.0, 0.0, -0.5])
    sign_rule_(bias, load, 0.25)
    assert bias.tolist() == [0.25, 0.25, 0.25, -0.25]
    bias = torch.zeros(4)
    proportional_rule_(bias, load, 0.3)
    # 0.3 · (1 - load/1.5)
    torch.testing.assert_close(bias, torch.tensor([-0.5, 0.1, 0.1, 0.3]))
    balanced = torch.tensor([3, 3, 3, 3])
    for rule in (sign_rule_, proportional_rule_):
        before = bias.clone()
        rule(bias, balanced, 0.25)
        assert torch.equal(bias, before)


def test_proportional_rule_keeps_the_mean_of_biases():
    bias = torch.zeros(5)
    proportional_rule_(bias, torch.tensor([9, 0, 3, 3, 0]), 0.1)
    assert bias.sum().item() == pytest.approx(0.0, abs=1e-7)


def test_bias_moves_the_choice_and_not_the_weights():
    """Updated until the choice changes; weights stay those of unbiased scores."""
    config = Config.from_hf({**V3, "n_group": 1, "topk_group": 1})
    gate = Gate(config, dtype=torch.float32, device="cpu")
    gate.init_weights(0.3, torch.Generator().manual_seed(0))
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1)) + 0.5
    _, before = gate(x)
    for _ in range(50):
        load = load_of(gate(x)[1], 16)
        sign_rule_(gate.e_score_correction_bias, load, 0.02)
    weights, chosen = gate(x)
    assert (chosen.sort(dim=1).values != before.sort(dim=1).values).any(dim=1).float().mean() > 0.5
    scores = (x @ gate.weight.t()).sigmoid()
    biased = scores + gate.e_score_correction_bias
    best = biased.topk(4, dim=1).indices.sort(dim=1).values
    assert torch.equal(chosen.sort(dim=1).values, best)
    unbiased = scores.gather(1, chosen)
    torch.testing.assert_close(weights, 2.5 * unbiased / unbiased.sum(dim=1, keepdim=True))


def test_auxiliary_loss_by_loops():
    """Equations 17 to 20 of arXiv 2412.19437, written out."""
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(12, 5, generator=generator)
    chosen = score.topk(2, dim=1).indices
    want = 0.0
    for b in range(3):
        for e in range(5):
            tokens = range(4 * b, 4 * b + 4)
            f = sum(5 / (2 * 4) for t in tokens if e in chosen[t].tolist())
            p = sum((score[t, e] / score[t].sum()).item() for t in tokens) / 4
            want += 0.01 * f * p / 3
    assert auxiliary_loss(score, chosen, 0.01, 3).item() == pytest.approx(want, rel=1e-5)


def test_auxiliary_loss_of_perfect_balance_is_alpha_and_its_gradient_pushes_down():
    score = torch.full((4, 4), 0.5)
    even = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    assert auxiliary_loss(score, even, 0.1).item() == pytest.approx(0.1)
    logits = torch.zeros(4, 4, requires_grad=True)
    crowded = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 1]])
    auxiliary_loss(logits.sigmoid(), crowded, 0.1).backward()
    # Descent lowers the score of expert 0 and raises that of the others.
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 3] < 0).all()


def test_balancer_counts_micro_batches_of_a_model():
    model = build(FP8, precision="fp32", training=True, device="cpu").init_weights(seed=0)
    balancer = Balancer(model)
    assert list(balancer.gates) == ["model.layers.1.mlp.gate", "model.layers.2.mlp.gate"]
    ids = torch.arange(60).view(2, 30)
    for _ in range(2):
        model(ids)
    model.eval()
    model(ids)
    assert all(load.sum() == 2 * 60 * 2 for load in balancer.load.values())  # not the evaluation
    counted = {name: load.clone() for name, load in balancer.load.items()}
    result = balancer.update()
    for name, gate in balancer.gates.items():
        mean = 240 / 8
        assert result[name] == counted[name].max() / mean
        want = torch.where(counted[name] > mean, -0.001, 0.001)
        want[counted[name] == mean] = 0.0
        torch.testing.assert_close(gate.e_score_correction_bias.data, want)
    assert not balancer.load
    balancer.close()
    model.train()
    model(ids)
    assert not balancer.load


def test_a_model_without_biases_is_refused():
    with pytest.raises(ValueError, match="no gate with a bias"):
        Balancer(build({**FP8, "first_k_dense_replace": 3}))


def test_a_skewed_layer_is_balanced_and_not_worse(script, one_thread):
    """From above 3 to at most 1.1, and no cost in loss against no balancing."""
    none = script.run(script.Method("none"), 400)
    sign = script.run(script.Method("sign", sign_rule_, 0.01), 400)
    assert none.load[0] == sign.load[0]  # the same start
    assert none.load[0][1] > 3
    assert none.load[-1][1] > 2
    assert sign.load[-1][1] <= 1.1
    assert sign.loss <= none.loss


def test_both_rules_end_near_balance_on_a_fixed_gate():
    """Without training: the bias alone, by either rule."""
    x = torch.randn(2000, 64, generator=torch.Generator().manual_seed(1)) + 0.7
    config = Config.from_hf({**V3, "n_group": 1, "topk_group": 1})
    for rule in (partial(sign_rule_, speed=0.002), partial(proportional_rule_, speed=0.05)):
        gate = Gate(config, dtype=torch.float32, device="cpu")
        gate.init_weights(0.3, torch.Generator().manual_seed(0))
        assert imbalance(load_of(gate(x)[1], 16)) > 3
        for _ in range(600):
            rule(gate.e_score_correction_bias, load_of(gate(x)[1], 16))
        assert imbalance(load_of(gate(x)[1], 16)) < 1.05
