"""Memory of training plans from blocks, against whole stages traced at the plan's own ranks."""

from __future__ import annotations

import pytest
from plan_programs import small

from tracer.capture.workload import Workload
from tracer.machine import Timing
from tracer.parallel.groups import strided
from tracer.parallel.memory import plan_memory
from tracer.parallel.network import network_of
from tracer.parallel.plan import Plan
from tracer.predict.structure import Kernels, Structure
from tracer.predict.training import Assumptions, training_memory

PLAIN = Kernels(Timing(), casts="traced")
H100 = "h100_ib"
# Matrices of an expert: [256, 128] three times. 48 of them in each of four layers.
EXPERT = 3 * 256 * 128


def memory(text: str):
    assume = Assumptions(kernels=PLAIN)
    return training_memory(small(), Plan.parse(text), H100, seq=128, assume=assume)


@pytest.mark.parametrize(
    "text",
    [
        "dp=8 zero=0 micro_batches=2", "dp=8 zero=1 recompute=full", "dp=8 zero=2 micro_batches=2",
        "dp=8 zero=3", "dp=8 ep=4 zero=1 recompute=full", "dp=8 ep=4 zero=2 recompute=full",
        "dp=8 ep=4 zero=3 recompute=full", "dp=4 ep=4 zero=3", "dp=12 ep=3 zero=3",
        "tp=2 sequence_parallel dp=8 ep=4 zero=3 recompute=full",
        "cp=2 dp=4 ep=2 zero=2", "pp=2 dp=8 ep=2 zero=1 micro_batches=8 recompute=full",
    ],
)  # fmt: skip
def test_a_rank_holds_what_its_whole_stage_holds_at_the_plans_ranks(text):
    plan = Plan.parse(text)
    whole, blocks = plan_memory(small(), Workload("training", 1, 128), plan, 80e9), memory(text)
    for part in ("weights", "gradients", "optimizer"):  # padding of slices apart
        assert getattr(blocks, part) == pytest.approx(getattr(whole, part), rel=1e-3), part
    moving = whole.activations + whole.working
    assert blocks.activations + blocks.working == pytest.approx(moving, abs=0.05 * whole.total)


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
def test_zero_3_leaves_every_rank_its_share_however_experts_are_spread(ep):
    count = sum(p.numel() for p in small().module("training", "meta").parameters())
    found = memory(f"dp=8 ep={ep} zero=3")
    # BF16 weights and gradients; an FP32 master and two moments. Norms' slices are padded.
    assert found.weights == pytest.approx(2 * count / 8, rel=1e-3)
    assert found.gradients == pytest.approx(2 * count / 8, rel=1e-3)
    assert found.optimizer == pytest.approx(12 * count / 8, rel=1e-3)


def test_experts_are_gathered_and_reduced_over_the_ranks_that_share_them():
    network, plan = network_of(H100), Plan.parse("dp=8 ep=4 zero=3 recompute=full")
    work = Workload("training", 1, 128)
    passes = Structure(small(), work, plan, network, PLAIN).stage(0).passes
    group = strided(2, 4, network.cluster)  # ranks r and r + 4 have the same twelve experts
    nbytes = 2 * 12 * EXPERT
    gather = float(network.all_gather(nbytes, group).seconds)
    scatter = float(network.reduce_scatter(nbytes, group).seconds)
    assert passes.messages("forward")["edp"] == pytest.approx(4 * gather)
    assert passes.messages("backward")["edp"] == pytest.approx(4 * (gather + scatter))


def test_optimizers_buffers_take_the_place_of_activations():
    """One micro-batch of few tokens, recomputed: the flat gradients of a layer are more than it."""
    found = memory("dp=8 zero=1 recompute=full")
    # The largest bucket: an expert layer, all of it in BF16.
    layer = small().module("training", "meta").model.layers[1]
    bucket = 2 * sum(p.numel() for p in layer.parameters())
    assert found.activations + found.working == pytest.approx(bucket, rel=0.01)
    assert memory("dp=8 zero=1 micro_batches=2").working < bucket / 10
