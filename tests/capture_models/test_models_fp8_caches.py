"""KV caches in FP8: rows by hand, what is no cache, memory, and formulas."""

from __future__ import annotations

import pytest
from tiny_models import TEXT, default, program, trace

from tracer.capture.program import load_program
from tracer.capture.workload import Workload, record
from tracer.cost import EFFICIENT, NAIVE, Conventions, price
from tracer.errors import UserError
from tracer.predict.inventory import take_inventory
from tracer.predict.memory import memory
from tracer.study.structure import Cache, Structure, closed_form

FP8 = Conventions(kv="fp8")
BATCH, CONTEXT = 2, 32


def kv(of, conventions: Conventions, execution: str = EFFICIENT, phase: str = "decode"):
    """Bytes of caches that a step reads and writes, and that it holds."""
    attention = "naive" if execution == NAIVE else "fused"
    work = Workload(phase, BATCH, CONTEXT, CONTEXT, "none")
    ledger = price(record(of, work, attention=attention, fold=False), conventions,
                   execution=execution)  # fmt: skip
    cost = ledger.total()
    return cost.read.get("kv", 0), cost.write.get("kv", 0), memory(ledger).kv


@pytest.mark.parametrize("execution", [EFFICIENT, NAIVE])
@pytest.mark.parametrize(
    ("head", "small"),
    [
        (16, 16 + 4),  # shorter than a group: one scale
        (128, 128 + 4),
        (192, 128 + 4 + 64 * 2),  # a group, and 64 that stay BF16
        (256, 2 * (128 + 4)),
    ],
)
def test_a_head_of_a_token(head, small, execution):
    of = program("llama", **{**TEXT, "head_dim": head})
    wide, narrow = kv(of, Conventions(), execution), kv(of, FP8, execution)
    # Key and value of 2 layers and 2 KV heads; naive reads of them are copies now and then.
    assert wide[2] == BATCH * CONTEXT * 2 * 2 * 2 * head * 2
    assert narrow[2] == BATCH * CONTEXT * 2 * 2 * 2 * small
    for a, b in zip(wide, narrow, strict=True):
        assert b == pytest.approx(a * small / (2 * head), abs=8)


def test_a_latent_of_mla_takes_656_bytes():
    of = load_program("deepseek-ai/DeepSeek-V3", layers=4)
    work = Workload("prefill", 1, 256, 256, "none")
    first = record(of, work)
    assert take_inventory(first, 256).kv_bytes_per_token == 4 * 1152
    assert take_inventory(first, 256, conventions=FP8).kv_bytes_per_token == 4 * 656
    # Folded layers hold caches that no op touches.
    folded = price(record(of, Workload("decode", 3, 1, 512, "none")), FP8)
    assert memory(folded).kv == 3 * 512 * 4 * 656


@pytest.mark.parametrize("execution", [EFFICIENT, NAIVE])
def test_sliding_windows_are_caches_too(execution):
    of = program("mistral", **TEXT, sliding_window=8)
    wide, narrow = kv(of, Conventions(), execution), kv(of, FP8, execution)
    assert narrow[2] / wide[2] == pytest.approx((16 + 4) / 32)


@pytest.mark.parametrize("execution", [EFFICIENT, NAIVE])
def test_states_of_recurrences_stay(execution):
    of = default("mamba2")
    assert kv(of, FP8, execution) == kv(of, Conventions(), execution)
    mixed = default("qwen3_next", layers=4)  # three recurrences and one attention
    wide, narrow = kv(mixed, Conventions(), execution), kv(mixed, FP8, execution)
    heads, size = mixed.config.num_key_value_heads, mixed.config.head_dim
    cache = BATCH * CONTEXT * 2 * heads * size * 2
    assert wide[2] - narrow[2] == pytest.approx(cache * (1 - 264 / 512))  # heads of 256


def test_only_caches_change():
    of = default("llama")
    wide = price(trace(of, "decode")).total()
    narrow = price(trace(of, "decode"), FP8).total()
    assert narrow.flops == wide.flops
    for role in ("weights", "activations", "temporary"):
        assert narrow.bytes_by_role[role] == wide.bytes_by_role[role]
    training = price(trace(of, "training"), FP8).total()
    assert training == price(trace(of, "training")).total()


def test_formulas_hold_it_as_well():
    model = "deepseek-ai/DeepSeek-V3"
    step = closed_form(Structure(model, "decode", layers=4, conventions=FP8), Cache(None))
    assert step.memory.kv.at({"B": 3, "L": 512}) == 3 * 512 * 4 * 656


def test_it_is_said_and_checked():
    assert "KV caches in FP8 with an FP32 scale for 128 elements (kv=fp8)" in FP8.notes()
    with pytest.raises(UserError, match="kv='int8': choose one of"):
        Conventions(kv="int8")
