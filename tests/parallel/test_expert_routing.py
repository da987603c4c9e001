"""Chances by integration against enumeration, closed forms, sampling, and the model's own gate."""

from itertools import permutations
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.errors import UserError
from tracer.models import bundled_config
from tracer.models.config import Config
from tracer.models.moe import Gate
from tracer.parallel.experts import RoutingLaw, expectation, recorded, uniform, zipf
from tracer.parallel.experts.routing import gate, sample

V3 = Config.from_hf(bundled_config("deepseek-ai/DeepSeek-V3"))


def enumerated(weight, top_k, share):
    """Every ordered draw without replacement with its chance: (inclusion [E], missed [X])."""
    found, away = np.zeros(len(weight)), np.zeros(share.shape[1])
    for drawn in permutations(range(len(weight)), top_k):
        chance, left = 1.0, dict(enumerate(weight))
        for e in drawn:
            chance *= weight[e] / sum(left.values())  # what is left, not what was taken off: exact
            del left[e]
        found[list(drawn)] += chance
        away += chance * np.prod(1 - share[list(drawn)], axis=0)
    return found, away


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6), st.data(), st.sampled_from([1, 2, 3])
)
def test_integrals_are_the_sum_over_all_draws(weight, data, sets):
    top_k = data.draw(st.integers(1, len(weight)))
    cells, parts = sets * len(weight), st.sampled_from([0, 0.25, 0.5, 1.0])
    flat = data.draw(st.lists(parts, min_size=cells, max_size=cells))
    share = np.array(flat).reshape(-1, sets)
    found, away = enumerated(weight, top_k, share)
    weight = np.array(weight)
    assert expectation.inclusion(weight, top_k) == pytest.approx(found, abs=1e-11)
    assert expectation.missed(weight, top_k, share) == pytest.approx(away, abs=1e-11)


def test_equal_experts_have_closed_forms():
    """A node of 32 of 256 is missed by C(224, 8) / C(256, 8) of the tokens; also integrated."""
    share = np.kron(np.eye(8), np.ones((32, 1)))
    closed = comb(224, 8) / comb(256, 8)
    assert expectation.missed(np.ones(256), 8, share) == pytest.approx([closed] * 8, rel=1e-12)
    nearly = np.ones(256)
    nearly[0] += 1e-13  # not equal: goes the long way
    assert expectation.missed(nearly, 8, share) == pytest.approx([closed] * 8, rel=1e-10)
    assert expectation.inclusion(nearly, 8) == pytest.approx([8 / 256] * 256, rel=1e-10)


def test_half_the_step_changes_nothing(monkeypatch):
    """The accuracy that `expectation` states, for 256 experts over five orders of magnitude."""
    weight = np.arange(1, 257) ** -2.0
    share = np.kron(np.eye(8), np.ones((32, 1)))
    coarse = expectation.inclusion(weight, 8), expectation.missed(weight, 8, share)
    monkeypatch.setattr(expectation, "_STEP", expectation._STEP / 2)
    expectation._inclusion.cache_clear()
    fine = expectation.inclusion(weight, 8), expectation.missed(weight, 8, share)
    expectation._inclusion.cache_clear()
    for one, other in zip(coarse, fine, strict=True):
        assert np.abs(one - other).max() < 1e-13
    assert fine[0].sum() == pytest.approx(8, abs=1e-12)


@pytest.mark.parametrize("s", [0.0, 0.5, 1.2])
def test_integrals_are_what_sampling_finds(s):
    """100,000 tokens: every chance within 5 of its own standard errors."""
    routing, tokens = zipf(64, 6, s), 100_000
    chosen = sample(routing, tokens, seed=7)
    assert (np.sort(chosen, axis=1)[:, 1:] > np.sort(chosen, axis=1)[:, :-1]).all()  # k different
    weight = np.array(routing.weights)
    chance = expectation.inclusion(weight, 6)
    within(np.bincount(chosen.ravel(), minlength=64) / tokens, chance, tokens)
    node = np.arange(64) // 8
    hit = np.stack([(node[chosen] == n).any(axis=1) for n in range(8)]).mean(axis=1)
    share = np.kron(np.eye(8), np.ones((8, 1)))
    within(hit, 1 - expectation.missed(weight, 6, share), tokens)


def within(found, chance, tokens, errors=5):
    error = np.sqrt(chance * (1 - chance) / tokens)
    assert (np.abs(found - chance) <= errors * error + 1e-9).all()


def the_models_choice(score_TE, bias=None, **changes):
    """[T, k] of tracer.models' gate on logits, passed through a weight that is the identity."""
    experts = score_TE.shape[1]
    sizes = {"n_routed_experts": experts, "hidden_size": experts, **changes}
    config = Config.from_hf(bundled_config("deepseek-ai/DeepSeek-V3") | sizes)
    module = Gate(config, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        module.weight.copy_(torch.eye(experts))
        module.e_score_correction_bias.zero_()
        if bias is not None:
            module.e_score_correction_bias.copy_(torch.from_numpy(bias))
        _, chosen = module(torch.from_numpy(score_TE))
    return chosen.numpy()


@pytest.mark.parametrize(
    ("experts", "groups", "kept", "top_k"),
    [(256, 8, 4, 8), (64, 8, 3, 6), (16, 4, 2, 4), (16, 1, 1, 4), (16, 4, 4, 3)],
)
def test_the_gate_is_the_models_gate(experts, groups, kept, top_k):
    random = np.random.default_rng(experts + kept)
    logit_TE = random.gumbel(size=(2000, experts)).astype(np.float32)
    bias = random.normal(0, 0.1, experts).astype(np.float32)
    theirs = the_models_choice(
        logit_TE, bias, n_group=groups, topk_group=kept, num_experts_per_tok=top_k
    )
    score_TE = torch.from_numpy(logit_TE).sigmoid().numpy() + bias
    mine = gate(score_TE, top_k, groups, kept)
    assert np.array_equal(np.sort(mine, axis=1), np.sort(theirs, axis=1))


def test_deepseek_v3_reaches_four_nodes_at_most():
    """Eight groups on eight nodes. A token keeps 4 groups; without the limit it reaches up to 8."""
    limit = uniform(V3.n_routed_experts, V3.num_experts_per_tok, V3.n_group, V3.topk_group)
    free = uniform(V3.n_routed_experts, V3.num_experts_per_tok)
    nodes = [
        np.array([len(set(token)) for token in sample(routing, 20_000) // 32])
        for routing in (limit, free)
    ]
    assert nodes[0].max() == 4
    assert nodes[1].max() > 4
    assert nodes[1].mean() == pytest.approx(8 * (1 - comb(224, 8) / comb(256, 8)), abs=0.03)


@pytest.mark.parametrize("noise", ["gumbel", "normal", "logistic", "uniform"])
def test_nodes_reached_hardly_depend_on_the_noise(noise):
    """Even experts, V3's limit: 3.93 to 3.98 of 4 nodes whatever the logits are drawn from."""
    logit_TE = getattr(np.random.default_rng(2), noise)(size=(20_000, 256))
    chosen = gate(1 / (1 + np.exp(-logit_TE)), 8, 8, 4)
    assert 3.93 < np.mean([len(set(token)) for token in chosen // 32]) < 3.98


@pytest.mark.parametrize("kept", [2, 4, 8])
def test_limited_sampling_is_the_models_gate_on_the_same_law(kept):
    """Distinct nodes of 20,000 tokens each, through torch's and through our gate: 5 errors."""
    popularity = np.log(np.arange(1, 257) ** -0.5)
    random = np.random.default_rng(11)
    logit_TE = (popularity + random.gumbel(size=(20_000, 256))).astype(np.float32)
    theirs = the_models_choice(logit_TE, n_group=8, topk_group=kept)
    # w / (w + X) is the sigmoid of log w + Gumbel only with the weights as they are: largest 1.
    mine = sample(zipf(256, 8, 0.5, 8, kept), 20_000, seed=3)
    counts = [np.array([len(set(token)) for token in chosen // 32]) for chosen in (theirs, mine)]
    error = np.sqrt(sum(count.var() / len(count) for count in counts))
    assert abs(counts[0].mean() - counts[1].mean()) <= 5 * error
    assert counts[0].max() <= kept
    assert counts[1].max() <= kept


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=12, max_size=12), st.integers(1, 4))
def test_recorded_loads_come_back(counts, top_k):
    """The weights found lead to the histogram again, or it is refused as impossible."""
    share = np.array(counts) * top_k / max(1, sum(counts))
    impossible = sum(counts) == 0 or share.max() > 1 or (share > 0).sum() < top_k
    if impossible:
        with pytest.raises(UserError):
            recorded(counts, top_k)
        return
    if share.max() > 0.999:  # nearly every token: weights without bound
        return
    routing = recorded(counts, top_k)
    assert routing.shares == pytest.approx(tuple(share), abs=1e-12)
    found = expectation.inclusion(np.array(routing.weights), top_k)
    assert found == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(8, 9), "cannot choose 9 different experts"),
        (lambda: uniform(8, 0), "cannot choose 0 different experts"),
        (lambda: uniform(8, 5, 4, 2), "in any 2 of 4 groups"),
        (lambda: uniform(8, 2, 3, 2), "2 of 3 groups, which divide the experts"),
        (lambda: uniform(8, 2, 2, 3), "3 of 2 groups"),
        (lambda: RoutingLaw("mine", 1, (1.0, -1.0)), "not negative"),
        (lambda: recorded([1, -1], 1), "not negative"),
        (lambda: recorded([0, 0], 1), "all counts are 0"),
        (lambda: recorded([9, 1, 1], 2), "expert 0 has 81.8% of the counts; with top 2 it has at"),
        (lambda: recorded([1, 1, 0, 0], 3), "expert 0 has 50.0% of the counts; with top 3 it has"),
        (lambda: uniform(8, 2, 8, 4), "ranked by their two best experts and have one"),
    ],
)
def test_laws_that_cannot_be(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
