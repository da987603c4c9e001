"""A study with what later stages add, in the sizes that a test needs; numbers chosen by hand."""

from __future__ import annotations

from dataclasses import replace

from report_studies import study

from tracer.report.records import (
    ClosedForm,
    Crossing,
    DecodeLimit,
    Elasticity,
    Grid,
    GridPoint,
    Message,
    PlanRow,
    Sensitivity,
    Sublayer,
    Sweep,
    SweepPoint,
    WeightRow,
)
from tracer.report.summary import Study


def _point(batch: int, execution: str) -> SweepPoint:
    flops, moved = 1e9 * batch, 4e9 + 1e6 * batch
    compute, memory = flops / 1e15, moved / 4.8e12
    slow = 1.5 if execution == "naive" else 1.1
    return SweepPoint(batch, execution, flops, moved, compute, memory, slow * max(compute, memory),
                      "memory" if memory > compute else "compute", batch, 1e10 + 1e7 * batch,
                      batch < 1000)  # fmt: skip


SWEEP = Sweep(
    "decode", "batch", "h200_sxm", {"context": 48},
    tuple(_point(b, e) for e in ("naive", "efficient") for b in (1, 8, 64, 512, 4096)),
    (
        Crossing("efficient", "FLOP/B reaches the ridge", 1030.5, 4096, "holds 20 GB"),
        Crossing("naive", "FLOP/B reaches the ridge", None, 4096),
    ),
)  # fmt: skip

GRID = Grid(
    "decode", "efficient", "h200_sxm",
    tuple(
        GridPoint({"top_k": k, "cache": c}, k * (1.0 if c == "fp8" else 1.5) * 1e-3, "memory", True)
        for k in (10, 2, 4) for c in ("fp8", "bf16")
    ),
)  # fmt: skip

CLOSED = (
    ClosedForm("decode", "efficient", "layers.*.a", "mm", 2, "bf16", "2*B*32*64",
               {"weights": "2*32*64", "activations": "2*B*(32 + 64)"}),
    ClosedForm("decode", "efficient", "layers.*.b", "attn", 2, "bf16",
               "4*B*min(L, 16)*8 + ceil(B/3)", {"kv": "2*B*L*8", "weights": "0"}),
)  # fmt: skip


def full_study() -> Study:
    """The DeepSeek of the tests with every optional field."""
    return replace(
        study("deepseek"),
        sweeps=(SWEEP,),
        sensitivity=Sensitivity(
            (
                Elasticity("decode", "efficient", "h200_sxm", "memory bandwidth", "chip", -0.9),
                Elasticity("decode", "efficient", "h200_sxm", "batch", "workload", 0.05),
                Elasticity("prefill", "efficient", "h200_sxm", "peak", "chip", -0.6),
            ),
            (GRID,),
        ),
        decode_limits=(
            DecodeLimit("h200_sxm", 1, 2048, 480.0, None, 2048, "memory", 2e11, False),
            DecodeLimit("h200_sxm", 64, 8192, 90.0, 4000.0, None, "kv", None, None),
        ),
        plans=(
            PlanRow("decode", "ep 8", "h200_sxm", 8, 0.02, 0.002, 0.01, 0.004, 64, 1.3e11, True,
                    "memory"),
            PlanRow("decode", "ep 1", "h200_sxm", 1, 0.1, 0.002, 0.09, 0.0, 8, 7e11, False,
                    "memory"),
        ),
        messages=(
            Message("decode", "ep 8", "all_to_all", "ep 8 in a node", 116, 5e7, 0.004, 0.0),
        ),
        weights=(
            WeightRow("outside", "lm_head.weight", 1, 6144, 0, 0.001, 0.02, 0.5, 0.0003, 0.01,
                      0.002, "lm_head.weight"),
            WeightRow("outside", "norm.weight", 1, 64, 0, 1.0, 0.1, 1.2, None, None, None, None),
        ),
        sublayers=(Sublayer("decode", "layers.*.mlp", "mm", 2, "6*B*64*32", "2*3*64*32"),),
        closed_forms=CLOSED,
    )  # fmt: skip
