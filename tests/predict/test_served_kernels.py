"""A rank's decode and prefill as engines run them: what stays, what is one, what is not there."""

from __future__ import annotations

from collections import Counter

import pytest
from plan_programs import small

from tracer.capture.workload import Workload
from tracer.cost import price
from tracer.cost.joined import joined
from tracer.cost.onepass import one_pass
from tracer.cost.routed import ROUTER, served
from tracer.cost.work import COLLECTIVE, GATHER, GEMM, GROUPED_GEMM
from tracer.parallel.plan import Plan
from tracer.parallel.ranks import rank_trace

ROWS = 8 * 4  # 8 tokens, 4 experts each
MOE_LAYERS = 4


@pytest.fixture(scope="module")
def plain():
    plan = Plan.parse("dp=16 ep=16 micro_batch=8")
    trace = rank_trace(small("fp8"), Workload("decode", 8, 1, 512), plan, rank=0, fold=False)
    return one_pass(price(trace))


def experts(ledger):
    """Kernels of the routed experts of one layer by kind, collectives left out."""
    found = [k for k in ledger.kernels if k.parts[-1].module.endswith("layers.1.mlp.experts")]
    return Counter(k.kind for k in found if k.kind != COLLECTIVE)


def test_low_latency_kernels_leave_the_products_and_what_is_between_them(plain):
    lean = served(plain, "low_latency")
    # gate, up and down products; SwiGLU and the rounding of its result.
    kinds = experts(lean)
    assert kinds.pop(GROUPED_GEMM) == 3
    assert sum(kinds.values()) == 2
    assert kinds[GATHER] == 0
    assert sum(experts(plain).values()) > 25


def test_normal_kernels_leave_the_sorting_by_expert(plain):
    # Rows [32, 256]: gathered twice on the way out and twice on the way back as traced, scales as
    # values; once each where tokens are sent and results come back summed.
    def wide(ledger):
        ops = ledger.trace.ops
        names = [
            ops[k.parts[-1].op].outputs[0].shape for k in ledger.kernels
            if k.kind == GATHER and k.parts[-1].module.endswith("layers.1.mlp.experts")
        ]  # fmt: skip
        return [shape for shape in names if len(shape) == 2 and shape[0] == ROWS]

    # Values [32, 256] and scales [32, 2] twice, results twice.
    assert len(wide(plain)) == 6
    assert len(wide(served(plain, "normal"))) == 3


def test_an_all_to_all_of_rows_leaves_all_but_the_router(plain):
    lean = served(plain, "nccl")
    assert experts(lean) == experts(plain)
    assert sum(k.name == ROUTER for k in lean.kernels) == MOE_LAYERS


@pytest.mark.parametrize("exchange", ["normal", "low_latency", "nccl"])
def test_no_product_and_no_message_is_lost(plain, exchange):
    lean = served(joined(plain), exchange)
    assert lean.total().total_flops == plain.total().total_flops
    assert lean.total().messages == plain.total().messages
    assert lean.total().total_bytes < plain.total().total_bytes
    assert len(lean.kernels) < len(plain.kernels)


def test_products_of_one_tensor_are_one(plain):
    one = joined(plain)

    def count(ledger, kind):
        return sum(k.kind == kind for k in ledger.kernels)

    # Query and latent in 5 layers; gate and up of 1 dense and 4 shared feed-forwards, and of the
    # routed experts of 4 layers.
    assert count(plain, GEMM) - count(one, GEMM) == 5 + 5
    assert count(plain, GROUPED_GEMM) - count(one, GROUPED_GEMM) == MOE_LAYERS
    # What is read once less, a byte an element: 8 x 256 in 10 dense products, 32 x 256 in 4 others.
    saved = plain.total().total_bytes - one.total().total_bytes
    assert saved == 10 * 8 * 256 + MOE_LAYERS * ROWS * 256
    wide = [one.trace.ops[k.parts[0].op].outputs[0].shape for k in one.kernels if k.kind == GEMM]
    assert (8, 128 + 128 + 16) in wide  # q_lora + kv_lora + rope


def test_without_an_exchange_all_but_the_router_stays():
    alone = Plan.parse("dp=1 micro_batch=8")
    ledger = price(rank_trace(small("fp8"), Workload("decode", 8, 1, 512), alone, fold=False))
    kept = served(ledger, "low_latency")
    assert experts(kept) == experts(ledger)
    assert sum(k.name == ROUTER for k in kept.kernels) == MOE_LAYERS
    assert len(kept.kernels) < len(ledger.kernels)
