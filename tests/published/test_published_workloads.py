"""The exact integers of the V3 workloads, each with its arithmetic written out beside it."""

import functools

import pytest

from tracer.capture.program import load_program
from tracer.capture.workload import Workload, record
from tracer.cost import EXECUTIONS, Conventions, Ledger, price

V3 = "deepseek-ai/DeepSeek-V3"

# Multiply-adds a token (arXiv 2412.19437, section 4.2, and the release's shapes).
MLA = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
DENSE = 3 * 7168 * 18432
EXPERT = 3 * 7168 * 2048
ROUTER = 7168 * 256
HEAD = 7168 * 129280
ACTIVE = 61 * MLA + 3 * DENSE + 58 * (9 * EXPERT + ROUTER) + HEAD
PAIR = 128 * (128 + 64 + 128)  # scores and values of all heads, one query with one key


@functools.cache
def ledger(phase: str, batch: int, length: int, execution: str = "efficient") -> Ledger:
    work = Workload(phase, batch=batch, seq=length, context=length, optimizer="none")
    return price(record(load_program(V3), work), execution=execution)


def flops(*args, **kwargs) -> int:
    return ledger(*args, **kwargs).total().total_flops


def test_matrices_of_a_token():
    assert (MLA, DENSE, EXPERT) == (187_105_280, 396_361_728, 44_040_192)
    assert ACTIVE == 36_624_596_992


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_prefill_of_8192_tokens(execution):
    """All products, router and head on all tokens included, S(S+1)/2 pairs a head and layer."""
    by_hand = 2 * 8192 * ACTIVE + 2 * 61 * PAIR * (8192 * 8193 // 2)
    assert flops("prefill", 1, 8192, execution) == by_hand == 767_753_388_556_288


def test_prefill_counts_the_head_on_every_token():
    head = ledger("prefill", 1, 8192).by(lambda kernel, part: part.module)["lm_head"]
    assert head.total_flops == 2 * 8192 * HEAD


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_decode_at_context_4096(batch, execution):
    """The absorbed form: all matrices but kv_b_proj, which becomes W_UK and W_UV of the same size.

    Every head meets each of 4096 latents with 512 + 64 multiply-adds for the score and 512 for the
    value.
    """
    core = 128 * 4096 * ((512 + 64) + 512)
    by_hand = 2 * (ACTIVE + 61 * core)
    assert by_hand == 142_841_085_952
    assert flops("decode", batch, 4096, execution) == batch * by_hand


def test_decode_does_not_expand_the_cache_again():
    """Transformers re-expands every cached token in each step: 8.48e12 FLOPs, 59 times as many."""
    expanded = 2 * (ACTIVE - 61 * 512 * 128 * 256) + 61 * 2 * 4096 * (512 * 128 * 256 + PAIR)
    assert expanded == pytest.approx(8.48e12, rel=1e-3)
    assert flops("decode", 1, 4096) < expanded / 59
    assert ledger("decode", 1, 4096).total().read["kv"] == 61 * 4096 * 576 * 2


def test_training_is_three_forwards_exactly():
    """Four matmuls of attention's backward count, the fifth is recomputation and stands apart."""
    total = ledger("training", 1, 4096).total()
    pairs = 4096 * 4097 // 2
    assert total.total_flops == 3 * (2 * 4096 * ACTIVE + 2 * 61 * PAIR * pairs)
    assert sum(total.recompute_flops.values()) == 61 * 128 * pairs * 2 * (128 + 64)
    # The figure people quote leaves the router out: 249.8 GFLOP a token.
    quoted = 3 * (2 * (ACTIVE - 58 * ROUTER) + 2 * 61 * PAIR * 4097 / 2)
    assert quoted == pytest.approx(249.81e9, rel=1e-4)


def test_training_without_causality():
    """The other convention: S² pairs. (arXiv 2505.09343, table 4, prints both utilisations.)"""
    trace = ledger("training", 1, 4096).trace
    total = price(trace, Conventions(causal="full")).total()
    assert total.total_flops == 3 * (2 * 4096 * ACTIVE + 2 * 61 * PAIR * 4096**2)
    # 432 non-causal against 385 causal TFLOP/s of the same steps.
    causal = ledger("training", 1, 4096).total().total_flops
    assert total.total_flops / causal == pytest.approx(432 / 385, rel=2e-3)
