"""Plans: what is refused and why, where ranks stand, and how plans are written."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.errors import UserError
from tracer.models import bundled_config
from tracer.parallel import Plan, Sizes

V3 = Sizes.of(bundled_config("deepseek-ai/DeepSeek-V3"))
LLAMA_70B = Sizes(layers=80, heads=64, kv_heads=8, vocab=128_256, width=28_672)


def test_sizes_of_deepseek_v3():
    assert Sizes(61, 128, 128, 129_280, 18_432, 256, 8, 2048, 2048, latent=True, mtp=1) == V3


def test_sizes_need_layers():
    with pytest.raises(UserError, match="num_hidden_layers"):
        Sizes.of({"num_attention_heads": 4, "hidden_size": 8, "vocab_size": 9})


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("ep48 dp48", "256 experts do not divide by EP=48"),
        ("pp64", "61 layers over PP=64 leaves stages empty"),
        ("pp31 chunks=2", "61 layers over PP=31 with 2 chunks a rank leaves stages empty"),
        ("chunks=2", "2 chunks a rank need a pipeline: PP is 1"),
        ("tp48", "128 heads do not divide by TP=48"),
        ("ep64 dp32", "EP=64 does not divide the 32 ranks of a stage (DP=32 * CP=1 * TP=1)"),
        ("sp", "sequence_parallel divides tokens by TP, which is 1"),
        ("tp8 sp adp", "attention_dp gives every TP rank its own tokens: sequence_parallel cannot "
         "cut them"),
        ("tp2 cp2 adp", "attention_dp and CP=2 both divide the tokens of a rank"),
        ("ep32 dp32 redundant=16", "256 experts and 16 redundant ones do not divide by EP=32"),
        ("redundant=16", "16 redundant experts need EP above 1"),
        ("dp=4 ep=4 redundant=260", "260 redundant experts are more than the 256 there are"),
    ],
)  # fmt: skip
def test_reasons(plan, reason):
    reasons = Plan.parse(plan).illegal(V3)
    assert reason in reasons
    assert all("\n" not in line for line in reasons)


@pytest.mark.parametrize(
    "plan",
    [
        "pp16 ep64 dp128 zero=1",  # training of V3: 2048 GPUs, EP64 over 8 nodes
        "tp4 sp dp8 ep32 redundant=32",  # its prefill: 9 experts a GPU
        "tp4 sp dp80 ep320 redundant=64",  # its decode: one expert a GPU
        "tp8", "dp16 fsdp", "tp8 adp ep8", "cp4 dp2 ep8",
    ],
)  # fmt: skip
def test_legal_plans(plan):
    assert Plan.parse(plan).illegal(V3) == []


def test_redundant_experts_are_not_trained():
    plan = Plan(dp=32, ep=32, redundant_experts=32)
    assert plan.illegal(V3) == []
    assert plan.illegal(V3, training=True) == [
        "32 redundant experts are copies for serving, not for training"
    ]


@pytest.mark.parametrize("zero", [2, 3])
def test_latent_recomputation_needs_parameters_that_stay(zero):
    plan = Plan(dp=2, zero=zero, recompute="latent")
    (reason,) = plan.illegal(V3, training=True)
    assert f"zero={zero} has them no more: take zero=1, or recompute=selective or full" in reason
    assert replace(plan, zero=1).illegal(V3, training=True) == []
    assert replace(plan, recompute="full").illegal(V3, training=True) == []


def test_experts_of_a_dense_model():
    assert Plan(dp=2, ep=2).illegal(LLAMA_70B) == ["EP=2: the model has no routed experts"]


def test_kv_heads():
    assert Plan(tp=16).illegal(LLAMA_70B) == []
    assert Plan(tp=16).notes(LLAMA_70B) == ["8 KV heads over TP=16: each is held by 2 ranks"]
    odd = Sizes(layers=2, heads=24, kv_heads=6, vocab=96, width=96)
    assert Plan(tp=4).illegal(odd) == ["6 KV heads neither divide by TP=4 nor into it"]


def test_domains():
    notes = Plan(tp=4, dp=16, ep=64).notes(V3, domain=8)
    assert "EP=64 spans 8 domains of 8 GPUs" in notes
    assert not any(note.startswith("TP=4 spans") for note in notes)
    assert Plan(tp=3).notes(LLAMA_70B, domain=8)[-1].startswith("TP=3 does not divide")


def test_uneven_stages_are_noted():
    plan = Plan(pp=16)
    assert [len(plan.layers_of(s, 61)) for s in range(16)] == [4] * 13 + [3] * 3  # 52 + 9 = 61
    assert "61 layers over 16 stages: 13 of them have 4, the others 3" in plan.notes(V3)


def test_world_of_the_published_training_plan():
    plan = Plan(pp=16, dp=128, ep=64)
    assert plan.world == 2048
    assert plan.groups(0)["ep"] == range(64)
    assert plan.groups(70)["ep"] == range(64, 128)
    assert plan.groups(70)["edp"] == range(6, 128, 64)
    assert plan.groups(129)["pp"] == range(1, 2048, 128)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("tp=x", "'tp=x': give a whole number"),
        ("tp=0", "tp=0: give a whole number of at least 1"),
        ("tpp=2", "did you mean"),
        ("tp=2 tp4", "tp is given twice"),
        ("zero=4", "choose 0, 1, 2 or 3"),
        ("sp=maybe", "say true or false"),
        ("recompute=some", "choose none, latent, selective, full"),
        ("tp=", "has no value"),
        ("schedule", "has no value"),
        ("mtp=2", "say true or false"),
    ],
)
def test_bad_text(text, error):
    with pytest.raises(UserError, match=re.escape(error)):
        Plan.parse(text)


def test_no_such_rank_or_stage():
    with pytest.raises(UserError, match="ranks 0 to 7"):
        Plan(tp=8).groups(8)
    with pytest.raises(UserError, match="stages 0 to 1"):
        Plan(pp=2).layers_of(2, 4)


PLANS = st.builds(
    Plan,
    tp=st.sampled_from((1, 2, 4)),
    pp=st.integers(1, 4),
    dp=st.integers(1, 4),
    cp=st.integers(1, 3),
    ep=st.sampled_from((1, 2, 3, 4, 6, 8)),
    zero=st.integers(0, 3),
    sequence_parallel=st.booleans(),
    recompute=st.sampled_from(("none", "full")),
    micro_batches=st.integers(1, 9),
    mtp=st.booleans(),
)


@given(PLANS)
def test_text_round_trips(plan):
    assert Plan.parse(str(plan)) == plan


@given(PLANS.filter(lambda plan: plan.ranks_per_stage % plan.ep == 0))
def test_groups_partition_the_world(plan):
    """Every axis cuts the ranks into equal groups without overlap, and each rank is in its own."""
    sizes = {
        "tp": plan.tp, "cp": plan.cp, "ep": plan.ep, "pp": plan.pp, "dp": plan.dp * plan.cp,
        "edp": plan.ranks_per_stage // plan.ep, "stage": plan.ranks_per_stage,
    }  # fmt: skip
    for axis, size in sizes.items():
        groups = {plan.groups(rank)[axis] for rank in range(plan.world)}
        assert all(rank in plan.groups(rank)[axis] for rank in range(plan.world))
        assert {len(group) for group in groups} == {size}
        assert sorted(rank for group in groups for rank in group) == list(range(plan.world))


@given(PLANS.filter(lambda plan: not plan.mtp), st.integers(1, 80))
def test_stages_hold_every_layer_once(plan, layers):
    parts = [plan.layers_of(stage, layers) for stage in range(plan.stages)]
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
