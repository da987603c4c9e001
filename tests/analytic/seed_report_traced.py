"""The same step from the trace, cut into the seed report's five lines and what it leaves out.

Beside `seed_report_rules.py`: what the tracer says of each line, in the seed's units. The FP8
release of DeepSeek-V3 on one H200, recorded on meta with one layer standing for its like.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

from mla_formulas import fp8_matrix_bytes
from seed_report_rules import (
    ATTENTION,
    BATCH,
    DECODE,
    EMBEDDING,
    EXPERTS,
    FFN,
    HEAD,
    LENGTH,
    LINES,
    PEAK,
    TRAINING,
    V3,
    Line,
)

from tracer.capture.program import Program, load_program
from tracer.capture.records import OPTIMIZER, Trace
from tracer.capture.workload import Workload, record
from tracer.cost import Conventions, Ledger, price
from tracer.cost.work import ATTENTION as CORE
from tracer.cost.work import GEMM
from tracer.hardware import Chip, load_chip
from tracer.machine import Times, time_ledger

MODEL, CHIP = "deepseek-ai/DeepSeek-V3", "h200_sxm"
REST = "rest"  # norms, residual stream, rotary tables, loss
TRACED_LINES = (*LINES, REST, OPTIMIZER)


class Point(NamedTuple):
    """A workload of both: phase, sequences, and S or L."""

    phase: str
    batch: int
    length: int
    execution: str

    @property
    def title(self) -> str:
        """As a heading: "decode, B=8, L=255, efficient"."""
        name = "L" if self.phase == DECODE else "S"
        return f"{self.phase}, B={self.batch}, {name}={self.length}, {self.execution}"


@dataclass(frozen=True)
class TracedLine:
    """One line: published FLOPs, bytes by role, and the kernel model's seconds."""

    flops: int
    weights: int
    activations: int
    kv: int
    temporary: int
    states: int  # gradients and optimizer state
    seconds: float

    @property
    def bytes_hbm(self) -> int:
        """All roles."""
        return self.weights + self.activations + self.kv + self.temporary + self.states


def line_of(phase: str, module: str) -> str:
    """Which of `TRACED_LINES` an op belongs to, by its phase and module path."""
    if phase == OPTIMIZER:
        return OPTIMIZER
    if module.startswith("model.embed_tokens"):
        return EMBEDDING
    if module == "lm_head":
        return HEAD
    layer = re.match(r"model\.layers\.(\d+)\.(self_attn|mlp)", module)
    if layer is None:
        return REST
    if layer[2] == "self_attn":
        return ATTENTION
    return FFN if int(layer[1]) < V3.dense_layers else EXPERTS


@functools.cache
def program(dtype: str) -> Program:
    """DeepSeek-V3, whole."""
    return load_program(MODEL, dtype=dtype)


@functools.cache
def chip() -> Chip:
    """The report's chip."""
    return load_chip(CHIP)


@functools.cache
def ledger(point: Point, causal: str = "pairs") -> Ledger:
    """The point, traced and priced; "naive" runs attention as matmuls, every op its own kernel."""
    return price(_trace(point, "fp8"), Conventions(causal=causal), execution=point.execution)


@functools.cache
def bf16_ledger(point: Point) -> Ledger:
    """The same in BF16, in which every operand of a product has one size."""
    return price(_trace(point, "bf16"), execution=point.execution)


def _trace(point: Point, dtype: str) -> Trace:
    work = Workload(point.phase, point.batch, seq=point.length, context=point.length)
    attention = "naive" if point.execution == "naive" else "fused"
    return record(program(dtype), work, attention=attention)


@functools.cache
def times(point: Point) -> Times:
    """Its seconds."""
    return time_ledger(ledger(point), chip())


@functools.cache
def lines(point: Point) -> dict[str, TracedLine]:
    """The step by line; the optimizer only where there is one."""
    costs = ledger(point).by(lambda kernel, part: line_of(kernel.phase, part.module))
    seconds = times(point).by(
        lambda timed, number: line_of(timed.kernel.phase, timed.kernel.parts[number].module)
    )
    found = {}
    for name in TRACED_LINES:
        if name not in costs:
            assert name == OPTIMIZER and point.phase != TRAINING, name
            continue
        roles = costs[name].bytes_by_role
        found[name] = TracedLine(
            flops=costs[name].total_flops,
            states=roles["gradients"] + roles["optimizer"],
            seconds=seconds[name],
            **{role: roles[role] for role in ("weights", "activations", "kv", "temporary")},
        )
    return found


def anchor(phase: str, execution: str = "efficient") -> Point:
    """B = 8, S = L = 255."""
    return Point(phase, BATCH, LENGTH, execution)


def pair() -> float:
    """FLOPs of one cached token in one layer: what a longer context adds."""
    long, short = (Point("decode", 8, length, "efficient") for length in (32768, 255))
    added = lines(long)[ATTENTION].flops - lines(short)[ATTENTION].flops
    return added / (V3.layers * 8 * (32768 - 255))


def pair_intensity() -> float:
    """The same over the bytes that it adds to the cache's reads, at 2 bytes an element."""
    long, short = (Point("decode", 8, length, "efficient") for length in (32768, 255))
    added = lines(long)[ATTENTION].kv - lines(short)[ATTENTION].kv
    return pair() * V3.layers * 8 * (32768 - 255) / added


def intensity(context: int) -> float:
    """FLOPs a byte of the whole decode step."""
    return ledger(Point("decode", 8, context, "efficient")).total().intensity


def line_intensity(line: TracedLine | Line) -> float:
    """FLOPs a byte of one line."""
    return line.flops / line.bytes_hbm


def causality(seq: int) -> float:
    """Matrix FLOPs with all pairs over those with causal ones."""
    point = Point("prefill", 8, seq, "efficient")
    return ledger(point, "full").total().total_flops / ledger(point).total().total_flops


def operands() -> float:
    """Elements a token and layer through the products of attention in BF16, and the statistics."""
    priced = bf16_ledger(Point("prefill", 8, 255, "efficient"))
    nbytes = 0
    for kernel in priced.kernels:
        for part in kernel.parts:
            if kernel.kind in (GEMM, CORE) and ".self_attn" in part.module:
                roles = part.cost.bytes_by_role
                nbytes += roles["activations"] + roles["temporary"]
    return nbytes / 2 / (V3.layers * 8 * 255)


def best_share_of_peak() -> float:
    """The FP8 product nearest to the FP8 peak in a prefill of 32,768 tokens."""
    shares = [
        sum(timed.kernel.cost.flops.values()) / timed.total / PEAK
        for timed in times(Point("prefill", 8, 4096, "efficient")).kernels
        if set(timed.kernel.cost.flops) == {"fp8"}
    ]
    return max(shares)


def distinct(batch: int) -> float:
    """Experts read in one layer of a decode step, by the bytes of their values and scales."""
    priced = ledger(Point("decode", batch, LENGTH, "efficient"))
    experts = (part for part in priced.parts() if part.module.endswith(".experts"))
    read = sum(part.cost.read.get("weights", 0) for part in experts)
    moe = V3.layers - V3.dense_layers
    return read / moe / (3 * fp8_matrix_bytes(V3.hidden, V3.expert_width))
