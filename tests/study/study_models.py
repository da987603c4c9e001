"""Steps for tests of studies: a traced model of four layers, and rows made by hand."""

from __future__ import annotations

import functools

from tracer.algebra import Scope
from tracer.hardware import load_chip
from tracer.machine import Timing
from tracer.machine.rows import Row
from tracer.machine.symbolic import StepModel
from tracer.predict.memory import Memory
from tracer.study.closed import Closed
from tracer.study.structure import Cache, Structure, closed_form

MODEL = "deepseek-ai/DeepSeek-V3"
LAYERS = 4  # three dense ones and one with experts
CHIP = load_chip("h200_sxm")
ROOFLINE, KERNELS = Timing(model="roofline"), Timing(model="kernels")


@functools.cache
def closed(phase: str = "decode", dtype: str = "bf16", layers: int | None = LAYERS) -> Closed:
    return closed_form(Structure(MODEL, phase, dtype, layers=layers), Cache(None))


def model_of(step: Closed, timing: Timing = ROOFLINE) -> StepModel:
    return StepModel(step.rows, CHIP, timing, step.scope, step.network)


def by_hand() -> tuple[Closed, StepModel]:
    """Two kernels over B: one of 10^9 B FLOPs and 10^8 + 10^3 B bytes, ten times; one of 10^6 B
    bytes. 10^9 bytes of weights are held, and 10^6 B of cache. A chip of 10^15 FLOP/s, 10^12 B/s.
    """
    scope = Scope()
    b = scope.symbol("B", 8)
    nothing = (("access", 0.0), ("elements", b), ("moved", b), ("vector", 0.0))
    rows = (
        Row(10, (("bf16", 10**9 * b),), (("bf16", 10**9 * b),), 0,
            (("activations", 1000 * b), ("weights", 10**8)), "gemm", "bf16",
            (("batch", 1.0), ("k", 10.0), ("m", b), ("moved", b), ("n", 10.0))),
        Row(1, (), (), 0, (("kv", 10**6 * b),), "elementwise", "bf16", nothing),
    )  # fmt: skip
    held = Memory(10**9, 10**6 * b, 0, 0, 0)
    step = Closed("by hand", "decode", {"B": "sequences"}, rows, held, b, scope)
    model = StepModel(rows, CHIP, Timing(model="roofline", launch=1e-6), scope)
    model.fix({"peak.bf16": 1e15, "bandwidth": 1e12, "capacity": 2e9})
    return step, model
