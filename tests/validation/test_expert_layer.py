"""A second route to a measured time: the ops of a traced layer, summed, against the whole layer."""

import csv

import pytest

from tracer.capture.program import load_program
from tracer.capture.workload import Workload, record
from tracer.cost import price
from tracer.hardware import load_chip
from tracer.machine import time_ledger


@pytest.fixture(scope="module")
def program():
    return load_program("deepseek-ai/DeepSeek-V3", dtype="fp8", layers=4, remote_code=False)


@pytest.mark.parametrize("tokens", [8, 128, 1024, 16384])
def test_a_traced_expert_layer_takes_as_long_as_a_measured_one(measured, program, tokens):
    """Quantise, sort, gather, three products, activation, combine: each op by its own family.

    Only the products' constants and the passes over rows were fitted to such layers, as a whole;
    the gathers come from another model on another chip.
    """
    with (measured / "moe_deepseek_v3_h200.csv").open() as file:
        (row,) = (
            row for row in csv.DictReader(file)
            if row["backend"].startswith("trtllm") and row["distribution"] == "balanced"
            and row["moe_tp_size"] == "1" and int(row["num_tokens"]) == tokens
        )  # fmt: skip
    # Whichever phase: what matters is tokens in one call. Four layers hold one of experts.
    prefill = tokens >= 1024
    seq = min(tokens, 4096)
    workload = Workload("prefill", tokens // seq, seq) if prefill else Workload("decode", tokens)
    ledger = price(record(program, workload, attention="fused", fold=True))
    seconds = time_ledger(ledger, load_chip("h200_sxm")).by(
        lambda kernel, part: kernel.kernel.parts[part].module
    )
    experts = sum(value for name, value in seconds.items() if ".mlp.experts" in name)
    assert experts == pytest.approx(float(row["latency_us"]) * 1e-6, rel=0.18)
