"""Traces of the bundled family, recorded once a process, and their ledgers cut by module.

Every layer is traced (no folding), so a module path holds one layer's cost and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from mla_formulas import Dims

from tracer.capture.program import Program, load_program
from tracer.capture.records import FORWARD, Trace
from tracer.capture.workload import Workload, record, record_symbolic
from tracer.cost import EFFICIENT, Conventions, Cost, Ledger, price
from tracer.cost.ledger import Kernel, Part
from tracer.models import bundled_config

V3 = "deepseek-ai/DeepSeek-V3"
V2_LITE = "deepseek-ai/DeepSeek-V2-Lite"  # no query compression, softmax gate, 2 shared experts
KIMI = "moonshotai/Kimi-K2-Instruct"  # 64 heads, 384 experts, no expert groups
MOONLIGHT = "moonshotai/Moonlight-16B-A3B"  # no query compression, no YaRN

# All dense layers and at least one with experts; in V3 three alike of one kind, in V2-Lite two of
# the other.
LAYERS = {V3: 4, V2_LITE: 3, KIMI: 2, MOONLIGHT: 2}
MODELS = list(LAYERS)


def dims(model: str) -> Dims:
    """Sizes of the layers that are traced."""
    return Dims.of(bundled_config(model), LAYERS[model])


@functools.cache
def program(model: str, dtype: str = "bf16") -> Program:
    """`model` cut to its first layers."""
    return load_program(model, layers=LAYERS[model], dtype=dtype)


@functools.cache
def trace(
    model: str, phase: str, batch: int, length: int, dtype: str = "bf16", attention: str = "fused"
) -> Trace:
    """`length` is the sequence of prefill and training and the context of decode."""
    work = Workload(phase, batch=batch, seq=length, context=length, optimizer="none")
    return record(program(model, dtype), work, attention=attention, fold=False)


@functools.cache
def symbolic_trace(model: str, phase: str, attention: str) -> Trace:
    """With B and S, or B and L, as symbols."""
    work = Workload(phase, batch=8, seq=4096, context=4096, optimizer="none")
    return record_symbolic(program(model), work, attention=attention, fold=False)


@functools.cache
def symbolic_ledger(
    model: str, phase: str, *, attention: str = "fused", causal: str = "pairs",
    execution: str = EFFICIENT,
) -> Ledger:  # fmt: skip
    """That trace, priced."""
    recorded = symbolic_trace(model, phase, attention)
    return price(recorded, Conventions(causal=causal), execution=execution)


@functools.cache
def ledger(
    model: str, phase: str, batch: int, length: int, dtype: str = "bf16", *,
    attention: str = "fused", causal: str = "pairs", execution: str = EFFICIENT,
) -> Ledger:  # fmt: skip
    """The trace, priced."""
    recorded = trace(model, phase, batch, length, dtype, attention)
    return price(recorded, Conventions(causal=causal), execution=execution)


def by_module(
    priced: Ledger, what: Callable[[Cost], int], *, phase: str = FORWARD, kinds: tuple = ()
) -> dict[str, int]:
    """`what` summed over the parts of each module; modules without any are left out.

    `kinds` keeps only kernels of those kinds. The key is a part's own module: a fused kernel is
    divided among the modules whose ops it holds.
    """

    def key(kernel: Kernel, part: Part) -> str:
        if kernel.phase != phase or (kinds and kernel.kind not in kinds):
            return ""
        return part.module or "(none)"

    sums = {module: what(cost) for module, cost in priced.by(key).items() if module}
    return {module: value for module, value in sums.items() if value}


def flops(cost: Cost) -> int:
    """Matrix FLOPs."""
    return cost.total_flops


def weights_read(cost: Cost) -> int:
    """Bytes of parameters and buffers."""
    return cost.read.get("weights", 0)


def passing_bytes(cost: Cost) -> int:
    """Bytes of what flows, whether or not it leaves the module (activations and temporaries)."""
    return sum(cost.bytes_by_role[role] for role in ("activations", "temporary"))
