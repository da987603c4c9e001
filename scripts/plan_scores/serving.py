"""Serving: Llama-3.1-70B on H200, DeepSeek-V3 on the units that were published."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import cache
from pathlib import Path

from tracer.capture.reference import ReferenceProgram
from tracer.capture.workload import Workload
from tracer.cost.work import ATTENTION, COLLECTIVE, GEMM, GROUPED_GEMM
from tracer.hardware import load_cluster
from tracer.machine import time_ledger
from tracer.parallel.memory import Headroom
from tracer.parallel.plan import Plan
from tracer.parallel.ranks import rank_trace
from tracer.predict.expert_load import ExpertChoice
from tracer.predict.serving import Serving, ServingStep, predict_serving
from tracer.predict.structure import Kernels

from .rows import Row, deepseek, llama, markdown


@cache
def llama_decode(tp: int, batch: int, isl: int, osl: int) -> ServingStep:
    """Llama-3.1-70B with FP8 linears on H200, a CUDA graph, half of the output generated."""
    return predict_serving(
        llama("70b"), Plan(tp=tp), "h200_ib", "decode", batch=batch, context=isl + osl // 2,
        assume=Serving(weights="fp8", headroom=Headroom(0.05)),
    )  # fmt: skip


def llama_decode_rows(data: Path) -> list[Row]:
    """TPOT of vLLM; D12 of the cases are the rows of four requests."""
    found = []
    with (data / "serving_tpot.csv").open() as file:
        for row in csv.DictReader(file):
            key = (row["backend"], row["isl"], row["osl"])
            batch, tp = int(float(row["conc"])), int(float(row["tp_size"]))
            if key != ("vllm", "1024", "1024"):
                continue
            step = llama_decode(tp, batch, 1024, 1024)
            found.append(Row(
                f"Llama-3.1-70B FP8, TP{tp}, {batch} requests, vLLM", float(row["silicon_tpot_ms"]),
                1e3 * step.seconds, "ms", 0.15 if batch == 4 else None,
            ))  # fmt: skip
    return found


@cache
def deepseek_serving(
    cluster: str, text: str, phase: str, batch: int, tokens: int, balanced: bool = False
) -> ServingStep:
    """A unit with two micro-batches; `balanced`: routing is simulated as even, not drawn."""
    return predict_serving(
        deepseek(), Plan.parse(text), cluster, phase, batch=batch, seq=tokens, context=tokens,
        assume=Serving(micro_batches=2, experts=ExpertChoice(busiest=1.0 if balanced else None)),
    )  # fmt: skip


EP32, REDUNDANT = "dp=32 ep=32", "dp=32 ep=32 redundant=32"
SGLANG = "SGLang, 8 H100 a node"
# Thousand tokens a second and node of 8. DeepSeek's: deepseek-ai/profile-data (what ran), rates as
# SGLang read them from it. SGLang's own: lmsys.org/blog/2025-05-05-large-scale-ep.
LOADS = (
    ("DeepSeek's profile, 8 H800: prefill, EP32, 4 x 4,096 a GPU, even routing", 62.713, 0.15,
     ("h800_ib", EP32, "prefill", 4, 4096, True)),
    (f"{SGLANG}: the same, redundant experts, even routing", 59.337, 0.15,
     ("h100_ib", REDUNDANT, "prefill", 4, 4096, True)),
    (f"{SGLANG}: the same, routing as it is", 50.302, None,
     ("h100_ib", REDUNDANT, "prefill", 4, 4096)),
    (f"{SGLANG}: 8 x 2,048, routing as it is", 54.543, None,
     ("h100_ib", REDUNDANT, "prefill", 8, 2048)),
    (f"{SGLANG}: 16 x 1,024, routing as it is", 57.674, None,
     ("h100_ib", REDUNDANT, "prefill", 16, 1024)),
    ("DeepSeek's profile, 8 H800: decode, EP128, 128 a GPU, 4,096 keys, even routing", 18.598, 0.15,
     ("h800_ib", "dp=128 ep=128", "decode", 128, 4096, True)),
    (f"{SGLANG}: decode, EP72, 256 a GPU, 2,000 keys", 22.282, 0.15,
     ("h100_ib", "dp=72 ep=72 redundant=32", "decode", 256, 2000)),
)  # fmt: skip


def serving_rows() -> list[Row]:
    """Units of which batch and lengths are known."""
    return [
        Row(what, rate, 8e-3 * deepseek_serving(*unit).tokens_per_s_per_gpu, "k tokens/s", within)
        for what, rate, within, unit in LOADS
    ]


def routing_table() -> str:
    """SGLang's prefill unit of 4 x 4,096 tokens a GPU under Zipf's law."""
    lines = []
    for exponent in (0.0, 0.25, 0.5, 0.75, 1.0):
        line: list[object] = [f"{exponent:g}"]
        for text in (EP32, REDUNDANT):
            assume = Serving(micro_batches=2, experts=ExpertChoice(zipf=exponent))
            step = predict_serving(
                deepseek(), Plan.parse(text), "h100_ib", "prefill", batch=4, seq=4096,
                assume=assume,
            )  # fmt: skip
            line += [f"{step.load.rows:.2f}", f"{8e-3 * step.tokens_per_s_per_gpu:.1f}"]
        lines.append(line)
    head = ["exponent", "in order: busiest rank", "k tokens/s", "32 copies, EPLB: busiest rank",
            "k tokens/s"]  # fmt: skip
    return markdown(lines, head)


SERVICE, REPORT = "dp=144 ep=144 redundant=32", "tp=4 sp dp=80 ep=320 redundant=64"


def service_table() -> str:
    """Decode units at batches that nobody published: no marks."""
    lines = []
    for name, text, batch in (
        *(("EP144, DP144", SERVICE, n) for n in (32, 64, 88, 128)),
        ("EP320, TP4, DP80", REPORT, 128),
    ):
        step = predict_serving(
            deepseek(), Plan.parse(text), "h800_ib", "decode", batch=batch, context=4989,
            assume=Serving(micro_batches=2), solve=True,
        )  # fmt: skip
        lines.append([
            name, batch, batch // step.plan.tp, f"{1e3 * step.seconds:.1f}",
            f"{1e3 * step.exposed:.1f}", f"{1 / step.seconds:.1f}",
            f"{8e-3 * step.tokens_per_s_per_gpu:.1f}", f"{step.memory.total / 1e9:.0f}",
            step.largest_batch,
        ])  # fmt: skip
    head = ["unit", "sequences a data rank", "a GPU", "TPOT ms", "of it exposed messages",
            "tokens/s a user", "k tokens/s a node", "GB", "largest batch a data rank"]  # fmt: skip
    return markdown(lines, head)


def layer_table() -> str:
    """One micro-batch of 64 in an expert layer of the EP144 unit, 4,989 keys, by kind of kernel.

    Published: DeepGEMM's table (M 64; half of its 4 groups of 256), FlashMLA's 660 TFLOP/s, EP 128
    of DeepEP at 128 tokens, halved: kernels alone, without the gap in front of each.
    """
    raw = {**deepseek().raw, "num_hidden_layers": 2, "first_k_dense_replace": 1}  # type: ignore[attr-defined]
    plan = replace(Plan.parse(SERVICE), micro_batch=64)
    trace = rank_trace(
        ReferenceProgram("two layers", raw, "fp8"),
        Workload("decode", 64, 1, 4989),
        plan,
        fold=False,
    )
    kernels, chip = Kernels(served="low_latency"), load_cluster("h800_ib").chip
    found: dict[str, list[float]] = {}
    for item in time_ledger(kernels.ledger(trace), chip, kernels.timing).kernels:
        kernel = item.kernel
        if not kernel.module.startswith("model.layers.1") or kernel.kind == COLLECTIVE:
            continue
        kind = {ATTENTION: "attention over the latent cache", GROUPED_GEMM: "products of experts",
                GEMM: "products in FP8"}.get(kernel.kind, "all others")  # fmt: skip
        if kernel.kind == GEMM and "fp8" not in kernel.cost.flops:
            kind = "absorbed projections, router's product (BF16)"
        found.setdefault(kind, []).append(1e6 * item.total)
    flops = 2 * 64 * 128 * 4989 * (576 + 512)
    dense = ((2112, 7168, 206), (24576, 1536, 289), (7168, 16384, 336), (4096, 7168, 287),
             (7168, 2048, 295))  # fmt: skip
    grouped = ((4096, 7168, 932), (7168, 2048, 815))
    published = {
        "attention over the latent cache": f"{flops / 660e6:.0f}",
        "products in FP8": f"{sum(2 * 64 * n * k / rate / 1e6 for n, k, rate in dense):.0f}",
        "products of experts": f"{sum(512 * 2 * n * k / rate / 1e6 for n, k, rate in grouped):.0f}",
    }
    lines = [[kind, len(us), f"{sum(us):.0f}", published.get(kind, "-")]
             for kind, us in sorted(found.items(), key=lambda kv: -sum(kv[1]))]  # fmt: skip
    unit = deepseek_serving("h800_ib", SERVICE, "decode", 128, 4989, balanced=True)
    messages = 1e6 * unit.communication / 58 / 2  # of 58 layers and 2 micro-batches
    lines.append(["dispatch, combine", 2, f"{messages:.0f}", f"{(192 + 369) / 2:.0f}"])
    return markdown(lines, ["kernels", "number", "us", "published us"])
